"""Federated searches for rank_cases.py: clients on ranks, and rounds of one step against data-parallel steps."""

from torch import Tensor

TINY = {
    "channels": 2,
    "layers": 3,
    "batch_size": 8,
    "epochs": 2,
    "ops": ("none", "max_pool_3x3", "skip_connect"),
    "alpha_lr": 0.05,
}


def settings_of(*sets, **flags):
    from ssfnas_cli.settings import SearchSettings, load_settings

    return load_settings(
        SearchSettings, sets=[*sets, "statistics_batches=2"], flags={**TINY, **flags}
    ).resolve_plugins()


def clients_case(data) -> dict[str, Tensor]:
    """Clients of unequal sizes in rounds of two steps, the second of which is not over. Each rank has some of them."""
    from rank_cases import numbers

    from ssfnas_cli.engine.device import Device
    from ssfnas_cli.engine.federated import FederatedSearch, averaged

    sets = ("partition=dirichlet", "partition_alpha=2.0", "local_steps=2", "clients_per_round=3", "track_test=true")
    search = FederatedSearch(settings_of(*sets, sync="round", clients=4), data, Device("cpu", 0))
    start = copied(averaged(search))
    results = {}
    for step, batch in zip(range(3), search.batches(0, 0), strict=False):
        results |= {f"{name} {step}": value for name, value in numbers(search.step(0, step, batch)).items()}
    results |= numbers(search.end_epoch(1))
    results |= {f"pseudo-gradient {name}": start[name] - tensor for name, tensor in averaged(search).items()}
    return search.tensors() | results


def rounds_and_steps_case(data) -> dict[str, Tensor]:
    """As many clients as there are ranks, in this process alone; and the ranks, each with the batches of one client."""
    from registry import collective
    from ssfnas_cli.data.batches import stratified_halves
    from ssfnas_cli.engine.device import Device
    from ssfnas_cli.engine.federated import FederatedSearch, averaged
    from ssfnas_cli.engine.search_phase import SearchPhase

    rank, size = collective.place()
    common = {"clip": 1e9, "alpha_optimizer": "sgd", "alpha_lr": 0.5, "loss": "ce"}
    halves = [half[: len(half) // 6 * 6] for half in stratified_halves(data.split("train").labels, data.class_names, 0)]
    with collective.alone():
        settings = settings_of(sync="round", clients=size, **common)
        federated = FederatedSearch(settings, data, Device("cpu", 0), tuple(halves))
    collective.use_global_statistics(False)
    parallel = SearchPhase(settings_of("batch_stats=local", **common), data, Device("cpu", 0))
    start = copied(averaged(parallel))
    with collective.alone():
        batches = list(federated.batches(0, 0))[:3]
    for step, several in enumerate(batches):
        with collective.alone():
            federated.step(0, step, several)
        progress, mine = step / federated.num_steps(0) / federated.epochs, as_share(several[rank], rank, size)
        parallel.architecture_step(mine, 0, progress)
        parallel.weight_step(mine, progress)
    collective.use_global_statistics(True)
    after = averaged(parallel)
    results = {f"rounds: {name}": tensor for name, tensor in averaged(federated).items()}
    results |= {f"steps: {name}": tensor for name, tensor in after.items()}
    return results | {f"pseudo-gradient {name}": start[name] - tensor for name, tensor in after.items()}


def as_share(batch, rank: int, size: int):
    """A client's batches as a rank's shares of global batches to which every client gives equally many images."""
    from registry.collective import Share

    if size == 1:
        return batch

    def shared(part):
        num = len(part.labels)
        return part._replace(share=Share(rank * num, (rank + 1) * num, size * num))

    return batch._replace(weights=shared(batch.weights), alphas=shared(batch.alphas))


def copied(tensors) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
