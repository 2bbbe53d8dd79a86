"""What a run was made with: its settings, its environment, and the commands that make it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssfnas_cli.artifacts.dataset import DataSet
from ssfnas_cli.artifacts.run import TRAINING_VERSION, RunFolder
from ssfnas_cli.console import format_duration
from ssfnas_cli.errors import InputError
from ssfnas_cli.plots.report.blocks import Block, Details, Part, Section, Steps, Table, Text, turned_if_wide
from ssfnas_cli.plots.report.data import open_data
from ssfnas_cli.plots.report.material import Material
from ssfnas_cli.results.facts import RunFacts, changed_settings, search_of, searched_by
from ssfnas_cli.results.grouping import Group
from ssfnas_cli.settings.base import flatten


def settings(material: Material) -> Section:
    """The settings in which the runs differ, and those of each."""
    blocks: list[Block] = []
    for groups, words in ((material.searches, "searches"), (material.networks, "networks")):
        if len(groups) > 1:
            blocks.append(_differences(groups, words))
    return Section("settings", "Settings", [*blocks, *(Part(run.path.name, _settings(run)) for run in material.runs)])


def _differences(groups: Sequence[Group], words: str) -> Table:
    names = list(dict.fromkeys(name for group in groups for name in group.differing))
    rows = [[group.label, *(_shown(group.differing.get(name)) for name in names)] for group in groups]
    table = Table(f"Settings in which the {words} differ", [words, *names], rows, numbers=False)
    return turned_if_wide(table)


def _settings(run: RunFacts) -> list[Block]:
    flat = flatten(run.run.config["settings"])
    meant = {
        name: f"{'' if flat.get(name) == told['value'] else 'auto: '}{_shown(told['value'])} ({told['why']})"
        for name, told in run.run.config.get("resolved", {}).items()
    }
    every = {name: meant.get(name, _shown(value)) for name, value in flat.items()}
    differing = changed_settings(run.run) if run.changed is None else run.changed
    rows = [[name, value] for name, value in every.items() if name in differing]
    blocks: list[Block] = [Text("All settings have their defaults.")]
    if rows:
        blocks = [Table("Settings that differ from the defaults", ["setting", "value"], rows, numbers=False)]
    for part, what in (("adjustment", "correction"), ("derivation", "derivation")):
        if isinstance(own := run.run.config.get(part), dict):
            of_it = [[name, _shown(value)] for name, value in flatten(own.get("settings") or {}).items()]
            blocks.append(Details(f"Settings of the {what}", [_all(of_it)]))
    return [*blocks, Details(f"All {len(every)} settings", [_all([[name, value] for name, value in every.items()])])]


def _all(rows: list[list[str]]) -> Table:
    return Table("Settings", ["setting", "value"], rows, numbers=False)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def environment(material: Material) -> Section:
    """What computed each run, how long and in how much memory."""
    facts = [_environment(run) for run in material.runs]
    names = list(dict.fromkeys(name for of_run in facts for name in of_run))
    rows = [
        [run.path.name, *(of_run.get(name, "-") for name in names)]
        for run, of_run in zip(material.runs, facts, strict=True)
    ]
    table = Table("What computed the runs", ["run", *names], rows, numbers=False)
    return Section("environment", "Environment", [turned_if_wide(table)])


def _environment(run: RunFacts) -> dict[str, str]:
    facts = {name: _shown(value) for name, value in run.run.config["environment"].items()}
    facts["training version"] = str(run.run.config.get(TRAINING_VERSION, 1))
    last: Mapping[str, Any] = run.metrics[-1] if run.metrics else {}
    if "elapsed_seconds" in last:
        facts["time"] = format_duration(last["elapsed_seconds"])
    if "peak_memory_bytes" in last:
        facts["peak memory"] = f"{last['peak_memory_bytes'] / 2**30:.2f} GiB"
    return facts


# Commands


def reproduction(material: Material) -> Section:
    """The commands that make the data sets and the runs again, each once."""
    steps: dict[str, str] = {}
    for run in material.runs:
        for command, what in _steps(run):
            steps.setdefault(command, what)
    said = Text(
        "These commands make the runs again: bit for bit on the same kind of processor with the same torch, threads "
        "and kernels. Paths are as they were given, relative to the folder of that time."
    )
    return Section("reproduce", "How to reproduce", [said, Steps([(what, line) for line, what in steps.items()])])


def _steps(run: RunFacts) -> list[tuple[str, str]]:
    """Commands and what they do, in their order."""
    steps = [_of_data(run)]
    if (search := search_of(run)) is not None:
        steps += _of_search(search)
    origin = (run.run.config.get("genotype") or {}).get("provenance") or {}
    if origin.get("run") and origin.get("rule") and not (search and "derivation" in search.config):
        words = ["ssfnas", "derive", origin["run"], "--rule", origin["rule"], "--epoch", str(origin.get("epoch"))]
        steps.append((shlex.join(words), "The genotype"))
    for source in run.lineage[1:2]:
        steps += _of_run(source, "The network before its correction")
    steps += _of_search(run.run) if run.run.kind == "search" else _of_run(run.run, "The network")
    if run.run.kind == "retrain":
        steps.append((shlex.join(["ssfnas", "evaluate", str(run.path)]), "Its figures"))
    return steps


def _of_search(run: RunFolder) -> list[tuple[str, str]]:
    """The command of a search, or those of a derivation by perturbation and of the search before it."""
    if "derivation" not in run.config:
        return _of_run(run, "The search")
    source = searched_by(run)
    return [*(_of_search(source) if source is not None else []), *_of_run(run, "The genotype")]


def _of_run(run: RunFolder, what: str) -> list[tuple[str, str]]:
    command = run.config.get("command")
    return [(command, f"{what}, {run.path}")] if isinstance(command, str) else []


def _of_data(run: RunFacts) -> tuple[str, str]:
    name, sha256 = run.data
    try:
        command = _make_dataset(open_data(run))
    except InputError:
        command = shlex.join(["ssfnas", "make-dataset", "-o", str(run.run.config["data"]["path"])])
        return command, f"The data set {name}, which is not there any more, with its source; its sha256 was {sha256}"
    return command, (
        f"The data set {name}, as far as it records how it was made; ORIGINALS is the folder or file of the source. "
        f"The sha256 that is printed should be {sha256}"
    )


def _make_dataset(data: DataSet) -> str:
    manifest = data.manifest
    words = ["ssfnas", "make-dataset", "--source", manifest.source]
    words += [] if manifest.source == "digits" else ["--root", "ORIGINALS"]
    words += ["--dist", manifest.dist, *([] if manifest.mu is None else ["--mu", f"{manifest.mu:g}"])]
    words += ["--max-per-class", str(manifest.n_max), "--image-size", str(manifest.image_size)]
    return shlex.join([*words, "--seed", str(manifest.seed), "-o", str(Path(data.path))])
