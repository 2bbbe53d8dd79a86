"""CIFAR-10 as a folder of images, train/CLASS/NAME.png and test/CLASS/NAME.png, by the names that its archive gives.

    python experiments/cifar10.py cifar10

The archive is downloaded to cifar10-archive, unless it lies there already. Names decide the order of the images, and so
which of them a long-tailed data set takes: this folder gives those of the committed results.
"""

from __future__ import annotations

import pickle  # noqa: TID251 # only of files with the published md5 sums, which torchvision has checked
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10


def main(folder: Path) -> str | None:
    """Make the folder if it is not there; an error in one line, or None."""
    if (folder / "train").is_dir():
        return None
    archive = folder.with_name(f"{folder.name}-archive")
    try:
        classes = CIFAR10(str(archive), train=True, download=True).classes
    except Exception as error:
        why = " ".join(str(error).split())
        return (
            f"{folder}: has no CIFAR-10, and {CIFAR10.filename} could not be downloaded ({why}): put it into {archive},"
            " or name a folder with train/CLASS/*.png and test/CLASS/*.png (make CIFAR10=FOLDER)"
        )
    files = archive / CIFAR10.base_folder
    part = folder.with_name(f"{folder.name}.part")
    for split, listed in (("train", CIFAR10.train_list), ("test", CIFAR10.test_list)):
        write_split(part / split, classes, _batches(files, [name for name, _ in listed]))
    part.rename(folder)
    return None


def _batches(files: Path, names: list[str]) -> Iterator[dict[str, Any]]:
    for name in names:
        with (files / name).open("rb") as file:
            yield pickle.load(file, encoding="latin1")  # noqa: S301


def write_split(folder: Path, classes: list[str], batches: Iterator[dict[str, Any]]) -> None:
    """Write the images of a split, each into the folder of its class.

    Args:
        folder: of the split.
        classes: names in the order of the labels.
        batches: `data` uint8 [n, 3 * 32 * 32], a plane a channel, `labels` and `filenames`.
    """
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for batch in batches:
        images = np.asarray(batch["data"]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        for image, label, name in zip(images, batch["labels"], batch["filenames"], strict=True):
            Image.fromarray(image).save(folder / classes[label] / name)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python experiments/cifar10.py FOLDER")
    sys.exit(main(Path(sys.argv[1])))
