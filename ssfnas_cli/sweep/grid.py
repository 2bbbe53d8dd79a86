"""From the file of a sweep to its cells: data sets, searches, derivations, retrainings, corrections, evaluations.

The cells of a seed come before those of the next one, and what follows a search comes before the next search, so that
whole results are there early.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from registry import PluginError
from registry.core import did_you_mean
from ssfnas_cli.artifacts.named import named_genotype
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.settings import MakeDatasetSettings, RetrainSettings, SearchSettings, Settings, identity_hash
from ssfnas_cli.settings.base import as_section, flatten
from ssfnas_cli.sweep.axes import Variant, check_name, expand
from ssfnas_cli.sweep.cells import Cell, once
from ssfnas_cli.sweep.plan_file import PlanFile
from ssfnas_cli.sweep.stages import check_settings, flags_of, flat_settings, is_plain, last_epoch, presets_of

SEED = "{seed}"  # in the name of a network: the seed of the retraining


def build_cells(plan: PlanFile) -> list[Cell]:
    """Every cell of a sweep, once, each behind those that it needs; the settings of all of them are checked.

    Raises:
        UsageError: something in the file is wrong. The message names the table and the key.
        InputError: a data set or a genotype that the file names is not there.
    """
    try:
        return once(_Grid(plan).cells())
    except UsageError as error:
        if str(error).startswith(f"{plan.path}: "):
            raise
        raise UsageError(f"{plan.path}: {error}") from None


@dataclass(frozen=True)
class _Data:
    """A data set: its part of names, its folder (None: the embedded one), and the cell that makes it."""

    name: str
    path: Path | None
    cell: Cell | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        return () if self.path is None else ("--data", str(self.path))

    @property
    def needs(self) -> tuple[str, ...]:
        return () if self.cell is None else (self.cell.name,)


@dataclass(frozen=True)
class _Network:
    """What a retraining trains: its part of names, the argument of `retrain`, and what is needed and set for it.

    A genotype that the file names (`given`) may have been found on any data set. `arm` are the names of its search or
    of the network, and of the derivation, without a seed.
    """

    name: str
    arm: tuple[str, str]
    argument: str
    needs: tuple[str, ...] = ()
    genotype: Path | None = None
    plain: str | None = None
    layer: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    given: bool = False


class _Grid:
    def __init__(self, plan: PlanFile):
        self.plan = plan
        self.checked: dict[str, Settings] = {}
        self.variants = {stage: expand(plan, stage) for stage in plan.tables if stage != "networks"}
        self.data = [self._data(variant) for variant in self.variants["data"]] if "data" in plan.tables else []
        self.retrain_seeded = any("seed" in layer for one in self.variants.get("retrain", []) for layer in one.layers)
        self.evaluation = self._evaluation()
        self._check_corrections()

    def cells(self) -> Iterator[Cell]:
        """All cells, those that are shared as often as they are needed."""
        for seed in self.plan.seeds:
            for data in self.data or [_Data("", None)]:
                if data.cell is not None:
                    yield data.cell
                for variant in self.variants.get("search", []):
                    yield from self._of_search(variant, data, seed)
                for name, table in self.plan.tables.get("networks", {}).items():
                    yield from self._of_network(self._named(name, table, seed), data, seed)

    def _data(self, variant: Variant) -> _Data:
        settings, loaded = self._check("data", variant.layers, known=("path",))
        if "path" in settings:
            path = Path(str(settings["path"]))
            if len(settings) > 1:
                other = next(key for key in settings if key != "path")
                raise self.plan.refuse("[data]", f"path is a data set that is there, and '{other}' is of one to make")
            if not (path / "manifest.json").is_file():
                raise InputError(
                    f"{self.plan.path}: [data] path: {path} is no data set: make it, or say how it is made"
                )
            return _Data(variant.name, path)
        default = flatten(type(loaded)().model_dump(mode="json"))
        chosen = flatten(loaded.model_dump(mode="json"))
        changed = {key: value for key, value in chosen.items() if default.get(key, ...) != value}
        # The hash makes other settings another folder: a manifest does not tell all that a data set was made with.
        name = _join("data", variant.name, identity_hash(changed))
        output = self.plan.output / name
        argv = ("make-dataset", *flags_of("data", settings), "-o", str(output))
        recipe = loaded if isinstance(loaded, MakeDatasetSettings) else None
        return _Data(variant.name, output, Cell("data", name, argv, output, arm=(variant.name,), recipe=recipe))

    def _of_search(self, variant: Variant, data: _Data, seed: int) -> Iterator[Cell]:
        """A search, its derivations, and all that follows them."""
        settings, loaded = self._check("search", variant.layers, has_data=data.path is not None)
        suffix, seed_flags = _seed(settings, variant, seed)
        name = _join("search", variant.name, data.name, suffix)
        output = self.plan.output / name
        flags = flags_of("search", settings, presets_of(variant.layers))
        argv = ("search", *data.flags, *flags, *seed_flags, "-o", str(output))
        search = Cell("search", name, argv, output, data.needs, data.path, arm=(variant.name, data.name))
        yield search
        own = suffix if "seed" in settings or self.retrain_seeded else ""  # its retrainings have other seeds
        if "derive" not in self.variants:
            genotype = output / "genotype.json"
            label = _join(variant.name, own) or "searched"
            network = _Network(label, (variant.name or "searched", ""), str(genotype), (name,), genotype)
            yield from self._of_network(network, data, seed)
        for rule in self.variants.get("derive", []):
            derivation = self._derivation(search, rule, loaded)
            label = _join(variant.name, own, rule.name) or "searched"
            arm = (variant.name or "searched", rule.name)
            network = _Network(label, arm, str(derivation.output), (derivation.name,), derivation.output)
            yield derivation
            yield from self._of_network(network, data, seed)

    def _derivation(self, search: Cell, variant: Variant, searched: Settings) -> Cell:
        settings, _ = self._check("derive", variant.layers)
        if isinstance(searched, SearchSettings) and settings.get("epoch", 0) > (last := last_epoch(searched)):
            why = f"{settings['epoch']} is behind the last epoch of {search.name}, which is {last}"
            raise self.plan.refuse("[derive] epoch", f"{why}: lower it, or raise [search] epochs")
        name = _join("genotype", search.name.removeprefix("search-"), variant.name)
        output = self.plan.output / f"{name}.json"
        argv = ("derive", str(search.output), *flags_of("derive", settings), "-o", str(output))
        return Cell("derive", name, argv, output, (search.name,), source=search.output)

    def _named(self, name: str, table: Any, seed: int) -> _Network:
        """A network of the table [networks]."""
        place = f"[networks.{name}]"
        check_name(self.plan, "[networks]", name)
        if not isinstance(table, Mapping):
            raise self.plan.refuse(place, "should be a table with the settings of its retraining; it may be empty")
        section = as_section(table.get("network", name))
        if not isinstance(section, Mapping) or not isinstance(section.get("name", name), str):
            raise self.plan.refuse(place, "network: should be a name, or the file of a genotype")
        argument, arm = str(section.get("name", name)), (name, "")
        if SEED in argument:
            argument = argument.replace(SEED, str(seed))
            name = _join(name, f"seed{seed}") if self.retrain_seeded else name
        options = flatten({"network": {key: value for key, value in section.items() if key != "name"}})
        layer = {key: value for key, value in table.items() if key != "network"}
        if Path(argument).is_file():
            return _Network(name, arm, argument, (), Path(argument), None, layer, options, given=True)
        if is_plain(argument):
            return _Network(name, arm, argument, (), None, argument, layer, options)
        try:
            if named_genotype(argument) is not None:
                return _Network(name, arm, argument, (), None, None, layer, options)
        except UsageError as error:
            raise self.plan.refuse(place, error) from None
        raise self.plan.refuse(place, f"no file, network or genotype is called '{argument}': say network = NAME")

    def _of_network(self, network: _Network, data: _Data, seed: int) -> Iterator[Cell]:
        """The retrainings of a network, their evaluations and corrections."""
        for variant in self.variants.get("retrain", []):
            base = variant.base
            if (
                network.plain is not None
            ):  # what only networks of cells have is not for it; an arm that says it is wrong
                base = {key: value for key, value in base.items() if key not in RetrainSettings.OF_CELLS}
            layers = (base, network.layer, *variant.chosen)
            settings, _ = self._check("retrain", layers, network, data.path is not None)
            suffix, seed_flags = _seed(settings, variant, seed)
            parts = (network.name, data.name, variant.name)
            name = _join(*parts, suffix)
            output = self.plan.output / name
            flags = flags_of("retrain", settings, presets_of(layers))
            data_flags = (*data.flags, "--other-data") if data.flags and network.given else data.flags
            argv = ("retrain", network.argument, *data_flags, *flags, *seed_flags, "-o", str(output))
            needs, arm = (*data.needs, *network.needs), (*network.arm, data.name, variant.name)
            run = Cell("retrain", name, argv, output, needs, data.path, network.genotype, arm=arm)
            yield from self._with_evaluation(run)
            for correction in self.variants.get("adjust", []):
                if variant.arm in _of(correction, variant.arm):
                    yield from self._with_evaluation(self._correction(run, correction, parts, suffix))

    def _correction(self, run: Cell, variant: Variant, parts: Sequence[str], suffix: str) -> Cell:
        layers = [{key: value for key, value in layer.items() if key != "of"} for layer in variant.layers]
        settings, loaded = self._check("adjust", layers)
        method = f"+{variant.name or loaded.method}"  # type: ignore[attr-defined]
        name = _join(_join(*parts) + method, suffix)
        output = self.plan.output / name
        argv = ("adjust", str(run.output), *flags_of("adjust", settings), "-o", str(output))
        arm = (*run.arm[:-1], run.arm[-1] + method)
        return Cell("adjust", name, argv, output, (run.name,), run.data, run.output, arm=arm)

    def _with_evaluation(self, run: Cell) -> Iterator[Cell]:
        yield run
        argv = ("evaluate", str(run.output), *flags_of("evaluate", self.evaluation))
        splits = tuple(self.evaluation.get("split", ()))
        output = run.output / "evaluation.json"
        yield Cell("evaluate", f"evaluate-{run.name}", argv, output, (run.name,), run.data, run.output, splits)

    def _evaluation(self) -> dict[str, Any]:
        variants = self.variants.get("evaluate", [Variant("", "", {})])
        settings, _ = self._check("evaluate", variants[0].layers)  # first: an unknown setting is none of a grid either
        if len(variants) > 1 or variants[0].chosen or variants[0].name:
            raise self.plan.refuse("[evaluate]", "is no grid: give each setting one value")
        if isinstance(split := settings.get("split", []), str):
            settings["split"] = [split]
        else:
            settings |= {"split": split} if split else {}
        return settings

    def _check_corrections(self) -> None:
        """Every correction must be of arms that there are."""
        arms = [variant.arm for variant in self.variants.get("retrain", [])]
        for variant in self.variants.get("adjust", []):
            for name in _of(variant, *arms[:1]):
                if not isinstance(name, str) or name not in arms:
                    known = [arm for arm in dict.fromkeys(arms) if arm]
                    hint = did_you_mean(str(name), known)
                    raise self.plan.refuse("[adjust] of", f"'{name}' is no arm of [retrain.arms].{hint}")

    def _check(
        self,
        stage: str,
        layers: Sequence[dict[str, Any]],
        network: _Network | None = None,
        has_data: bool = True,
        known: Sequence[str] = (),
    ) -> tuple[dict[str, Any], Settings]:
        """The settings of a cell, flat, and as its command will read them; `known` are keys of the sweep's own."""
        plain = None if network is None else network.plain
        try:
            settings = flat_settings(stage, layers)
            settings |= {} if network is None else network.options
            read = {key: value for key, value in settings.items() if key not in known}
            asked = repr((stage, read, presets_of(layers), plain, has_data))
            if asked not in self.checked:  # cells that differ in their seeds are checked once
                self.checked[asked] = check_settings(stage, read, presets_of(layers), plain, has_data)
            return settings, self.checked[asked]
        except (UsageError, PluginError) as error:
            place = f"[{stage}]" if network is None or not network.layer else f"[{stage}] of [networks.{network.name}]"
            raise self.plan.refuse(place, error) from None


def _of(variant: Variant, *default: str) -> Sequence[str]:
    """The arms of [retrain] that a correction is of; without `of` those that are given."""
    named: Any = default
    for layer in variant.layers:
        named = layer.get("of", named)
    return list(named) if isinstance(named, list | tuple) else [named]


def _seed(settings: dict[str, Any], variant: Variant, seed: int) -> tuple[str, tuple[str, ...]]:
    """The end of a run's name, and the flag; both are empty of what its own settings and its name say already."""
    if "seed" not in settings:
        return f"seed{seed}", ("--seed", str(seed))
    named = any("seed" in layer for layer in variant.chosen)
    return "" if named else f"seed{settings['seed']}", ()


def _join(*parts: str) -> str:
    return "-".join(part for part in parts if part)
