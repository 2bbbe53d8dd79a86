"""`ssfnas make-dataset`: from a source of images to a long-tailed data set folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssfnas_cli import stop
from ssfnas_cli.commands import closing, common
from ssfnas_cli.console import box_style, emit, log, printable, set_verbosity
from ssfnas_cli.errors import UsageError
from ssfnas_cli.settings import MakeDatasetSettings, load_settings, read_configs

if TYPE_CHECKING:
    from rich.console import Console

    from ssfnas_cli.artifacts.dataset import DataSet


def command(
    source: Annotated[
        str | None,
        typer.Option(
            help="digits, cifar10, cifar100, folder, list, npz, idx, or a plugin's.",
            show_default="digits",
            autocompletion=common.names_of("source"),
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            help="What the source reads: a folder with a folder of images for each class, with lists of images, or of "
            "IDX files; an .npz file; a torchvision root.",
            show_default=False,
        ),
    ] = None,
    dist: Annotated[
        str | None,
        typer.Option(
            help="Class sizes: natural (as they are), balance (all alike), step or exp (made long-tailed by --mu).",
            show_default="exp for digits and CIFAR, natural for the others",
        ),
    ] = None,
    mu: Annotated[
        float | None,
        typer.Option(
            help="Imbalance factor of exp and step: images of the smallest class over those of the largest.",
            show_default="0.1",
        ),
    ] = None,
    max_per_class: Annotated[int | None, typer.Option(help="Images of the largest class.", show_default="all")] = None,
    test_share: Annotated[
        float | None, typer.Option(help="Share cut for test, if the source has no test split.", show_default="0.2")
    ] = None,
    val_share: Annotated[
        float | None, typer.Option(help="Share of the long-tailed train split cut for val.", show_default="0")
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            help="Side of the square images in pixels, or auto: their own if all are alike, otherwise 64.",
            show_default="auto",
        ),
    ] = None,
    seed: common.Seed = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to make; default: named after the settings, in data/."),
    ] = None,
    configs: common.Configs = None,
    sets: common.Set = None,
    show_settings: common.ShowSettings = False,
    force: common.Force = False,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
    json: common.Json = False,
) -> None:
    """Make a long-tailed data set. The same seed and source give the same folder, byte for byte."""
    stop.install_handlers()
    set_verbosity(quiet, verbose)
    flags = common.flags_of(MakeDatasetSettings, locals()) | {
        "root": None if root is None else str(root),
        "image_size": int(image_size) if image_size and image_size.isdigit() else image_size,
    }
    settings = load_settings(MakeDatasetSettings, configs=read_configs(configs), sets=sets or (), flags=flags)
    if show_settings:
        common.show_settings(settings)
        return
    path = output or default_path(settings.resolve_plugins())
    from ssfnas_cli.data.build import build_dataset

    if any("\ud800" <= character <= "\udfff" for character in str(path)):  # the printed JSON could not hold it
        raise UsageError(f"-o: the folder '{printable(str(path))}' is not named in UTF-8: give another name with -o")

    with stop.interruptible("before the end; nothing is left behind"):
        data = build_dataset(settings, path, _report, force)
    emit(describe(data), json, show_counts(data))
    closing.say_next("search", "--data", str(data.path))
    log.info("      add --preset quick for a trial of a few minutes")


def _report(line: str) -> None:
    text = line.removeprefix("warning: ")
    (log.info if text == line else log.warning)("%s", text)


def default_path(settings: MakeDatasetSettings) -> Path:
    """`data/SOURCE-DIST-muMU-...-seedSEED`."""
    name = Path(settings.root).resolve().stem if settings.root else settings.source.name
    parts = [name, settings.dist]
    if settings.dist in ("step", "exp"):
        parts.append(f"mu{settings.mu:g}")
    if settings.max_per_class:
        parts.append(f"n{settings.max_per_class}")
    default = MakeDatasetSettings()
    for word, share in (("test", "test_share"), ("val", "val_share")):
        if getattr(settings, share) != getattr(default, share):
            parts.append(f"{word}{getattr(settings, share):g}")
    if settings.image_size != "auto":
        parts.append(f"{settings.image_size}px")
    return Path("data") / "-".join([*parts, f"seed{settings.seed}"])


def describe(data: DataSet) -> dict[str, Any]:
    """What `make-dataset` prints; counts in class order."""
    return {
        "kind": "dataset",
        "path": str(data.path),
        "sha256": data.sha256,
        "classes": data.class_names,
        "train_counts": data.counts("train"),
        "val_counts": data.counts("val"),
        "test_counts": data.counts("test"),
        "test_longtail_counts": data.counts("test_longtail"),
        "dist": data.manifest.dist,
        "mu": data.manifest.mu,
        "image_size": data.image_size,
    }


def show_counts(data: DataSet) -> Callable[[Console], None]:
    """A table of classes with a bar for the training profile."""

    def show(console: Console) -> None:
        from rich.table import Table
        from rich.text import Text  # names are shown as they are: in a plain string, [red] would be markup

        table = Table(title=Text(str(data.path)), box=box_style(), title_justify="left")
        table.add_column("class")
        for split in data.splits:
            table.add_column(split, justify="right")
        table.add_column("training profile")
        train = data.counts("train")
        for c, name in enumerate(data.class_names):
            bar = "#" * max(1, round(30 * train[c] / max(train)))
            table.add_row(Text(name), *(str(data.counts(split)[c]) for split in data.splits), bar)
        table.add_row("total", *(str(sum(data.counts(split))) for split in data.splits), "", style="bold")
        console.print(table)

    return show
