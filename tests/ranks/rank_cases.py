"""What the ranks compute for test_same_mathematics.py. Run as a program, it forks ranks, which save their results.

Everything is in float64, and by torch except in the cases that are named after the compiled kernels. Each case is a
function that returns tensors by name. They are called in worlds of one process and of two ranks, three and four; the
tests compare what they gave.
"""

import os
import sys
import traceback
from functools import partial
from pathlib import Path

import torch
from federated_cases import clients_case, rounds_and_steps_case
from torch import Tensor

NUM = 11  # images of a batch, which divide by neither two nor three nor four
# Two ranks compute all cases; other numbers those with these words in their names.
SOME = ("loss", "norm", "gumbel", "drop path", "local statistics")
CHOSEN = {3: (*SOME, "compiled kernels", "federated"), 4: SOME}


def main(data: str, out: str, worlds: list[int], port: int) -> None:
    """Compute all cases in worlds of so many ranks, one world after the other."""
    import torch._dynamo  # the first optimizer imports it, which takes a second

    import ssfnas_cli.engine.search
    import ssfnas_cli.engine.train_phase  # noqa: F401

    torch.set_num_threads(1)
    for size in worlds:
        children = [_fork(rank, size, port + size, data, Path(out)) for rank in range(size)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if any(codes):
            raise SystemExit(f"world of {size}: exit codes {codes}")


def _fork(rank: int, size: int, port: int, data: str, out: Path) -> int:
    if child := os.fork():
        return child
    code = 1
    try:
        place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()})
        _compute(data, out / f"{size}-{rank}.safetensors")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _compute(data: str, out: Path) -> None:
    from safetensors.torch import save_file

    from ssfnas_cli import world
    from ssfnas_cli.artifacts.dataset import DataSet

    assert world.enter(["search"])
    torch.set_default_dtype(torch.float64)
    _use_float64_images()
    opened = DataSet.open(Path(data))
    results: dict[str, Tensor] = {}
    named = cases(opened)
    if world.size() == 1:
        named |= {f"local on {n} ranks": partial(local_reference, opened, n) for n in (2, 3, 4)}
    for name, case in named.items():
        if not any(word in name for word in CHOSEN.get(world.size(), [""])):
            continue
        for key, value in case().items():
            results[f"{name}/{key}"] = value.detach().clone().contiguous()
    save_file(results, out)
    world.leave()


def _use_float64_images() -> None:
    from ssfnas_cli.engine.device import Device

    move = Device.move

    def moved(self, batch):
        wide = lambda views: tuple(view.double() for view in views)
        batch = move(self, batch)
        return batch._replace(views=wide(batch.views), beside=wide(batch.beside))

    Device.move = moved


def cases(data) -> dict:
    """All cases by name."""
    from registry import LOSSES

    named = {f"loss {name}": lambda name=name: loss_case(name) for name in LOSSES.names() if is_builtin(LOSSES, name)}
    named["loss barlow as Eq. 9"] = lambda: loss_case("barlow", centred=False)
    named |= {f"norm {kind}": lambda kind=kind: norm_case(*kind) for kind in NORMS}
    named["federated clients"] = lambda: clients_case(data)
    named["federated as steps"] = lambda: rounds_and_steps_case(data)
    named |= {f"search {name}": lambda given=given: search_case(data, **given) for name, given in SEARCHES.items()}
    return named | {f"train {name}": lambda given=given: train_case(data, **given) for name, given in TRAININGS.items()}


def is_builtin(registry, name: str) -> bool:
    return registry.get(name).origin == "builtin"


# Losses: their value and their gradient for each image


def loss_case(name: str, **options) -> dict[str, Tensor]:
    from registry import LOSSES, collective

    plugin = LOSSES.get(name)
    counts = [40, 20, 10, 5, 3]
    objective = plugin.factory(plugin.parse_options(options), num_classes=5, class_counts=counts)
    torch.manual_seed(3)
    labels, width = torch.randint(0, 5, (NUM,)), 5 if objective.supervised else 6
    share = collective.my_share(NUM)
    mine = slice(None) if share is None else slice(share.start, share.stop)
    whole = [torch.randn(2, NUM, width) for _ in range(objective.num_views)]
    leaves = [view[:, mine].clone().requires_grad_() for view in whole]
    outputs = [tuple(leaf) if objective.reads == "pairs" else leaf[0] for leaf in leaves]
    with collective.sharing(share):
        loss = collective.global_loss(objective(outputs, labels[mine], 0.9), share)
    loss.backward()
    gradients = {f"gradient {k}": gathered(leaf.grad.transpose(0, 1)) for k, leaf in enumerate(leaves)}
    return {"loss": loss, **gradients}


def gathered(rows: Tensor) -> Tensor:
    from registry import collective

    return collective.gather_rows(rows, NUM)


# Batch normalisation

NORMS = [(4, True), (4, False), (2, True)]  # dimensions of the input, and whether it has weights


def norm_case(ndim: int, affine: bool) -> dict[str, Tensor]:
    from registry import collective
    from registry.norm import BatchNorm, batch_norm

    torch.manual_seed(5)
    whole = 100 + torch.randn(NUM, 3, *[4] * (ndim - 2)) * torch.arange(1, NUM + 1).view(-1, *[1] * (ndim - 1))
    norm, scale = BatchNorm(3, affine=affine), torch.tensor(0.7, requires_grad=True)
    target, factor = torch.randn_like(whole), collective.replicated({"scale": scale})["scale"]
    share = collective.my_share(NUM)
    mine = slice(None) if share is None else slice(share.start, share.stop)
    x = whole[mine].clone().requires_grad_()
    y = batch_norm(norm, x, factor)
    with collective.GradientSums(norm.parameters()):
        (y * target[mine]).sum().backward()
    results = {"y": gathered(y.detach()), "dx": gathered(x.grad), "d scale": scale.grad}
    results |= {f"gradient {name}": value.grad for name, value in norm.named_parameters()}
    return results | dict(norm.named_buffers())


# Searches

SEARCH = {
    "channels": 2,
    "layers": 3,
    "batch_size": 16,
    "epochs": 1,
    "ops": ("none", "max_pool_3x3", "skip_connect"),  # cheap ones, where no case needs another
    "alpha_lr": 0.05,
}
PARTIAL = {"sets": ["partial_channels=2"], "ops": ("none", "avg_pool_3x3", "sep_conv_3x3")}
SEARCHES = {
    "softmax": {"relax": "softmax", "ops": ("none", "avg_pool_3x3", "sep_conv_3x3"), "ends": True},
    "softmax, order 2": {
        "relax": "softmax",
        "order": 2,
        "steps": 2,
        "ops": ("none", "skip_connect", "dil_conv_3x3"),
    },  # the second step has momentum
    "sigmoid, order 2, barlow": {"relax": "sigmoid", "order": 2, "loss": "barlow"},
    "vicreg, alphas by ldam": {"relax": "sigmoid", "loss": "vicreg", "alpha_loss": {"name": "ldam"}, "ends": True},
    "ssl beside, balanced sampler": {"sets": ["ssl.loss=barlow", "sampler=class_balanced"]},
    "gumbel": {"relax": "gumbel", "ends": True},
    "dirichlet": {"relax": "dirichlet"},
    "partial channels": PARTIAL | {"ends": True},
    "compiled kernels": {
        "compiled": True,
        "order": 2,
        "steps": 2,
        "ops": ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_5x5"),
        "ends": True,
    },
    "compiled kernels, partial channels, shares of other sizes": PARTIAL | {"compiled": True},
    "compiled kernels, partial channels, equal shares": PARTIAL | {"compiled": True, "batch_size": 12},
    "random": {"strategy": "random", "judged": 2},
    "evolution": {"strategy": "evolution", "sets": ["strategy.population=2", "strategy.sample=2"], "judged": 4},
}


def with_kernels(device, compiled: bool):
    """The device, which computes cells by the kernels for float64 if `compiled`."""
    from ssfnas_cli.native import cells, library

    device.cells = cells.load(torch.float64) if compiled else None
    assert not compiled or device.cells is not None or library.compiler() is None
    return device


def search_case(
    data, sets=(), ends: bool = False, steps: int = 1, judged: int = 0, compiled: bool = False, **given
) -> dict[str, Tensor]:
    from ssfnas_cli.engine.candidate_rounds import CandidateRounds
    from ssfnas_cli.engine.device import Device
    from ssfnas_cli.engine.search_phase import SearchPhase
    from ssfnas_cli.settings import SearchSettings, load_settings

    flags = {**SEARCH, **given}
    settings = load_settings(SearchSettings, sets=[*sets, "statistics_batches=2"], flags=flags).resolve_plugins()
    phase = SearchPhase(settings, data, with_kernels(Device("cpu", 0), compiled))
    all_alphas = {} if judged else phase.strategy.alphas  # strategies that judge candidates have none
    for kind, alphas in all_alphas.items():  # somewhere, so that no gradient is 0 by symmetry
        alphas.data.add_(0.3 * torch.randn(alphas.shape, generator=torch.Generator().manual_seed(len(kind))))
    results = run(phase, steps, 0)
    results |= {f"alpha gradient {kind}": alphas.grad for kind, alphas in all_alphas.items()}
    for number in range(judged):
        results |= numbers(
            {f"candidate {number}": CandidateRounds(phase).step(phase.epochs, number, None)["candidate_fitness"]}
        )
    results |= phase.tensors()
    if ends:
        results |= numbers(phase.end_epoch(0))
    return results


def run(phase, steps: int, epoch: int) -> dict[str, Tensor]:
    """Some steps as the loop takes them: their values, the last gradients, and what the phase holds afterwards."""
    from ssfnas_cli.engine.loop import seed_for_step
    from ssfnas_cli.engine.ranks import check_equal

    results = {}
    for step, batch in zip(range(steps), phase.batches(epoch, 0), strict=False):
        seed_for_step(phase.seed, epoch, step)
        results |= {f"{name} {step}": value for name, value in numbers(phase.step(epoch, step, batch)).items()}
    check_equal(phase.tensors())
    gradients = {name: weight.grad for name, weight in phase.model.named_parameters() if weight.grad is not None}
    return results | {f"gradient {name}": value for name, value in gradients.items()} | phase.tensors()


def numbers(values) -> dict[str, Tensor]:
    return {name: torch.tensor(float(value)) for name, value in values.items() if isinstance(value, int | float)}


# Trainings

TRAININGS = {
    "drop path, auxiliary head, moving average": {"drop_path": 0.5, "ema": 0.9, "ends": True},
    "compiled kernels, drop path, auxiliary head": {"compiled": True, "drop_path": 0.5, "ends": True},
    "mixup and cutmix": {"mixup": 0.5, "cutmix": 1.0},
    "ssl beside": {"sets": ["ssl.loss=vicreg"]},
    "pretraining": {"pretrain": "barlow"},
    "local statistics": {"sets": ["batch_stats=local"], "drop_path": 0.0, "steps": 1},
}


def train_case(data, sets=(), ends: bool = False, steps: int = 2, compiled: bool = False, **given) -> dict[str, Tensor]:
    from ssfnas_cli.engine.device import Device

    phase, settings = train_phase(data, [*sets, "track_test=true"], given, compiled)
    try:
        return run(phase, steps, 2) | (numbers(phase.end_epoch(3)) if ends else {})
    finally:
        Device.from_settings(settings.model_copy(update={"batch_stats": "global"}))


def train_phase(data, sets, given, compiled: bool = False):
    """A small training, or the pretraining before it, and its settings."""
    from ssfnas_cli.artifacts.genotype import Cell, Edge, Genotype
    from ssfnas_cli.engine.device import Device
    from ssfnas_cli.engine.network import make_card
    from ssfnas_cli.engine.retrain import build_phases
    from ssfnas_cli.settings import RetrainSettings, load_settings

    ops = (("sep_conv_3x3", 0, 2), ("skip_connect", 1, 2))
    cell = Cell(edges=tuple(Edge(op=op, source=source, target=target) for op, source, target in ops), concat=(2,))
    genotype = Genotype(normal=cell, reduce=cell)
    flags = {"channels": 4, "layers": 3, "batch_size": 16, "epochs": 4, "pretrain_epochs": 4, **given}
    settings = load_settings(RetrainSettings, sets=[*sets, "kernels=torch"], flags=flags).resolve_plugins()
    card = make_card(genotype, settings, data)
    device = with_kernels(Device.from_settings(settings), compiled)
    (phase, *_), _ = build_phases(card, settings, data, device)
    return phase, settings


def local_reference(data, size: int) -> dict[str, Tensor]:
    """What `size` ranks with local statistics should compute in the case of that name, by plain torch in one process.

    Each share of the batch passes through the network by itself; the loss is the mean over all images, and the running
    statistics are the mean of what each share makes of the old ones.
    """
    import torch.nn.functional as F

    from ssfnas_cli.engine.loop import seed_for_step

    phase, settings = train_phase(data, [], {"drop_path": 0.0})
    model = phase.model.train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    after = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in before.items()}
    batch, total = next(iter(phase.batches(2, 0))), 0.0
    seed_for_step(phase.seed, 2, 0)
    for images, labels in zip(batch.views[0].tensor_split(size), batch.labels.tensor_split(size), strict=True):
        model.load_state_dict(before, strict=False)
        encoded, weight = model.encoder(images), len(images) / len(batch.labels)
        loss = F.cross_entropy(model.head(encoded.features), labels)
        loss = loss + settings.aux_weight * F.cross_entropy(model.aux(encoded.aux_map), labels)
        (weight * loss).backward()
        total += weight * loss.item()
        for name, value in model.named_buffers():
            after[name] += weight * value
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    gradients = {f"gradient {name}": weight.grad for name, weight in model.named_parameters()}
    return {"loss 0": torch.tensor(total)} | gradients | {f"model.{name}": value for name, value in after.items()}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], [1, 2, 3, 4], int(sys.argv[3]))
