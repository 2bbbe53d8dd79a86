"""Groups of runs that differ only in their seeds, and short labels made of the settings in which the groups differ.

A label leaves out what has its default. The runs of a sweep are grouped and labelled by their arms instead.

Retrainings of genotypes from searches are grouped by the settings of both stages, so that three searches of three seeds
and their retrainings are one group. That needs the search's folder, where the genotype's provenance says it was or
beside the retraining; without it each genotype is a group of its own.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ssfnas_cli.artifacts.run import ADJUSTMENT, BESIDE_SETTINGS, DERIVATION, INIT
from ssfnas_cli.results.facts import SEARCH, RunFacts, changed_settings, read_facts, search_of

BARE = ("loss", "network", "strategy", "relax", "genotype")  # sections whose plugin's name speaks for itself
NOT_SETTINGS = (  # that have no default
    *("data", "threshold", "ranks", "genotype"),
    *(f"{SEARCH}rule", f"{SEARCH}epoch", f"{SEARCH}max_skips"),
    *(f"{SEARCH}max_params", f"{SEARCH}max_macs", f"{SEARCH}candidate"),
)
ORIGINS = ("genotype", f"{SEARCH}relax.name", f"{SEARCH}strategy.name")  # what networks that are searched come from
MEANT = ("flip", "stem")  # whose `auto` was replaced by what it meant
# The rules that go without saying, by relaxation; None: a strategy without alphas
USUAL_RULE = {None: "darts", "softmax": "darts", "sigmoid": "fairdarts", "gumbel": "darts", "dirichlet": "darts"}


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seeds.

    Attributes:
        label: made of what distinguishes this group from the others.
        differing: the settings in which the groups differ, with this group's values.
        runs: one for each seed.
        repeats: runs with the settings and seeds of one of `runs`; they do not count.
    """

    label: str
    differing: dict[str, Any]
    runs: list[RunFacts]
    repeats: list[RunFacts]

    @property
    def arm(self) -> tuple[str, ...]:
        """The arm of a sweep that its runs are; empty if no sweep named them."""
        return self.runs[0].arm


def group_runs(runs: Sequence[RunFacts]) -> list[Group]:
    """Group runs, in the order in which the groups are met first."""
    members: dict[Hashable, list[RunFacts]] = defaultdict(list)
    for run in _with_equal_options(runs):
        members[_key(run)].append(run)
    split = [part for group in members.values() for part in _split_repeats(group)]
    firsts = [group[0] for group in split]
    differing = _differing(firsts)
    labels = _labels(firsts, differing) if len(firsts) > 1 else _labels_of_arms(firsts) or list(map(_own_label, firsts))
    return [
        Group(label, {key: _value(group[0], key) for key in differing}, *_unique_seeds(group))
        for label, group in zip(labels, split, strict=True)
    ]


def _key(run: RunFacts) -> str:
    return json.dumps([run.run.kind, run.data[1], run.settings, run.arm], sort_keys=True)


def _with_equal_options(runs: Sequence[RunFacts]) -> list[RunFacts]:
    """The runs, read with today's options if the same plugin has not the same options in all of them."""
    options: dict[tuple[str, Any], set[frozenset[str]]] = defaultdict(set)
    for run in runs:
        for section in _sections(run.settings):
            names = frozenset(key for key in run.settings if _section_of(key, run.settings) == section)
            options[section, run.settings[f"{section}.name"]].add(names)
    if all(len(sets) == 1 for sets in options.values()):
        return list(runs)
    return [replace(read_facts(run.run, resolve=True), arm=run.arm) for run in runs]


def _sections(settings: Mapping[str, Any]) -> list[str]:
    return [key.removesuffix(".name") for key in settings if key.endswith(".name")]


def _section_of(key: str, settings: Mapping[str, Any]) -> str | None:
    """The plugin section that an option belongs to; None for other settings, and for a plugin's name itself."""
    section = key.rpartition(".")[0]
    return section if not key.endswith(".name") and f"{section}.name" in settings else None


def _split_repeats(group: list[RunFacts]) -> list[list[RunFacts]]:
    """A group, or its parts of equal thresholds and numbers of ranks if seeds occur in it more than once.

    `auto` chooses another threshold for every search, so thresholds alone do not make another arm. But two thresholds
    for one search do. Nor do ranks, which compute the same, unless one search was made by several numbers of them.
    """
    if len({run.seeds for run in group}) == len(group):
        return [group]
    parts: dict[Hashable, list[RunFacts]] = defaultdict(list)
    for run in group:
        parts[run.threshold, run.ranks].append(run)
    return list(parts.values())


def _unique_seeds(group: list[RunFacts]) -> tuple[list[RunFacts], list[RunFacts]]:
    """The first run of each seed, and the others."""
    first: dict[tuple[int, ...], RunFacts] = {}
    for run in group:
        first.setdefault(run.seeds, run)
    kept = sorted(first.values(), key=lambda run: run.seeds)
    return kept, [run for run in group if first[run.seeds] is not run]


# Labels


def _value(run: RunFacts, key: str) -> Any:
    if key == "data":
        return f"{run.data[0]} ({run.data[1][:8]})"
    return getattr(run, key) if key in ("threshold", "ranks") else run.settings.get(key)


def _num_values(key: str, firsts: Sequence[RunFacts]) -> int:
    return len({json.dumps(_value(run, key)) for run in firsts if _has(run, key)})


def _is_option_of(key: str, differing: Sequence[str], firsts: Sequence[RunFacts]) -> bool:
    """Whether a setting is an option of a plugin in which the groups differ."""
    sections = {_section_of(key, run.settings) for run in firsts if key in run.settings} - {None}
    return any(f"{section}.name" in differing for section in sections)


def _has(run: RunFacts, key: str) -> bool:
    """Whether a run has a setting, or lacking it says something: no correction, no start, or no genotype of its own."""
    return key in ("data", "threshold", "ranks", "genotype") or _is_beside_settings(key) or key in run.settings


def _is_beside_settings(key: str) -> bool:
    """Whether a key is of a correction, a derivation or a start, which most runs do not have."""
    return key.removeprefix(SEARCH).startswith(BESIDE_SETTINGS)


def _differing(firsts: Sequence[RunFacts]) -> list[str]:
    """The settings in which groups differ, the data set, threshold and ranks among them, the telling ones first.

    A setting that only some groups have, such as one of the search, counts only if it differs among those. An option of
    a plugin counts only beside the same plugin with another value, or where it is not the default.
    """
    keys = list(dict.fromkeys(key for run in firsts for key in run.settings))
    differing = [key for key in ["data", *keys, "threshold", "ranks"] if _num_values(key, firsts) > 1]
    differing += [key for key in keys if key not in differing and _is_option_of(key, differing, firsts)]
    if len({_key(run) for run in firsts}) == len(firsts):
        differing = [key for key in differing if key not in ("threshold", "ranks")]
    kept = [key for key in differing if not _is_noise(key, firsts)]
    return sorted(kept, key=lambda key: (_rank(key), kept.index(key)))


def _rank(key: str) -> int:
    """Networks and losses come first in a label, options behind their plugin."""
    section = key.removeprefix(SEARCH).partition(".")[0]
    return BARE.index(section) if section in BARE else len(BARE)


def _is_noise(key: str, firsts: Sequence[RunFacts]) -> bool:
    """Whether an option differs only because its plugin does, and has its default wherever there is that plugin."""
    having = [run for run in firsts if key in run.settings]
    if key == f"{SEARCH}rule":
        return all(USUAL_RULE.get(run.settings.get(f"{SEARCH}relax.name")) == run.settings[key] for run in having)
    section = next((one for run in having if (one := _section_of(key, run.settings)) is not None), None)
    if section is None:
        return False
    by_plugin: dict[Any, set[str]] = defaultdict(set)
    for run in having:
        by_plugin[run.settings[f"{section}.name"]].add(json.dumps(run.settings[key]))
    if any(len(values) > 1 for values in by_plugin.values()):
        return False
    return not any(key in _changed(run) for run in having)


def _changed(run: RunFacts) -> frozenset[str]:
    """The settings of a run that differ from the defaults."""
    if run.changed is not None:
        return run.changed
    search = search_of(run)
    theirs = frozenset() if search is None else changed_settings(search)
    return changed_settings(run.run) | {SEARCH + key for key in theirs}


def _labels(firsts: Sequence[RunFacts], differing: Sequence[str]) -> list[str]:
    of_search = [key.removeprefix(SEARCH) for key in differing if key.startswith(SEARCH)]
    both = {short for short in of_search if short in differing or _is_of_retraining_too(short, firsts)}
    labels = _labels_of_arms(firsts) or [_label(run, differing, both) for run in firsts]
    repeated: Counter[str] = Counter()
    for number, label in enumerate(labels):
        repeated[label] += 1
        if repeated[label] > 1:
            labels[number] = f"{label} ({repeated[label]})"
    return labels


def _is_of_retraining_too(key: str, firsts: Sequence[RunFacts]) -> bool:
    """Whether a setting of the search could be taken for one of the retraining, such as an option of its loss.

    The name of a loss could, too. But a label begins with what a network was searched by, so it speaks for itself.
    """
    owner = f"{key.rpartition('.')[0]}.name"
    return key != owner and any(key in run.settings or owner in run.settings for run in firsts)


def _labels_of_arms(firsts: Sequence[RunFacts]) -> list[str]:
    """Labels made of the names of arms, without those that all groups share; empty if not all runs have an arm."""
    if not all(run.arm for run in firsts) or len({len(run.arm) for run in firsts}) > 1:
        return []
    shared = [len(set(words)) == 1 for words in zip(*(run.arm for run in firsts), strict=True)]
    told = [[word for word, same in zip(run.arm, shared, strict=True) if word and not same] for run in firsts]
    return [", ".join(words) or ", ".join(filter(None, run.arm)) for words, run in zip(told, firsts, strict=True)]


def _label(run: RunFacts, differing: Sequence[str], both: set[str]) -> str:
    """The words of a group; `both` are settings of the search that need saying that they are the search's."""
    words = []
    for key in differing:
        value = _value(run, key)
        short = key.removeprefix(SEARCH)
        if value is None or (short.removesuffix(".name") not in BARE and _is_default(run, key)):
            continue
        name = (key if short in both else short).removesuffix(".name")
        name = name.replace(f"{ADJUSTMENT}method", "adjust").replace(ADJUSTMENT, "adjust.")
        name = name.replace(f"{DERIVATION}rule", "rule").replace(f"{INIT}kind", "init")
        is_bare = short.removesuffix(".name") in BARE and short not in both
        if value == "none" and is_bare:
            if short == "network.name" and not any(one in differing for one in ORIGINS):
                words += _origin(run, differing)
            continue
        words.append(_text(value) if is_bare or key == "data" else f"{name}={_text(value)}")
    return ", ".join(words) or _own_label(run)


def _is_default(run: RunFacts, key: str) -> bool:
    """Whether a setting has its default, so that a label need not say it."""
    if key in NOT_SETTINGS or _is_beside_settings(key) or key.removeprefix(SEARCH) in MEANT:
        return False
    return key not in _changed(run)


def _own_label(run: RunFacts) -> str:
    """The label of a group that has no other beside it.

    A network that was searched is called by its search, and by the loss that trained it only if that is another one.
    """
    network, loss = (run.settings.get(key, "none") for key in ("network.name", "loss.name"))
    searched_by = run.settings.get(f"{SEARCH}loss.name", "none")
    words = [] if network == "none" else [_text(network)]
    words += _origin(run)
    if loss not in ("none", searched_by):
        words.append(_text(loss) if searched_by == "none" else f"retrained by {_text(loss)}")
    return ", ".join(words)


def _origin(run: RunFacts, differing: Sequence[str] = ()) -> list[str]:
    """What a network that is not plain comes from: its genotype, or its search; that of a search is its own.

    Args:
        run: the network's.
        differing: settings that the label says anyway.
    """
    telling = ["genotype"]
    for stage in (SEARCH, ""):  # a strategy without alphas tells itself, another one by its relaxation
        telling.append(f"{stage}relax.name" if f"{stage}relax.name" in run.settings else f"{stage}strategy.name")
    telling.append(f"{SEARCH}loss.name")
    values = [run.settings.get(key, "none") for key in telling if key not in differing]
    return [_text(value) for value in values if value != "none"]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return "+".join(map(_text, value))
    return value if isinstance(value, str) else json.dumps(value)
