"""Flags that several commands share, and how a command's settings are put together."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from registry import REGISTRIES
from ssfnas_cli.console import log, write_text
from ssfnas_cli.settings import PRESETS, Settings, Training, load_settings, to_toml

Training_ = TypeVar("Training_", bound=Training)

RUN_PANEL = "Running"
SETTINGS_PANEL = "Settings"


def names_of(kind: str) -> Any:
    """Completion of plugin names; imports no torch."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in REGISTRIES[kind].names() if name.startswith(incomplete)]

    return complete


def by_preset(model: type[Settings], name: str, text: str) -> Any:
    """A flag that is a setting of `model`, whose default is each preset's."""
    default = model.model_fields[name].default
    values = {preset: changes.get(name, default) for preset, changes in PRESETS[model].items()}
    named = ", ".join(f"{value} in {preset}" for preset, value in values.items())
    return typer.Option(help=text, show_default=str(default) if len(set(values.values())) == 1 else named)


Preset = Annotated[
    str | None,
    typer.Option(
        help="A named set of settings: paper, or quick.",
        rich_help_panel=SETTINGS_PANEL,
        show_default="quick on the embedded digits, paper with --data",
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(help="Settings from a TOML file.", rich_help_panel=SETTINGS_PANEL, show_default=False),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One setting; repeatable.", rich_help_panel=SETTINGS_PANEL),
]
ShowSettings = Annotated[
    bool,
    typer.Option("--show-settings", help="Print all settings as TOML and stop.", rich_help_panel=SETTINGS_PANEL),
]
DeviceName = Annotated[
    str | None,
    typer.Option("--device", help="auto, cpu, cuda, …", rich_help_panel=RUN_PANEL, show_default="auto"),
]
Threads = Annotated[
    int | None,
    typer.Option(min=0, help="Processor threads; 0: torch's own choice.", rich_help_panel=RUN_PANEL, show_default="0"),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0, help="Loader processes; 0: the main process loads.", rich_help_panel=RUN_PANEL, show_default="0"
    ),
]
Precision = Annotated[str | None, typer.Option(help="fp32 or bf16.", rich_help_panel=RUN_PANEL, show_default="fp32")]
MaxTime = Annotated[
    str | None,
    typer.Option(
        metavar="H:MM:SS",
        help="Save and stop (exit 75) after this time.",
        rich_help_panel=RUN_PANEL,
        show_default=False,
    ),
]
Seed = Annotated[int | None, typer.Option(show_default="0")]
RunOutput = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Run folder; default: named after the settings, in runs/."),
]
OtherData = Annotated[
    bool, typer.Option("--other-data", help="Allow --data to name another data set than the one recorded.")
]
Force = Annotated[bool, typer.Option("--force", help="Start over; an old output is moved aside, not deleted.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on a terminal too.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]


def flags_of(model: type[Settings], arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of a command's arguments (its `locals()`) that are settings of `model`."""
    return {name: value for name, value in arguments.items() if name in model.model_fields}


def training_settings(
    model: type[Training_],
    flags: dict[str, Any],
    config: Path | None,
    sets: list[str] | None,
    preset: str | None,
    default_preset: Callable[[str], str],
) -> Training_:
    """The settings of `search` or `retrain`.

    Args:
        default_preset: the preset where none was named, from the data set that a flag, `--set` or `--config` named.
    """
    if preset is None:
        preset = default_preset(load_settings(model, config=config, sets=sets or (), flags=flags).data)
    return load_settings(model, preset=preset, config=config, sets=sets or (), flags=flags)


def show_settings(settings: Settings) -> None:
    """--show-settings."""
    write_text(to_toml(settings.resolve_plugins()))


def warn_of_busy_cores(threads: int) -> None:
    """A word where more than one thread is asked for and others use the cores: they would wait for each other."""
    free = _free_cores() if threads > 1 else None
    if free is not None and threads > free + 0.5:
        log.warning("--threads %d: %.1f cores are free now; fewer threads may well be faster", threads, free)


def _free_cores(seconds: float = 0.2) -> float | None:
    """How many cores are idle, over that time; None where the system does not tell."""
    try:
        before = _processor_times()
        time.sleep(seconds)
        after = _processor_times()
        spent = [late - early for early, late in zip(before, after, strict=True)]
        return len(os.sched_getaffinity(0)) * (spent[3] + spent[4]) / sum(spent)  # idle, and waiting for a disk
    except (OSError, ValueError, IndexError, ArithmeticError, AttributeError):
        return None


def _processor_times() -> list[int]:
    """The first line of /proc/stat: user, nice, system, idle, waiting, ..., of all cores together since the start."""
    return [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
