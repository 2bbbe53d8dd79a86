"""The mistakes of a network as thumbnails."""

from __future__ import annotations

from collections.abc import Sequence

from ssfnas_cli.errors import InputError
from ssfnas_cli.plots.report.blocks import Block, Details, Gallery, Text, Thumbnail
from ssfnas_cli.plots.report.inline import thumbnail
from ssfnas_cli.plots.report.material import Material, Shown, note_of
from ssfnas_cli.results.facts import RunFacts
from ssfnas_cli.results.mistakes import Mistake

OPEN = 2  # networks of a report whose mistakes need not be unfolded


def blocks(run: RunFacts, material: Material) -> list[Block]:
    """The most confident and the worst mistakes of a network, or what is missing for them."""
    shown = material.mistakes.get(run.path)
    if shown is None:
        return []
    if isinstance(shown, InputError):
        return [note_of("Its mistakes cannot be shown", shown)]
    assert run.evaluation
    found, names, split = shown.mistakes, run.evaluation["class_names"], material.split
    said = Text(f"{found.num_wrong:,} of the {found.num_images:,} images of {split} are taken for another class.")
    if not found.confident:
        return [said]
    galleries: list[Block] = [
        _gallery("Most confident: a wrong class had the highest probability", found.confident, shown, names, split)
    ]
    if found.worst:
        caption = (
            "Worst of each class: the true class had the least probability; classes with few training images first"
        )
        galleries.append(_gallery(caption, found.worst, shown, names, split))
    summary = f"Mistakes on {split}: the most confident and the worst"
    return [said, Details(summary, galleries, is_open=len(material.mistakes) <= OPEN)]


def _gallery(caption: str, chosen: Sequence[Mistake], shown: Shown, names: Sequence[str], split: str) -> Gallery:
    return Gallery(caption, [_thumbnail(one, shown, names, split) for one in chosen])


def _thumbnail(one: Mistake, shown: Shown, names: Sequence[str], split: str) -> Thumbnail:
    lines = [
        f"{names[one.true]}, {100 * one.truth:.1f} %",
        f"taken for {names[one.predicted]}, {100 * one.confidence:.1f} %",
        f"image {one.row}",
    ]
    return Thumbnail(thumbnail(shown.images[one.row]), f"image {one.row} of {split}, {names[one.true]}", lines)
