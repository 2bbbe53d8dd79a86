"""Flags that several commands share, and how a command's settings are put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from registry import REGISTRIES
from ssfnas_cli import machine
from ssfnas_cli.console import log, write_text
from ssfnas_cli.settings import PRESETS, RECIPES, Settings, to_toml

RUN_PANEL = "Running"
SETTINGS_PANEL = "Settings"


def one_of(names: Iterable[str]) -> Any:
    """Completion of given names."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def names_of(kind: str) -> Any:
    """Completion of plugin names; imports no torch."""
    return lambda incomplete: one_of(REGISTRIES[kind].names())(incomplete)


def by_preset(model: type[Settings], name: str, text: str) -> Any:
    """A flag that is a setting of `model`, whose default is each preset's."""
    default = model.model_fields[name].default
    values = {preset: changes.get(name, default) for preset, changes in PRESETS[model].items()}
    named = ", ".join(f"{value} in {preset}" for preset, value in values.items())
    return typer.Option(help=text, show_default=str(default) if len(set(values.values())) == 1 else named)


def preset_flag(model: type[Settings]) -> Any:
    """The flag `--preset` of a command with settings of `model`."""
    text = (
        "A named set of settings: quick (a trial of a minute or two), standard (minutes to an hour), or paper "
        "(the paper's: days on two cores)."
    )
    if recipes := RECIPES.get(model):
        text += f" Repeatable with a recipe on top, which keeps the budget: {', '.join(recipes)}."
    default = "quick on the embedded digits, standard on other data"
    option = typer.Option("--preset", metavar="NAME", help=text, rich_help_panel=SETTINGS_PANEL, show_default=default)
    return Annotated[list[str] | None, option]


Configs = Annotated[
    list[Path] | None,
    typer.Option(
        "--config",
        help="Settings from a TOML file; repeatable, the last wins.",
        rich_help_panel=SETTINGS_PANEL,
        show_default=False,
    ),
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
STEM_HELP = (
    "What comes before the cells: cifar (keeps the side of the images), imagenet (divides it by 8), or auto "
    "(imagenet from 96 pixels on)."
)
Stem = Annotated[str | None, typer.Option(help=STEM_HELP, show_default="auto")]
Seed = Annotated[int | None, typer.Option(help="Decides everything random.", show_default="0")]
RunOutput = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Run folder; default: named after the settings, in runs/."),
]
OtherData = Annotated[
    bool, typer.Option("--other-data", help="Allow --data to name another data set than the one recorded.")
]
SweepFile = Annotated[
    Path | None,
    typer.Option(
        "--sweep",
        metavar="FILE.toml",
        help="The sweep that made the runs: its arms group and name them, and what it has not made yet is said.",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Start over; an old output is moved aside, not deleted.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on a terminal too.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]


def flags_of(model: type[Settings], arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of a command's arguments (its `locals()`) that are settings of `model`."""
    return {name: value for name, value in arguments.items() if name in model.model_fields}


def show_settings(settings: Settings, comments: Mapping[str, str] | None = None) -> None:
    """--show-settings. A comment stands behind the setting that it is about."""
    lines = to_toml(settings.resolve_plugins()).splitlines(keepends=True)
    for name, comment in (comments or {}).items():
        place = next(number for number, line in enumerate(lines) if line.startswith(f"{name} = "))
        lines[place] = f"{lines[place].rstrip()}  # {comment}\n"
    write_text("".join(lines))


def warn_of_busy_cores(threads: int) -> None:
    """A word if more than one thread is asked for and others use the cores: they would wait for each other."""
    free = machine.free_cores() if threads > 1 else None
    if free is not None and threads > free + 0.5:
        log.warning("--threads %d: %.1f cores are free now; fewer threads may well be faster", threads, free)
