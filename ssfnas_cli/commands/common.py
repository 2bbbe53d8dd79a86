"""Flags that several commands share, and how a command's settings are put together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from registry import REGISTRIES
from ssfnas_cli.console import write_text
from ssfnas_cli.settings import Settings, Training, load_settings, to_toml

Training_ = TypeVar("Training_", bound=Training)

RUN_PANEL = "Running"
SETTINGS_PANEL = "Settings"


def names_of(kind: str) -> Any:
    """Completion of plugin names; imports no torch."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in REGISTRIES[kind].names() if name.startswith(incomplete)]

    return complete


Preset = Annotated[
    str | None,
    typer.Option(help="A named set of settings.", rich_help_panel=SETTINGS_PANEL, show_default=False),
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
    typer.Option("--device", help="auto, cpu, cuda, …", rich_help_panel=RUN_PANEL, show_default=False),
]
Threads = Annotated[
    int | None, typer.Option(min=0, help="Processor threads.", rich_help_panel=RUN_PANEL, show_default=False)
]
Workers = Annotated[
    int | None, typer.Option(min=0, help="Loader processes.", rich_help_panel=RUN_PANEL, show_default=False)
]
Precision = Annotated[str | None, typer.Option(help="fp32 or bf16.", rich_help_panel=RUN_PANEL, show_default=False)]
MaxTime = Annotated[
    str | None,
    typer.Option(
        metavar="H:MM:SS",
        help="Save and stop (exit 75) after this time.",
        rich_help_panel=RUN_PANEL,
        show_default=False,
    ),
]
Epochs = Annotated[int | None, typer.Option(show_default=False)]
BatchSize = Annotated[int | None, typer.Option(show_default=False)]
Channels = Annotated[int | None, typer.Option(help="Width of the first cells.", show_default=False)]
Layers = Annotated[int | None, typer.Option(help="Number of cells.", show_default=False)]
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
