"""Progressive searches: one stage is the plain search; what begins anew; masks, record and derivation; resume; cost."""

import math

import pytest
import torch
from search_support import TINY, dying_at, run, state

from registry import PluginError
from registry.strategies.progressive import KEPT
from ssfnas_cli.artifacts.checkpoint import load_newest
from ssfnas_cli.artifacts.genotype import read_genotype
from ssfnas_cli.artifacts.run import RunFolder
from ssfnas_cli.engine import dry_run
from ssfnas_cli.engine.derive_run import derive_run
from ssfnas_cli.engine.finished_search import FinishedSearch
from ssfnas_cli.engine.rank_run import supernet_accuracies
from ssfnas_cli.engine.search import run_search
from ssfnas_cli.engine.search_phase import SearchPhase
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.settings import SearchSettings, load_settings

STAGES = ("strategy.ops=4,2", "strategy.add_layers=0,1", "strategy.skip_dropout=0,0.5", "edge_weights=true")
ONE = ("strategy.ops=4", "strategy.add_layers=0")


def settings_of(data, *sets, **flags):
    given = {**TINY, "batch_size": 64, "data": str(data.path), "epochs": 2, "kernels": "torch"}
    return load_settings(SearchSettings, sets=sets, flags={**given, "strategy": "progressive", **flags})


@pytest.fixture
def progressive(search):
    return lambda *sets, **flags: search(*STAGES, *sets, strategy="progressive", **flags)


@pytest.fixture(scope="module")
def finished(tiny_digits, tmp_path_factory):
    """A search in two stages of one epoch each."""
    path = tmp_path_factory.mktemp("progressive") / "run"
    run_search(settings_of(tiny_digits, *STAGES), path, False)
    return RunFolder.open(path, "search")


@pytest.mark.parametrize(
    "sets", [("strategy.skip_dropout=0.3",), ("strategy.skip_dropout=0", "relax=dirichlet", "edge_weights=true")]
)
def test_with_one_stage_it_is_the_plain_search_bit_for_bit(tiny_digits, tmp_path, sets):
    run_search(settings_of(tiny_digits, *sets, strategy="gradient"), tmp_path / "plain", False)
    run_search(settings_of(tiny_digits, *ONE, *sets), tmp_path / "one", False)
    ours, theirs = (load_newest(tmp_path / name / "checkpoints").tensors for name in ("one", "plain"))
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    own = {"stage", *(f"kept.{kind}" for kind in KEPT), *(f"history.{name}" for name in KEPT.values())}
    assert ours.keys() - theirs.keys() == own
    clock = ("step_seconds", "elapsed_seconds", "peak_memory_bytes", "candidates_per_edge")
    mine, plain = (RunFolder.open(tmp_path / name).metrics() for name in ("one", "plain"))
    strip = lambda lines: [{key: value for key, value in line.items() if key not in clock} for line in lines]
    assert strip(mine) == strip(plain)
    genotypes = [read_genotype(tmp_path / name / "genotype.json") for name in ("one", "plain")]
    assert genotypes[0].cells() == genotypes[1].cells()


def test_a_stage_begins_anew_with_more_cells_and_the_strongest_candidates(progressive):
    phase = progressive(epochs=4)
    strategy = phase.strategy
    run(phase, 2)
    phase.end_epoch(1)
    weights = {kind: torch.softmax(alphas.detach().double(), 1) for kind, alphas in strategy.alphas.items()}
    first, alphas = state(phase), {kind: values.detach().clone() for kind, values in strategy.alphas.items()}
    assert len(phase.model.encoder.cells) == 3 and phase.optimizer.state and strategy.optimizer.state
    (batch, *_) = phase.batches(2, 0)
    phase.step(2, 0, batch)
    assert len(phase.model.encoder.cells) == 4 == phase.layers and strategy.stage == 1
    for kind, kept in strategy.kept.items():
        for row, mask in zip(weights[kind], kept, strict=True):
            assert mask.sum() == 2 and row[mask.bool()].min() >= row[~mask.bool()].max()
        moved = (strategy.alphas[kind] - alphas[kind]).abs().max()
        assert 0 < strategy.alphas[kind].abs().max() < 0.1 < moved, "they begin small again, and have taken a step"
    now = state(phase)
    stem = next(name for name in now if name.startswith("encoder.stem") and name.endswith("weight"))
    assert not torch.equal(now[stem], first[stem])


def test_dropped_candidates_have_weight_zero_and_are_not_trained(progressive):
    phase = progressive(epochs=2)
    run(phase, 1)
    phase.end_epoch(0)
    (batch, *_) = phase.batches(1, 0)
    phase.step(1, 0, batch)
    strategy = phase.strategy
    for progress, generator in ((0.0, torch.Generator().manual_seed(0)), (1.0, None)):
        mixing = strategy.mixing(progress, generator)
        assert not any(mixing[kind][kept == 0].any() for kind, kept in strategy.kept.items())
    for cell in phase.model.encoder.cells:
        kept = strategy.kept["reduce" if cell.reduction else "normal"]
        for edge, ops in enumerate(cell.of_edge):
            for column, op in ops.items():
                grads = [weight.grad for weight in op.parameters()]
                if not kept[edge, int(column)]:
                    assert all(grad is None for grad in grads)


def test_rates_progress_and_warm_up_are_of_the_stage(progressive):
    phase = progressive("warmup_epochs=1", epochs=4)
    told = []
    for epoch in range(4):
        values = run(phase, 1, epoch)[0]
        phase.end_epoch(epoch)
        told.append((values["lr"], "alpha_loss" in values))
    assert [one for _, one in told] == [False, True, False, True]
    assert told[0] == told[2] and told[1] == told[3] and told[0][0] == phase.settings.lr > told[1][0]
    whole = phase.strategy.mixing(0.5)["normal"]
    skip = TINY["ops"].index("skip_connect")
    kept = phase.strategy.kept["normal"][:, skip].bool()
    draws = [phase.strategy.mixing(0.5, torch.Generator().manual_seed(seed))["normal"] for seed in range(400)]
    dropped = torch.stack(draws)[:, kept, skip] == 0
    assert kept.any() and abs(dropped.double().mean() - 0.5 * math.exp(-2.5)) < 0.03
    assert (whole[kept, skip] > 0).all()


def test_the_last_candidate_of_an_edge_computes_something(search):
    phase = search("strategy.ops=4,1", "strategy.add_layers=0,0", "strategy.skip_dropout=0,0", strategy="progressive")
    strategy = phase.strategy
    with torch.no_grad():
        for alphas in strategy.alphas.values():
            alphas[:, 0] = 5.0  # `none` is the strongest everywhere
            alphas[3, 2] = 1.0
    strategy.end_epoch()
    strategy.begin_stage(1)
    assert all(mask.sum() == 1 and not mask[0] for kept in strategy.kept.values() for mask in kept)
    assert strategy.kept["normal"][3, 2]


def test_a_search_that_dies_around_the_bound_of_stages_ends_bit_equal(tiny_digits, finished, tmp_path):
    often = settings_of(tiny_digits, *STAGES, "save_minutes=1e-9")
    for place in ((0, 1), (1, 0), (1, 1)):
        with dying_at(SearchPhase, *place):
            run_search(often, tmp_path / "run", False)
    run_search(often, tmp_path / "run", False)
    ours, theirs = (load_newest(path / "checkpoints").tensors for path in (tmp_path / "run", finished.path))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert "model.encoder.cells.3.inputs.older.1.weight" in ours or any(".cells.3." in name for name in ours)


def test_metrics_record_and_derivation_know_the_stages(finished):
    lines, record = finished.metrics(), finished.alphas()
    assert [(line["stage"], line["layers"], line["candidates_per_edge"]) for line in lines] == [(1, 3, 4), (2, 4, 2)]
    assert [record["kept_normal"][epoch].sum().item() for epoch in range(3)] == [56, 56, 28]
    for epoch, kept in ((1, 4), (2, 2)):
        genotype = derive_run(finished, epoch=epoch)
        assert genotype.provenance.epoch == epoch
        for kind, cell in genotype.cells().items():
            masks = record[KEPT[kind]][epoch]
            assert (masks.sum(1) == kept).all()
            rows = {edge: row for row, edge in enumerate((s, t) for t in range(2, 6) for s in range(t))}
            for edge in cell.edges:
                assert masks[rows[edge.source, edge.target], TINY["ops"].index(edge.op)]
    assert lines[1]["weights_moved"] < 0.3, "from the start of its stage, not from the weights of four candidates"


def with_dropped_op(cell, folder):
    """A cell whose first edge has an op that was no candidate there in the last stage; it is the first of all edges."""
    (first, *others), masks = cell.edges, folder.alphas()[KEPT["normal"]][-1]
    assert (first.source, first.target) == (0, 2)
    dropped = next(column for column in (1, 2, 3) if not masks[0, column])
    return cell.model_copy(update={"edges": (first.model_copy(update={"op": TINY["ops"][dropped]}), *others)})


def test_what_follows_a_search_takes_its_last_supernet(tiny_digits, finished, tmp_path):
    assert FinishedSearch.open(finished.path).layers == 4
    genotype = derive_run(finished)
    assert supernet_accuracies(finished, {"mine": genotype})["mine"]["accuracy"] > 0
    other = genotype.model_copy(update={"normal": with_dropped_op(genotype.normal, finished)})
    with pytest.raises(InputError, match=r"other: its normal cell has an op that .* had dropped before its last stage"):
        supernet_accuracies(finished, {"other": other})
    with pytest.raises(UsageError, match=r"its supernet has layers 4, and this search 3: give --layers 4"):
        run_search(settings_of(tiny_digits, strategy="gradient", init_from=str(finished.path)), tmp_path / "no", False)
    with pytest.raises(UsageError, match=r"--init-from: the strategy 'progressive' begins each of its stages with new"):
        run_search(settings_of(tiny_digits, *STAGES, init_from=str(finished.path)), tmp_path / "no", False)
    with pytest.raises(UsageError, match=r"setting 'sync': the supernet of the strategy 'progressive' begins anew"):
        run_search(settings_of(tiny_digits, *STAGES, "sync=round", "clients=2"), tmp_path / "no", False)


def test_a_dry_run_times_each_stage(tiny_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "ENOUGH_SECONDS", 0.0)
    built = []
    original = SearchPhase.step
    monkeypatch.setattr(
        SearchPhase, "step", lambda self, e, s, batch: (original(self, e, s, batch), built.append((e, self.layers)))[0]
    )
    facts = dry_run.predict_search(settings_of(tiny_digits, *STAGES, epochs=5), tmp_path / "run", False)
    assert [part["epochs"] for part in facts["phases"]] == [2, 3]
    assert set(built) == {(0, 3), (2, 4)}


@pytest.mark.parametrize(
    "sets, epochs, message",
    [
        ((), 8, "option 'ops' of 'progressive': the first stage has all 4 candidates, and 8 is said"),
        (STAGES, 1, "'progressive' has 2 stages, and there is no epoch for each: take at least --epochs 2"),
        (("strategy.ops=4,5,2",), 8, "a stage cannot have more candidates than the one before"),
        (("strategy.ops=4,2",), 8, "option 'add_layers' .*one number for each of the 2 stages"),
        ((*ONE, "strategy.add_layers=2", "strategy.skip_dropout=0"), 8, "should begin with 0"),
    ],
)
def test_stages_that_make_no_sense_are_refused(tiny_digits, tmp_path, sets, epochs, message):
    with pytest.raises(PluginError, match=message):
        run_search(settings_of(tiny_digits, *sets, epochs=epochs), tmp_path / "run", False)
    assert not (tmp_path / "run").exists()
