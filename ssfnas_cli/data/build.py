"""Make a data set folder: choose the images of each class, decode each once, stream them to shards."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ssfnas_cli.artifacts.dataset import MANIFEST, DataSet, Manifest, ShortClass, Skipped, Split, SplitInfo
from ssfnas_cli.artifacts.files import atomic_folder, set_aside, write_json
from ssfnas_cli.artifacts.shards import ShardWriter
from ssfnas_cli.data.images import BadImage
from ssfnas_cli.data.longtail import (
    class_counts,
    class_order,
    class_shares,
    largest_class,
    longtail_test_counts,
    sample_class,
)
from ssfnas_cli.data.sources import Source, SourceSplit, open_source
from ssfnas_cli.errors import DiskError, InputError, OutputExistsError, UsageError

MAX_NAMED = 20  # bad images named in the manifest and warned of one by one
CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class BuildPlan:
    """Settings of `make-dataset`; `shard_mb` is in MiB, `image_size` in pixels or `auto`."""

    source: str = "digits"
    root: Path | None = None
    dist: str = "exp"
    mu: float = 0.1
    max_per_class: int | None = None
    image_size: int | str = "auto"
    seed: int = 0
    on_bad: str = "fail"
    shard_mb: float = 64


def build_dataset(settings: BuildPlan, output: Path, report: Callable[[str], None], force: bool = False) -> DataSet:
    """Make the data set that `settings` describe.

    Args:
        output: the folder to make; it appears whole or not at all.
        report: takes one line at a time for the user; some begin with `warning: `.
        force: move an old `output` aside once the new one is made.

    Raises:
        UsageError: a setting out of range. InputError: the source is missing, damaged or too small.
        OutputExistsError: `output` exists. DiskError: it cannot be written.
    """
    _check_settings(settings)
    if not force and os.path.lexists(output):
        raise OutputExistsError(f"{output}: exists: give another folder with -o, or --force")
    source = open_source(settings.source, settings.root, settings.image_size, settings.seed)
    for note in source.notes:
        report(note)
    shares, counts = _plan_classes(settings, source)
    with _no_one_was_faster(output), atomic_folder(output) as folder:
        builder = _Builder(settings, source, folder, report)
        splits = {"train": builder.write_train(counts)}
        splits |= {name: builder.write_whole(name) for name in ("val", "test") if name in source.splits}
        splits["test_longtail"] = builder.write_longtail_test(splits["train"].counts, splits["test"])
        write_json(folder / MANIFEST, builder.manifest(shares, splits).to_value())
        if force and os.path.lexists(output):
            report(f"warning: --force: what was {output} is now {set_aside(output)}")
    return DataSet.open(output)


@contextlib.contextmanager
def _no_one_was_faster(output: Path) -> Iterator[None]:
    """Say so when `output` has appeared meanwhile; renaming onto it then failed, and it is untouched."""
    try:
        yield
    except DiskError as error:
        if not output.exists():
            raise
        raise OutputExistsError(f"{output}: another process has just made it") from error


def _check_settings(settings: BuildPlan) -> None:
    if settings.on_bad not in ("fail", "skip"):
        raise UsageError(f"--set on_bad={settings.on_bad}: must be 'fail' or 'skip'")
    if not 0 < settings.shard_mb <= 4096:
        raise UsageError(f"--set shard_mb={settings.shard_mb}: must be above 0 and at most 4096")
    if not 0 <= settings.seed < 2**40:
        raise UsageError(f"--seed: {settings.seed} must be 0 or more, and below 2**40")


def _plan_classes(settings: BuildPlan, source: Source) -> tuple[list[int], list[int]]:
    """Each class's share of the distribution and the images it gets, checked before anything is written."""
    available = np.bincount(source.splits["train"].labels, minlength=len(source.class_names)).tolist()
    shares = class_shares(settings.dist, settings.mu, available, settings.max_per_class)
    for split in ("train", "test"):
        present = np.bincount(source.splits[split].labels, minlength=len(source.class_names))
        if not present.all():
            empty = source.class_names[int(np.argmin(present))]
            raise InputError(
                f"{_where(settings)}: class '{empty}' has no {split} images: add some, or take the class away"
            )
    return shares, class_counts(settings.dist, settings.mu, available, settings.max_per_class)


def _where(settings: BuildPlan) -> str:
    return f"--root {settings.root}" if settings.root is not None else f"--source {settings.source}"


@dataclass
class _Builder:
    """Writes the splits of one data set and remembers the images left out."""

    settings: BuildPlan
    source: Source
    folder: Path
    report: Callable[[str], None]
    num_skipped: int = 0
    skipped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        side = self.source.image_size
        self.image_shape = (side, side, self.source.channels)

    def _writer(self, split: str) -> ShardWriter:
        return ShardWriter(self.folder, split, self.image_shape, int(self.settings.shard_mb * 2**20))

    def write_train(self, counts: list[int]) -> SplitInfo:
        """Class by class in seeded order; the next in line replaces a bad image."""
        split, writer = self.source.splits["train"], self._writer("train")
        kept = []
        for label, count in enumerate(counts):
            order = class_order(np.flatnonzero(split.labels == label), self.settings.seed, "train", label)
            kept.append(self._take(split, order, count, writer))
        split.release()
        return self._finish("train", kept, writer)

    def write_whole(self, name: str) -> SplitInfo:
        """Every image of a split, in the source's order."""
        split, writer = self.source.splits[name], self._writer(name)
        kept = [0] * len(self.source.class_names)
        for index in range(len(split)):
            kept[split.labels[index]] += self._take(split, np.array([index]), 1, writer)
        split.release()
        return self._finish(name, kept, writer)

    def _take(self, split: SourceSplit, order: np.ndarray, count: int, writer: ShardWriter) -> int:
        """Write the first `count` readable images of `order`; returns how many there were."""
        taken = 0
        for index in order:
            if taken == count:
                break
            try:
                image = split.read(int(index))
            except BadImage as bad:
                self._skip(bad)
                continue
            writer.add(image, int(split.labels[index]), int(split.source_index[index]))
            taken += 1
        return taken

    def _skip(self, bad: BadImage) -> None:
        if self.settings.on_bad == "fail":
            raise InputError(
                f"{_where(self.settings)}: {bad}: mend or remove it, or leave such out with --set on_bad=skip"
            ) from bad
        self.num_skipped += 1
        if self.num_skipped <= MAX_NAMED:
            self.skipped.append(bad.name)
            self.report(f"warning: left out {bad}")

    def _finish(self, name: str, kept: list[int], writer: ShardWriter) -> SplitInfo:
        if name != "val" and 0 in kept:
            empty = self.source.class_names[kept.index(0)]
            raise InputError(f"{_where(self.settings)}: class '{empty}' has no readable {name} images: add whole ones")
        return SplitInfo(counts=kept, shards=writer.close())

    def write_longtail_test(self, train_counts: list[int], info: SplitInfo) -> SplitInfo:
        """The training profile out of the test split just written, so that no image is decoded twice."""
        test, writer = Split(self.folder, info, self.image_shape), self._writer("test_longtail")
        counts = longtail_test_counts(train_counts, test.counts)
        for label, count in enumerate(counts):
            places = sample_class(
                np.flatnonzero(test.labels == label), count, self.settings.seed, "test_longtail", label
            )
            for chunk in _chunks(places, self.image_shape):
                for place, image in zip(chunk, test.rows(chunk), strict=True):
                    writer.add(image, label, int(test.source_index[place]))
                test.unmap()
        return self._finish("test_longtail", counts, writer)

    def manifest(self, shares: list[int], splits: dict[str, SplitInfo]) -> Manifest:
        """The manifest; reports the classes that fell short and the images left out."""
        names, kept = self.source.class_names, splits["train"].counts
        short = [
            ShortClass(name=name, share=share, kept=has)
            for name, share, has in zip(names, shares, kept, strict=True)
            if has < share
        ]
        if short:
            first = ", ".join(f"'{item.name}' {item.kept} of {item.share}" for item in short[:5])
            more = f" and {len(short) - 5} more" if len(short) > 5 else ""
            self.report(f"classes with fewer images than their share keep what they have: {first}{more}")
        if self.num_skipped:
            self.report(f"warning: left out {self.num_skipped} images that could not be read")
        mean, std = _mean_std(Split(self.folder, splits["train"], self.image_shape))
        available = np.bincount(self.source.splits["train"].labels).tolist()
        value = {
            "source": self.source.name,
            "dist": self.settings.dist,
            "mu": float(self.settings.mu) if self.settings.dist in ("step", "exp") else None,
            "n_max": largest_class(available, self.settings.max_per_class),
            "seed": self.settings.seed,
            "class_names": names,
            "channels": self.source.channels,
            "image_size": self.source.image_size,
            "mean": mean,
            "std": std,
            "mirrorable": self.source.mirrorable,
            "short_classes": short,
            "skipped": Skipped(count=self.num_skipped, files=self.skipped),
            "splits": splits,
        }
        return Manifest.model_validate(value)


def _chunks(places: np.ndarray, image_shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """Parts of `places` whose images take some MiB."""
    rows = max(1, CHUNK_BYTES // math.prod(image_shape))
    for start in range(0, len(places), rows):
        yield places[start : start + rows]


def _mean_std(split: Split) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over all pixels, on a scale of 0 to 1, to 6 digits.

    Exact whatever the order and number of images: pixels are counted by value and summed as whole numbers.
    """
    channels = split.image_shape[2]
    histogram = np.zeros((channels, 256), np.int64)
    for chunk in _chunks(np.arange(len(split)), split.image_shape):
        pixels = split.rows(chunk).reshape(-1, channels)
        for channel in range(channels):
            histogram[channel] += np.bincount(pixels[:, channel], minlength=256)
        split.unmap()
    mean, std = [], []
    for counts in histogram.tolist():
        number = sum(counts)
        total = sum(value * count for value, count in enumerate(counts))
        squares = sum(value * value * count for value, count in enumerate(counts))
        deviation = round(math.sqrt(number * squares - total * total) / number / 255, 6)
        mean.append(round(total / number / 255, 6))
        std.append(deviation or 1.0)  # a constant channel: dividing by 1 leaves it at 0
    return mean, std
