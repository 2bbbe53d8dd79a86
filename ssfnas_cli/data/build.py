"""Make a data set folder: choose the images of each class, decode each once, stream them to shards."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from registry import SOURCES
from ssfnas_cli.artifacts.dataset import MANIFEST, DataSet, Manifest, ShortClass, Skipped, Split, SplitInfo
from ssfnas_cli.artifacts.files import atomic_folder, set_aside, write_json
from ssfnas_cli.artifacts.shards import ShardWriter
from ssfnas_cli.data.holdout import check_val, cut_test, val_counts
from ssfnas_cli.data.images import BadImage, printable
from ssfnas_cli.data.longtail import (
    class_counts,
    class_order,
    class_shares,
    largest_class,
    largest_first,
    longtail_test_counts,
    sample_class,
)
from ssfnas_cli.data.sources.base import PartOfSplit, Source, SourceSplit, open_source, where
from ssfnas_cli.errors import DiskError, InputError, OutputExistsError

if TYPE_CHECKING:
    from ssfnas_cli.settings import MakeDatasetSettings

MAX_NAMED = 20  # bad images named in the manifest and warned of one by one
CHUNK_BYTES = 8 * 2**20


def build_dataset(
    settings: MakeDatasetSettings, output: Path, report: Callable[[str], None], force: bool = False
) -> DataSet:
    """Make the data set that `settings` describe.

    Args:
        output: the folder to make; it appears whole or not at all.
        report: takes one line at a time for the user; some begin with `warning: `.
        force: move an old `output` aside once the new one is made.

    Raises:
        UsageError: settings that do not fit the source. InputError: the source is missing, damaged or too small.
        OutputExistsError: `output` exists. DiskError: it cannot be written.
    """
    settings = settings.resolve_plugins()
    if not force and os.path.lexists(output):
        raise OutputExistsError(f"{output}: exists: give another folder with -o, or --force")
    source = open_source(settings)
    left_out = _LeftOut(settings, report)
    left_out.sort_out(source)
    check_val(source, settings.val_share, where(settings))
    cut = cut_test(source, settings.test_share, settings.seed, where(settings))
    plan = _plan_classes(settings, source, bool(left_out.count))
    for note in [*source.notes, *cut]:  # after the checks: a source that is refused gets one line, the reason
        report(note)
    with _no_one_was_faster(output), atomic_folder(output) as folder:
        builder = _Builder(settings, source, folder, left_out, report)
        splits = builder.write_train(plan)
        splits |= {name: builder.write_whole(name) for name in ("val", "test") if name in source.splits}
        splits["test_longtail"] = builder.write_longtail_test(splits["train"].counts, splits["test"])
        builder.report_counts(plan, splits)
        write_json(folder / MANIFEST, builder.manifest(plan, splits).to_value())
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


@dataclass(frozen=True)
class _Plan:
    """Images of each class, in class order: in the source, in the distribution, and in train and val together."""

    available: list[int]
    shares: list[int]
    counts: list[int]


def _plan_classes(settings: MakeDatasetSettings, source: Source, some_are_bad: bool) -> _Plan:
    """The classes' images, checked before anything is written."""
    present = {
        split: np.bincount(source.splits[split].labels, minlength=len(source.class_names))
        for split in ("train", "test")
    }
    for split, numbers in present.items():
        if not numbers.all():
            empty = printable(source.class_names[int(np.argmin(numbers))])
            what = f"readable {split} images" if some_are_bad else f"{split} images"
            raise InputError(f"{where(settings)}: class '{empty}' has no {what}: add some, or take the class away")
    available = present["train"].tolist()
    order = largest_first(available) if SOURCES.get(settings.source.name).facts.imbalanced else None
    profile = (settings.dist, settings.mu, available, settings.max_per_class, order)
    return _Plan(available, class_shares(*profile), class_counts(*profile))


class _LeftOut:
    """The images that cannot be read: refused or left out, as `on_bad` says, and counted."""

    def __init__(self, settings: MakeDatasetSettings, report: Callable[[str], None]):
        self.settings, self.report = settings, report
        self.count = 0
        self.names: list[str] = []

    def add(self, bad: BadImage) -> None:
        """Refuse an image, or leave it out."""
        if self.settings.on_bad == "fail":
            raise InputError(
                f"{where(self.settings)}: {bad}: mend or remove it, or leave such out with --set on_bad=skip"
            ) from bad
        self.count += 1
        if self.count <= MAX_NAMED:
            self.names.append(bad.name)
            self.report(f"warning: left out {bad}")

    def sort_out(self, source: Source) -> None:
        """Take the images that cannot be read out of a source's splits.

        With `on_bad=skip` every image is read for that, because the class sizes that the profile follows are those of
        readable images.
        """
        for bad in source.bad:
            self.add(bad)
        if self.settings.on_bad == "skip":
            for name, split in source.splits.items():
                readable = [index for index in range(len(split)) if self._can_be_read(split, index)]
                split.release()
                if len(readable) < len(split):
                    source.splits[name] = PartOfSplit(split, np.array(readable, np.int64))

    def _can_be_read(self, split: SourceSplit, index: int) -> bool:
        try:
            split.read(index)
        except BadImage as bad:
            self.add(bad)
            return False
        return True


@dataclass
class _Builder:
    """Writes the splits of one data set."""

    settings: MakeDatasetSettings
    source: Source
    folder: Path
    left_out: _LeftOut
    report: Callable[[str], None]

    def __post_init__(self) -> None:
        side = self.source.image_size
        self.image_shape = (side, side, self.source.channels)

    def _writer(self, split: str) -> ShardWriter:
        return ShardWriter(self.folder, split, self.image_shape, int(self.settings.shard_mb * 2**20))

    def write_train(self, plan: _Plan) -> dict[str, SplitInfo]:
        """Train, and val if it is cut from it: class by class in seeded order."""
        split = self.source.splits["train"]
        writers = {"train": self._writer("train")}
        if self.settings.val_share:
            writers["val"] = self._writer("val")
        kept: dict[str, list[int]] = {name: [] for name in writers}
        in_val = val_counts(plan.counts, self.settings.val_share)
        for label, (count, num_val) in enumerate(zip(plan.counts, in_val, strict=True)):
            places = np.flatnonzero(split.labels == label)
            order = iter(class_order(places, self.settings.seed, "train", label).tolist())
            for name, number in (("train", count - num_val), ("val", num_val)):
                if name in writers:
                    kept[name].append(self._take(split, order, number, writers[name]))
        split.release()
        return {name: self._finish(name, kept[name], writer) for name, writer in writers.items()}

    def write_whole(self, name: str) -> SplitInfo:
        """Every image of a split, in the source's order."""
        split, writer = self.source.splits[name], self._writer(name)
        kept = [0] * len(self.source.class_names)
        for index in range(len(split)):
            kept[split.labels[index]] += self._take(split, iter([index]), 1, writer)
        split.release()
        return self._finish(name, kept, writer)

    def _take(self, split: SourceSplit, order: Iterator[int], count: int, writer: ShardWriter) -> int:
        """Write the next `count` readable images of `order`; returns how many there were."""
        taken = 0
        while taken < count and (index := next(order, None)) is not None:
            try:
                image = split.read(index)
            except BadImage as bad:
                self.left_out.add(bad)
                continue
            writer.add(image, int(split.labels[index]), int(split.source_index[index]))
            taken += 1
        return taken

    def _finish(self, name: str, kept: list[int], writer: ShardWriter) -> SplitInfo:
        if name != "val" and 0 in kept:
            empty = printable(self.source.class_names[kept.index(0)])
            raise InputError(f"{where(self.settings)}: class '{empty}' has no readable {name} images: add whole ones")
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

    def report_counts(self, plan: _Plan, splits: dict[str, SplitInfo]) -> None:
        """Say how many images are kept and why others are not, and which classes are small."""
        train = splits["train"].counts
        reasons = []
        if spare := sum(plan.available) - sum(plan.counts):
            reasons.append(f"{spare} left out by {_cause(self.settings)}")
        if self.settings.val_share:
            reasons.append(f"{sum(splits['val'].counts)} in val (--val-share {self.settings.val_share:g})")
        why = f": {', '.join(reasons)}" if reasons else ""
        self.report(f"train: {sum(train)} of {sum(plan.available)} images kept{why}")
        if self.left_out.count:
            self.report(f"warning: left out {self.left_out.count} images that could not be read")
        if short := self._short_classes(plan, splits):
            named = [f"'{printable(item.name)}' {item.kept} of {item.share}" for item in short]
            self.report(f"classes with fewer images than their share keep what they have: {_first(named)}")
        for can_grow in (True, False):
            classes = [
                f"'{printable(name)}'"
                for name, count, has in zip(self.source.class_names, train, plan.available, strict=True)
                if count == 1 and (has > 1) == can_grow
            ]
            if classes:
                mend = "raise --mu or --max-per-class" if can_grow else "add images, or take the class away"
                self.report(
                    f"warning: 1 training image in class {_first(classes)}: a search divides the training images of "
                    f"each class and needs 2: {mend}"
                )

    def _short_classes(self, plan: _Plan, splits: dict[str, SplitInfo]) -> list[ShortClass]:
        kept = splits["train"].counts
        if self.settings.val_share:
            kept = [sum(pair) for pair in zip(kept, splits["val"].counts, strict=True)]
        return [
            ShortClass(name=name, share=share, kept=has)
            for name, share, has in zip(self.source.class_names, plan.shares, kept, strict=True)
            if has < share
        ]

    def manifest(self, plan: _Plan, splits: dict[str, SplitInfo]) -> Manifest:
        """The manifest of what has been written."""
        mean, std = _mean_std(Split(self.folder, splits["train"], self.image_shape))
        value = {
            "source": self.source.name,
            "dist": self.settings.dist,
            "mu": float(self.settings.mu) if self.settings.dist in ("step", "exp") else None,
            "n_max": largest_class(plan.available, self.settings.max_per_class),
            "seed": self.settings.seed,
            "class_names": self.source.class_names,
            "channels": self.source.channels,
            "image_size": self.source.image_size,
            "mean": mean,
            "std": std,
            "mirrorable": self.source.mirrorable,
            "short_classes": self._short_classes(plan, splits),
            "skipped": Skipped(count=self.left_out.count, files=self.left_out.names),
            "splits": splits,
        }
        return Manifest.model_validate(value)


def _cause(settings: MakeDatasetSettings) -> str:
    """The settings that leave training images out."""
    flags = [f"--dist {settings.dist}"]
    if settings.dist in ("step", "exp"):
        flags.append(f"--mu {settings.mu:g}")
    if settings.max_per_class:
        flags.append(f"--max-per-class {settings.max_per_class}")
    return ", ".join(flags)


def _first(names: list[str], most: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


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
