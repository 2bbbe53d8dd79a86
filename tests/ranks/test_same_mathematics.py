"""N ranks compute what one process computes: losses, gradients, statistics, metrics, to 1e-10 in float64."""

import socket
from pathlib import Path

import pytest
from safetensors.torch import load_file

HERE = Path(__file__).parent
SIZES = [2, 3, 4]
LOCAL = "train local statistics/"  # it has other statistics than one process
AS_STEPS = "federated as steps/"  # as many clients as ranks, so other ones in every world
ALL = 2  # so many ranks compute all cases, others some of them
REFERENCE = "local on"


def free_port() -> int:
    """A port such that it and the next few are free."""
    for _ in range(100):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = probe.getsockname()[1]
        if first < 65_000 and all(_is_free(first + offset) for offset in range(1, 5)):
            return first
    raise AssertionError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture(scope="module")
def results(zygote, tiny_digits, tmp_path_factory):
    """`results[size][rank]`: what every rank of every world saved."""
    out = tmp_path_factory.mktemp("ranks")
    done = zygote.run([tiny_digits.path, out, free_port()], out, {"script": str(HERE / "rank_cases.py")})
    assert done.code == 0, done.err
    return {size: [load_file(out / f"{size}-{rank}.safetensors") for rank in range(size)] for size in (1, *SIZES)}


def groups(results) -> list[str]:
    return sorted({name.partition("/")[0] for name in results[1][0]})


@pytest.mark.parametrize("size", SIZES)
def test_every_rank_has_the_gradients_statistics_and_metrics_of_one_process(results, size):
    (expected,) = results[1]
    failures = []
    for rank, got in enumerate(results[size]):
        alone = {name for name in expected if not name.startswith(REFERENCE)}
        assert alone >= got.keys() and (alone == got.keys() or size != ALL)
        for name in got:
            if not name.startswith((LOCAL, AS_STEPS)) and (failure := difference(name, got[name], expected[name])):
                failures.append(f"{failure} on rank {rank}")
    assert not failures, "\n".join(failures[:20])


def difference(name, got, expected) -> str:
    """What differs by more than rounding; nothing if it does not."""
    scale = expected.double().abs().max().item() if expected.numel() else 0.0
    error = (got.double() - expected.double()).abs().max().item() if expected.numel() else 0.0
    tolerance = 1e-7 if "/train_accuracy" in name else 1e-10  # a mean that is taken in float32
    return f"{name}: {error:.3g} of {scale:.3g}" if error > tolerance * scale + 1e-13 else ""


@pytest.mark.parametrize("size", SIZES)
def test_local_statistics_are_those_of_the_shares_as_plain_torch_computes_them(results, size):
    begin = f"{REFERENCE} {size} ranks/"
    reference = {name.removeprefix(begin): value for name, value in results[1][0].items() if name.startswith(begin)}
    got = {name.removeprefix(LOCAL): value for name, value in results[size][0].items() if name.startswith(LOCAL)}
    assert reference.keys() < got.keys() and any("running_var" in name for name in reference)
    assert not [text for name, value in reference.items() if (text := difference(name, got[name], value))]


@pytest.mark.parametrize("size", SIZES)
def test_all_ranks_hold_the_same_to_the_last_bit(results, size):
    first, *others = results[size]
    for other in others:
        assert [name for name, value in first.items() if not value.equal(other[name])] == []


def test_the_cases_cover_every_loss_and_see_gradients(results):
    from registry import LOSSES

    builtin = [name for name in LOSSES.names() if LOSSES.get(name).origin == "builtin"]
    assert {f"loss {name}" for name in builtin} <= set(groups(results))
    (expected,) = results[1]
    for group in groups(results):
        gradients = [v for name, v in expected.items() if name.startswith(f"{group}/") and "gradient" in name]
        assert group == "norm (4, False)" or any(value.abs().max() > 1e-6 for value in gradients), group


@pytest.mark.parametrize("size", [2, 3])
def test_rounds_of_one_step_of_equal_clients_are_data_parallel_steps(results, size):
    """FedNAS with SGD on the alphas, no clip, cross-entropy and each rank's own BN statistics."""
    for got in results[size]:
        prefix = f"{AS_STEPS}rounds: "
        names = [name.removeprefix(prefix) for name in got if name.startswith(prefix)]
        assert {"alphas.normal", "alphas.reduce", "model.head.weight"} <= set(names)
        for name in names:
            rounds, steps = got[prefix + name], got[f"{AS_STEPS}steps: {name}"]
            moved = got[f"{AS_STEPS}pseudo-gradient {name}"].abs().max()
            assert (rounds - steps).abs().max() <= 1e-10 * moved + 1e-13, name


def test_local_statistics_are_other_ones_but_the_ranks_agree_on_their_mean(results):
    (one,), two = results[1], results[2]
    name = next(name for name in one if name.startswith(LOCAL) and name.endswith("running_var"))
    assert not one[name].equal(two[0][name])
    assert two[0][name].equal(two[1][name])
    assert (one[name] - two[0][name]).abs().max() < 0.1 * one[name].abs().max()
