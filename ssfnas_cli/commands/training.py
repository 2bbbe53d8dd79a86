"""The flags that `search` and `retrain` share, listed once, and what both commands do with them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from ssfnas_cli import stop, world
from ssfnas_cli.commands import common
from ssfnas_cli.console import box_style, emit, format_duration, printable, set_verbosity
from ssfnas_cli.errors import InputError, UsageError
from ssfnas_cli.settings import PRESETS, Training, load_settings, read_configs

if TYPE_CHECKING:
    from rich.console import Console

Model = TypeVar("Model", bound=Training)

DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Take a few steps, predict time, memory and disk, and write no run folder.",
        rich_help_panel=common.RUN_PANEL,
    ),
]


def _shared_flags(model: type[Training]) -> dict[str, tuple[Any, Any]]:
    """Name -> (annotation, default) of every shared flag, in the order of the help."""
    number = int | None
    return {
        "epochs": (Annotated[number, common.by_preset(model, "epochs", "Passes over the training images.")], None),
        "batch_size": (Annotated[number, common.by_preset(model, "batch_size", "Images a step.")], None),
        "channels": (Annotated[number, common.by_preset(model, "channels", "Width of the first cells.")], None),
        "layers": (Annotated[number, common.by_preset(model, "layers", "Number of cells.")], None),
        "stem": (common.Stem, None),
        "seed": (common.Seed, None),
        "output": (common.RunOutput, None),
        "presets": (common.preset_flag(model), None),
        "configs": (common.Configs, None),
        "sets": (common.Set, None),
        "show_settings": (common.ShowSettings, False),
        "device": (common.DeviceName, None),
        "threads": (common.Threads, None),
        "workers": (common.Workers, None),
        "precision": (common.Precision, None),
        "max_time": (common.MaxTime, None),
        "dry_run": (DryRun, False),
        "force": (common.Force, False),
        "quiet": (common.Quiet, False),
        "verbose": (common.Verbose, False),
        "json": (common.Json, False),
    }


@dataclass(frozen=True)
class Flags:
    """The shared flags. `settings` holds those that are also settings; one that the user did not give is None."""

    settings: dict[str, Any]
    output: Path | None
    presets: list[str] | None
    configs: list[Path] | None
    sets: list[str] | None
    show_settings: bool
    dry_run: bool
    force: bool
    json: bool

    def load(
        self, model: type[Model], own: dict[str, Any], default_preset: Callable[[str], str], **more: Any
    ) -> tuple[Model, str]:
        """The settings of a command, and the name of the preset below them, which is no recipe.

        Args:
            own: the command's own flags that are settings, None if not given.
            default_preset: the preset if none was named, from the data set that a flag, `--set` or `--config` named.
            more: for `load_settings`.
        """
        flags = {**self.settings, **own}
        layers = {"configs": read_configs(self.configs), "sets": self.sets or (), "flags": flags, **more}
        named = self.presets or []
        chosen = [name for name in named if name in PRESETS[model]]
        preset = chosen[0] if chosen else default_preset(load_settings(model, preset=named, **layers).data)
        return load_settings(model, preset=[preset, *named], **layers), preset

    def run(
        self,
        settings: Training,
        data: str | None,
        real: Callable[[], dict[str, Any]],
        dry: Callable[[], dict[str, Any]],
        close: Callable[[Path], None],
    ) -> None:
        """Print the settings, predict the cost of the run, or run it, as the flags ask.

        Args:
            data: the folder of the data set; None or empty: the embedded one.
            close: says what to do with the run in that folder once its result is printed.
        """
        if self.show_settings:
            common.show_settings(settings, _comments(settings, data))
            return
        common.warn_of_busy_cores(settings.threads)
        if not self.dry_run:
            result = real()
            emit(result, self.json)
            close(Path(result["path"]))
            return
        if world.size() > 1:
            raise UsageError("--dry-run: predicts the cost for one process: leave torchrun or srun away")
        facts = dry()
        emit(facts, self.json, lambda console: _show_prediction(console, facts))


def with_training_flags(model: type[Training]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the shared flags after the command's own ones. It receives them in its last argument, `flags`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        own = [p.replace(annotation=hints[p.name]) for p in inspect.signature(command).parameters.values()][:-1]
        shared = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in _shared_flags(model).items()
        ]

        @functools.wraps(command)
        def wrapper(**given: Any) -> None:
            stop.install_handlers()
            mine = {parameter.name: given.pop(parameter.name) for parameter in own}
            set_verbosity(given.pop("quiet"), given.pop("verbose"))
            settings = {name: given.pop(name) for name in list(given) if name in model.model_fields}
            command(**mine, flags=Flags(settings=settings, **given))

        wrapper.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in (*own, *shared)}
        return wrapper

    return decorate


def _comments(settings: Training, data: str | None) -> dict[str, str]:
    """What a setting that is `auto` means on this data set, if it is there."""
    from ssfnas_cli.artifacts.dataset import DataSet
    from ssfnas_cli.data.batches import mirroring
    from ssfnas_cli.data.embedded import embedded_path
    from ssfnas_cli.nets.stems import choose_stem

    try:
        opened = DataSet.open(data or embedded_path())
    except InputError:
        return {}
    comments = {}
    if settings.flip == "auto":
        flip, why = mirroring(opened, settings)
        comments["flip"] = printable(f"{str(flip).lower()} here: {why}")
    if settings.stem == "auto" and "stem" not in settings.unused():
        stem, why = choose_stem(settings.stem, opened.image_size)
        comments["stem"] = f"{stem} here: {why}"
    return comments


def _round_shown(facts: dict[str, Any]) -> str:
    drawn, clients = facts["clients_per_round"], facts["clients"]
    steps = f"local_steps={facts['local_steps']}"
    return f"{drawn} of {clients} clients, {steps}, {facts['round_bytes'] / 1e6:.2f} MB sent to them and back"


def _show_prediction(console: Console, facts: dict[str, Any]) -> None:
    from rich.table import Table

    slowest, evaluation = facts["step_seconds_range"][1], f"{facts['evaluation_seconds']:.1f} s evaluation"
    epochs = " and ".join(f"{part['epochs']} {part['unit']}s of {part['phase']}" for part in facts["phases"])
    unit = "a candidate" if facts["phases"][-1]["unit"] == "candidate" else "an epoch"
    rows = {
        "a step": f"{facts['step_seconds']:.3f} s (median of {facts['timed_steps']}; at most {slowest:.3f} s)",
        unit: f"{format_duration(facts['epoch_seconds'])} ({facts['steps_per_epoch']} steps, {evaluation})",
        "all of it": f"{format_duration(facts['total_seconds'])} ({epochs})",
        "peak memory": f"{facts['peak_memory_bytes'] / 2**20:,.0f} MB",
        "weights": f"{facts['num_params']:,}",
        **({"stem": facts["stem"]} if "stem" in facts else {}),
        **({"a round": _round_shown(facts)} if "clients" in facts else {}),
        "disk": f"{facts['disk_bytes'] / 2**20:,.1f} MB (a checkpoint {facts['checkpoint_bytes'] / 2**20:,.1f} MB)",
        "computed by": f"{facts['computed_by']} ({facts['device']}, {facts['threads']} threads, {facts['kernels']})",
        "run folder": f"{facts['path']} (not written)",
    }
    table = Table(box=box_style(), show_header=False)
    for name, text in rows.items():
        table.add_row(name, text)
    console.print(table)
