"""A file of what a network says of the images of splits, so that others can compute metrics of their own."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ssfnas_cli.artifacts.tensors import save_tensors
from ssfnas_cli.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA = "ssfnas.predictions/1"
SUFFIXES = (".safetensors", ".csv")


class Predicted(NamedTuple):
    """Logits [N, C], labels [N] and places in the source [N] of the images of a split."""

    logits: NDArray
    labels: NDArray
    source_index: NDArray


def check_suffix(path: Path, flag: str) -> None:
    """Refuse a name from which no format follows.

    Raises:
        UsageError: the name ends in none of SUFFIXES.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{flag} {path}: should end in {' or '.join(SUFFIXES)}")


def write_predictions(path: Path, class_names: Sequence[str], splits: Mapping[str, Predicted]) -> None:
    """Write the predictions of some splits in the format of the suffix.

    A safetensors file has SPLIT.logits float32 [N, C], SPLIT.labels int64 [N] and SPLIT.source_index int64 [N]; its
    metadata names the classes. A CSV file has a row for each image and a column for each class.
    """
    if path.suffix.lower() == ".csv":
        _write_csv(path, class_names, splits)
        return
    import torch

    tensors = {
        f"{name}.{kind}": torch.from_numpy(array)
        for name, predicted in splits.items()
        for kind, array in predicted._asdict().items()
    }
    save_tensors(path, tensors, {"schema": SCHEMA, "class_names": list(class_names), "splits": list(splits)})


def _write_csv(path: Path, class_names: Sequence[str], splits: Mapping[str, Predicted]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        logits = [f"logit:{name}" for name in class_names]
        writer.writerow(["split", "source_index", "class", "predicted", *logits])
        for split, predicted in splits.items():
            best = predicted.logits.argmax(1)
            for row, (place, label) in enumerate(zip(predicted.source_index, predicted.labels, strict=True)):
                names = class_names[label], class_names[best[row]]
                writer.writerow([split, place, *names, *map(str, predicted.logits[row])])
