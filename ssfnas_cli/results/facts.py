"""What a finished run says of itself: settings, seeds, data, cost and figures. It is read without torch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssfnas_cli.artifacts.files import sha256_bytes
from ssfnas_cli.artifacts.run import ADJUSTMENT, DERIVATION, INIT, RunFolder
from ssfnas_cli.errors import InputError
from ssfnas_cli.json_text import layout_json
from ssfnas_cli.settings import RetrainSettings, SearchSettings, Training

MODELS: dict[str, type[Training]] = {"search": SearchSettings, "retrain": RetrainSettings}
SEARCH = "search."  # how the settings of the search begin that a retraining's genotype comes from
# Parts of an identity that do not belong to an arm of a comparison: what is held apart, what changes no result, and
# the weights that a run began with, which are others for each seed
BEGAN_WITH = (f"{ADJUSTMENT}source", f"{DERIVATION}source", f"{INIT}sha256")
NO_ARM = ("seed", "track_test", "track_every", "data_sha256", "genotype", *BEGAN_WITH)


@dataclass(frozen=True)
class RunFacts:
    """A run as a comparison sees it.

    Attributes:
        run: the folder.
        seeds: the seed; for a retrained genotype whose search is known, the search's seed comes before it, and for a
            random genotype that which it was drawn from.
        settings: the settings that change results, flat, without the seed; those of the genotype's search, with the
            rule and the epoch of the derivation, begin with `search.`.
        changed: those of `settings` that differ from the defaults; None if the run does not record them.
        threshold: of the derivation, which `auto` chooses anew for each search; None if there was none.
        metrics: of every epoch.
        evaluation: what `evaluate` measured; None for a search.
        cost: `num_params`, `num_macs`, `steps`, `seconds`, `search_seconds`; None where the run does not record it.
        lineage: the run; if it is a correction, then the run that it corrects, and so on, as far as they are found.
        arm: the names of a sweep for what was combined in it (`ssfnas_cli/sweep/cells.py`); empty: none was named.
    """

    run: RunFolder
    seeds: tuple[int, ...]
    settings: dict[str, Any]
    changed: frozenset[str] | None
    threshold: float | None
    metrics: list[dict[str, Any]]
    evaluation: dict[str, Any] | None
    cost: dict[str, float | None] = field(default_factory=dict)
    lineage: Sequence[RunFolder] = ()
    arm: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.run.path

    def over_epochs(self, name: str) -> dict[int, float]:
        """A figure of the metrics by epoch, for the epochs that have it."""
        return {line["epoch"]: line[name] for line in self.metrics if name in line}

    @property
    def ranks(self) -> int:
        """How many ranks began the run; 1 if it was one process."""
        return self.run.config["environment"].get("ranks", 1)

    @property
    def data(self) -> tuple[str, str]:
        """The name of the data set's folder, and its sha256."""
        recorded = self.run.config["data"]
        return Path(recorded["path"]).name, recorded["sha256"]

    @property
    def trainings(self) -> list[RunFolder]:
        """The runs in which weights of the network were trained, the first one first.

        A correction is one of them only if it trained a classifier; without its base it may be none.
        """
        trained = [run for run in self.lineage if not _is_correction(run) or "device" in run.config["environment"]]
        return trained[::-1]

    @property
    def views(self) -> int | None:
        """How many views of each training image the network of a retraining learned from; None for a search.

        A self-supervised loss takes two, in a pretraining or beside the supervised loss.
        """
        if self.run.kind == "search":
            return None
        settings = self.settings
        pretrained = 2 * settings["pretrain_epochs"] if settings.get("pretrain.name", "none") != "none" else 0
        return pretrained + settings["epochs"] * (1 + 2 * (settings.get("ssl.loss.name", "none") != "none"))


def read_facts(run: RunFolder, resolve: bool = False) -> RunFacts:
    """Read a finished run.

    Args:
        run: the folder.
        resolve: complete the options of plugins with today's defaults, which imports torch; for a run of an earlier
            ssfnas whose plugins had fewer options.

    Raises:
        InputError: a file of the run is damaged.
    """
    settings = own_settings(run, resolve)
    seeds: tuple[int, ...] = (int(run.config["settings"]["seed"]),)
    changed, threshold, search = _changed(run), None, None
    if isinstance(genotype := run.config.get("genotype"), dict):
        origin = genotype.get("provenance") or {}
        threshold = origin.get("threshold")
        search = _find_beside(run, origin.get("run"), "search")
        if origin.get("rule") == "random" and isinstance(origin.get("seed"), int):  # one arm, drawn anew for each seed
            settings["genotype"] = "random"
            seeds = (origin["seed"], *seeds)
        elif search is None:
            settings["genotype"] = _genotype_name(genotype)
        else:
            theirs = own_settings(search, resolve)
            told = {name: origin.get(name) for name in ("rule", "epoch", "max_skips")} | _limits(origin)
            if f"{DERIVATION}rule" in theirs:  # it says that rule itself, with its settings
                del told["rule"]
            settings |= {SEARCH + key: value for key, value in (theirs | told).items()}
            seeds = (int(search.config["settings"]["seed"]), *seeds)
            also = _changed(search)
            changed = None if None in (changed, also) else changed | {SEARCH + key for key in also}  # type: ignore
    evaluation = run.evaluation() if run.kind == "retrain" else None
    metrics = run.metrics()
    lineage = _lineage(run)
    cost = _cost(lineage, [metrics, *(base.metrics() for base in lineage[1:])], search)
    return RunFacts(run, seeds, settings, changed, threshold, metrics, evaluation, cost, lineage)


def _limits(origin: Mapping[str, Any]) -> dict[str, Any]:
    """What a genotype had to fit into, or which of the candidates that were judged it is."""
    limits = origin.get("limits")
    if isinstance(limits, Mapping):  # they choose another candidate for each seed
        return {key: value for key, value in limits.items() if key in ("max_params", "max_macs")}
    return {} if origin.get("candidate") is None else {"candidate": origin["candidate"]}


def own_settings(run: RunFolder, resolve: bool = False) -> dict[str, Any]:
    """The settings of a run that change its results, flat, without its seed.

    Settings that ssfnas gained later have their defaults, and `auto` is what it meant for this run.
    """
    model, recorded = MODELS[run.kind], dict(run.config["identity"])
    flat = recorded
    with contextlib.suppress(ValueError):  # obsolete settings or a plugin that is missing: what was recorded must do
        settings = run.settings(model)
        known = (settings.resolve_plugins() if resolve else settings).identity()
        left_out = known.keys() | settings.unused()
        flat = known | {key: value for key, value in recorded.items() if key not in left_out}
    meant = {name: told["value"] for name, told in run.config.get("resolved", {}).items() if name in flat}
    return {key: value for key, value in (flat | meant).items() if key not in NO_ARM}


def changed_settings(run: RunFolder) -> frozenset[str]:
    """The settings that differ from today's defaults, of a run that does not record them. Imports torch."""
    try:
        return frozenset(run.settings(MODELS[run.kind]).changed_identity())
    except ValueError:
        return frozenset(run.config["identity"])


def _changed(run: RunFolder) -> frozenset[str] | None:
    recorded = run.config.get("changed")
    return frozenset(recorded) if isinstance(recorded, dict) else None


def search_of(facts: RunFacts) -> RunFolder | None:
    """The search that the genotype of a retraining comes from, if it is known and still there."""
    genotype = facts.run.config.get("genotype")
    if not isinstance(genotype, dict):
        return None
    return _find_beside(facts.run, (genotype.get("provenance") or {}).get("run"), "search")


def is_lost(facts: RunFacts) -> bool:
    """Whether a retraining's genotype comes from a search that is not there any more."""
    genotype = facts.run.config.get("genotype")
    origin = (genotype.get("provenance") or {}) if isinstance(genotype, dict) else {}
    return bool(origin.get("run")) and search_of(facts) is None


def searched_by(derivation: RunFolder) -> RunFolder | None:
    """The search that a derivation by perturbation goes on from, if it is still there."""
    return _find_beside(derivation, derivation.config["derivation"].get("source"), "search")


def _is_correction(run: RunFolder) -> bool:
    """Whether a run is the correction of another one."""
    return isinstance(run.config.get("adjustment"), dict)


def _lineage(run: RunFolder) -> list[RunFolder]:
    """A run and, if it is a correction, the runs that its network comes from; see `RunFacts`."""
    found = [run]
    while _is_correction(found[-1]):
        base = _find_beside(found[-1], found[-1].config["adjustment"].get("source"), "retrain")
        if base is None or any(_same_folder(base, one) for one in found):  # the latter if its name is another's now
            break
        found.append(base)
    return found


def _same_folder(one: RunFolder, other: RunFolder) -> bool:
    return one.path.resolve() == other.path.resolve()


def _find_beside(run: RunFolder, recorded: Any, kind: str) -> RunFolder | None:
    """The run that another one records, where it was, or beside that one if both were moved."""
    if not isinstance(recorded, str):
        return None
    for path in (Path(recorded), run.path.parent / Path(recorded).name):
        with contextlib.suppress(InputError, OSError):
            return RunFolder.open(path, kind)
    return None


def _genotype_name(genotype: Mapping[str, Any]) -> str:
    """A name for a genotype of unknown origin: its own, and the beginning of a hash of its cells."""
    cells = {key: genotype.get(key) for key in ("normal", "reduce", "op_options")}
    digest = sha256_bytes(layout_json(cells).encode())[:6]
    return f"{genotype['name']}" if genotype.get("name") else f"genotype-{digest}"


def _cost(
    lineage: Sequence[RunFolder], metrics: Sequence[list[dict[str, Any]]], search: RunFolder | None
) -> dict[str, float | None]:
    """What the training took. A corrected run takes what the training of its network took, too."""
    results = [run.status().get("result") or {} for run in lineage]
    steps: list[float | None] = [line.get("steps") for lines in metrics for line in lines]
    seconds = [lines[-1].get("elapsed_seconds", 0.0) if lines else 0.0 for lines in metrics]
    known = not _is_correction(lineage[-1])
    return {
        "num_params": results[0].get("num_params"),
        "num_macs": next((result["num_macs"] for result in results if result.get("num_macs")), None),
        "steps": sum(steps) if known and steps and None not in steps else None,  # type: ignore[arg-type]
        "seconds": sum(seconds) if known else None,
        "search_seconds": _seconds(search),
    }


def _seconds(search: RunFolder | None) -> float | None:
    """What a search took; a derivation by perturbation with its search. None if that is not known."""
    if search is None:
        return None
    before = 0.0
    if isinstance(search.config.get("derivation"), dict):
        source = _seconds(searched_by(search))
        if source is None:
            return None
        before = source
    with contextlib.suppress(InputError):
        lines = search.metrics()
        return before + lines[-1]["elapsed_seconds"] if lines and "elapsed_seconds" in lines[-1] else None
    return None
