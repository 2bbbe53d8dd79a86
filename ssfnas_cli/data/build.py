"""Construction of a data set folder: select the images of each class, decode them once and write them to shards."""

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
from ssfnas_cli.artifacts.lock import delete_dead_builds, held
from ssfnas_cli.artifacts.shards import ShardWriter
from ssfnas_cli.console import first_of, printable
from ssfnas_cli.data.duplicates import Contents, describe_alike_names, describe_duplicates
from ssfnas_cli.data.holdout import check_val, cut_test, val_counts
from ssfnas_cli.data.images import BadImage
from ssfnas_cli.data.longtail import (
    class_counts,
    class_order,
    class_shares,
    largest_class,
    largest_first,
    longtail_test_counts,
    sample_class,
)
from ssfnas_cli.data.sources.base import Source, SourceSplit, open_source, refuse_output_in_source, where
from ssfnas_cli.data.unreadable import UnreadableImages
from ssfnas_cli.errors import DiskError, InputError, OutputExistsError

if TYPE_CHECKING:
    from ssfnas_cli.settings import MakeDatasetSettings

CHUNK_BYTES = 8 * 2**20
MOST_NAMED = 5  # classes that a line names


def build_dataset(
    settings: MakeDatasetSettings, output: Path, report: Callable[[str], None], force: bool = False
) -> DataSet:
    """Make the data set that `settings` describe, or find that it is there already.

    What is there is compared with what would be made, which is made for that and deleted: images may have changed.
    So is what another process makes in the meantime.

    Args:
        settings: unresolved settings.
        output: the folder to create. It is created atomically.
        report: receives lines for the user, some of which begin with `warning: `.
        force: move an old `output` aside after the new one has been made.

    Raises:
        UsageError: the settings do not fit the source.
        InputError: the source is missing, damaged or too small.
        OutputExistsError: `output` exists and is not that data set.
        DiskError: `output` cannot be written.
    """
    settings = settings.resolve_plugins()
    try:
        return _build(settings, output, report, force)
    except _JustMade as error:
        report(str(error))
        return _build(settings, output, report, force)


def _build(settings: MakeDatasetSettings, output: Path, report: Callable[[str], None], force: bool) -> DataSet:
    refuse_output_in_source(settings, output)
    delete_dead_builds(output.parent)
    before = None if force or not os.path.lexists(output) else _open_like(settings, output)
    source = open_source(settings)
    unreadable = UnreadableImages(settings, report)
    unreadable.remove_from(source)
    check_val(source, settings.val_share, where(settings))
    is_usual = settings.test_share == type(settings).model_fields["test_share"].default
    cut = cut_test(source, settings.test_share, settings.seed, where(settings), not is_usual)
    plan = _plan_classes(settings, source, bool(unreadable.count))
    notes = [*source.notes, *cut, *describe_alike_names(source.class_names)]
    for note in notes:  # after the checks, so that an error is the only line
        report(note)
    with contextlib.suppress(_IsThere), _report_concurrent_build(output, before), atomic_folder(output) as folder:
        builder = _Builder(settings, source, folder, unreadable, report)
        with held(folder):  # so that a later command knows whether it is still being made
            splits = builder.write_splits(plan)
        builder.report_counts(plan, splits)
        write_json(folder / MANIFEST, builder.manifest(plan, splits).to_value())
        if before is not None and DataSet.open(folder).sha256 != before.sha256:
            raise _exists(output)
        if before is not None:
            report(f"{output}: is there already, with the same contents")
            raise _IsThere
        if force and os.path.lexists(output):
            report(f"warning: --force: what was {output} is now {set_aside(output)}")
    return DataSet.open(output)


class _JustMade(OutputExistsError):
    """Another process has made the output while it was made here."""


class _IsThere(Exception):
    """Ends a build whose result is there already, so that its temporary folder is deleted."""


def _exists(output: Path) -> OutputExistsError:
    return OutputExistsError(f"{output}: exists: give another folder with -o, or --force")


def _open_like(settings: MakeDatasetSettings, output: Path) -> DataSet:
    """The data set that is there, if it may be the one that `settings` describe.

    Raises:
        OutputExistsError: it is something else. That is told at once where the manifest says so.
    """
    try:
        data = DataSet.open(output)
    except InputError:
        raise _exists(output) from None
    found = data.manifest
    if (found.dist, found.seed) != (settings.dist, settings.seed) or found.mu not in (None, settings.mu):
        raise _exists(output)
    return data


@contextlib.contextmanager
def _report_concurrent_build(output: Path, before: DataSet | None) -> Iterator[None]:
    """Convert the error if another process has created `output`, where nothing was before. It is left unchanged."""
    try:
        yield
    except DiskError as error:
        if before is not None or not output.exists():
            raise
        raise _JustMade(f"{output}: another process has just made it") from error


@dataclass(frozen=True)
class _Plan:
    """The number of images of each class: in the source, in the distribution, and in train and val together."""

    available: list[int]
    shares: list[int]
    counts: list[int]


def _plan_classes(settings: MakeDatasetSettings, source: Source, some_are_bad: bool) -> _Plan:
    """Compute the number of images of each class. Check it before anything is written."""
    if len(source.class_names) == 1:
        only = f"has a single class, '{printable(source.class_names[0])}', and there is nothing to tell it from"
        mend = "give a source of several"
        if settings.source.name == "folder":
            mend = "--root should be the folder of the class folders, and may be one level too high or too deep"
        raise InputError(f"{where(settings)}: {only}: {mend}")
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
    shares = class_shares(*profile)
    if min(shares) < 1:
        empty = printable(source.class_names[shares.index(min(shares))])
        raise InputError(
            f"{where(settings)}: class '{empty}' would get no images of {max(shares)} in the largest class "
            f"({_flags(settings)}): raise {_ways_to_grow(settings)}"
        )
    return _Plan(available, shares, class_counts(*profile))


@dataclass
class _Builder:
    """Writes the splits of one data set."""

    settings: MakeDatasetSettings
    source: Source
    folder: Path
    unreadable: UnreadableImages
    report: Callable[[str], None]

    def __post_init__(self) -> None:
        side = self.source.image_size
        self.image_shape = (side, side, self.source.channels)
        self.contents: dict[str, Contents] = {}  # of what has been written, `train` first

    def _writer(self, split: str) -> ShardWriter:
        return ShardWriter(self.folder, split, self.image_shape, int(self.settings.shard_mb * 2**20))

    def write_splits(self, plan: _Plan) -> dict[str, SplitInfo]:
        """Write all splits."""
        splits = self.write_train(plan)
        splits |= {name: self.write_whole(name) for name in ("val", "test") if name in self.source.splits}
        return splits | {"test_longtail": self.write_longtail_test(splits["train"].counts, splits["test"])}

    def write_train(self, plan: _Plan) -> dict[str, SplitInfo]:
        """Write train, and val if it is cut from train, class by class in a random order that depends on the seed."""
        split = self.source.splits["train"]
        writers = {"train": self._writer("train")}
        if self.settings.val_share:
            writers["val"] = self._writer("val")
        kept: dict[str, list[int]] = {name: [] for name in writers}
        num_in_val = val_counts(plan.counts, self.settings.val_share)
        for label, (count, num_val) in enumerate(zip(plan.counts, num_in_val, strict=True)):
            places = np.flatnonzero(split.labels == label)
            order = iter(class_order(places, self.settings.seed, "train", label).tolist())
            for name, number in (("train", count - num_val), ("val", num_val)):
                if name in writers:
                    kept[name].append(self._take(split, order, number, writers[name]))
        split.release()
        return {name: self._finish(name, kept[name], writer) for name, writer in writers.items()}

    def write_whole(self, name: str) -> SplitInfo:
        """Write all images of a split in the order of the source."""
        split, writer = self.source.splits[name], self._writer(name)
        kept = [0] * len(self.source.class_names)
        for index in range(len(split)):
            kept[split.labels[index]] += self._take(split, iter([index]), 1, writer)
        split.release()
        return self._finish(name, kept, writer)

    def _take(self, split: SourceSplit, order: Iterator[int], count: int, writer: ShardWriter) -> int:
        """Write the next `count` readable images of `order`, and return how many there were."""
        taken = 0
        while taken < count and (index := next(order, None)) is not None:
            try:
                image = split.read(index)
            except BadImage as bad:
                self.unreadable.add(bad)
                continue
            label = int(split.labels[index])
            writer.add(image, label, int(split.source_index[index]))
            self.contents.setdefault(writer.split, Contents()).add(image, label, index)
            taken += 1
        return taken

    def _finish(self, name: str, kept: list[int], writer: ShardWriter) -> SplitInfo:
        if name != "val" and 0 in kept:
            empty = printable(self.source.class_names[kept.index(0)])
            raise InputError(f"{where(self.settings)}: class '{empty}' has no readable {name} images: add whole ones")
        return SplitInfo(counts=kept, shards=writer.close())

    def write_longtail_test(self, train_counts: list[int], info: SplitInfo) -> SplitInfo:
        """Write test images with the training profile from the test split on disk, which avoids decoding them again."""
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
        """Report how many images are kept, why others are not, and which classes are small."""
        train = splits["train"].counts
        origins = {name: self.source.splits.get(name, self.source.splits["train"]) for name in self.contents}
        for line in describe_duplicates(self.contents, origins):  # a val split that the source lacks is part of train
            self.report(line)
        reasons = []
        if spare := sum(plan.available) - sum(plan.counts):
            reasons.append(f"{spare} left out by {_flags(self.settings)}")
        if self.settings.val_share:
            reasons.append(f"{sum(splits['val'].counts)} in val (--val-share {self.settings.val_share:g})")
        why = f": {', '.join(reasons)}" if reasons else ""
        self.report(f"train: {sum(train)} of {sum(plan.available)} images kept{why}")
        if self.unreadable.count:
            self.report(f"warning: left out {self.unreadable.count} images that could not be read")
        if short := self._short_classes(plan, splits):
            named = [f"'{printable(item.name)}' {item.kept} of {item.share}" for item in short]
            self.report(
                f"classes with fewer images than their share keep what they have: {first_of(named, MOST_NAMED)}"
            )
        for can_grow in (True, False):
            classes = [
                f"'{printable(name)}'"
                for name, count, has in zip(self.source.class_names, train, plan.available, strict=True)
                if count == 1 and (has > 1) == can_grow
            ]
            if classes:
                mend = f"raise {_ways_to_grow(self.settings)}" if can_grow else "add images, or take the class away"
                self.report(
                    f"warning: 1 training image in class {first_of(classes, MOST_NAMED)}: a search divides the "
                    f"training images of each class and needs 2: {mend}"
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
        """The manifest of the splits that have been written."""
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
            "skipped": Skipped(count=self.unreadable.count, files=self.unreadable.names),
            "pixel_range": None if self.source.pixel_range == "auto" else self.source.pixel_range,
            "splits": splits,
        }
        return Manifest.model_validate(value)


def _flags(settings: MakeDatasetSettings) -> str:
    """The flags because of which training images are left out."""
    flags = [f"--dist {settings.dist}"]
    if settings.dist in ("step", "exp"):
        flags.append(f"--mu {settings.mu:g}")
    if settings.max_per_class:
        flags.append(f"--max-per-class {settings.max_per_class}")
    return ", ".join(flags)


def _ways_to_grow(settings: MakeDatasetSettings) -> str:
    """The flags that give a class more of the images that it has."""
    return "--mu or --max-per-class" if settings.dist in ("step", "exp") else "--max-per-class"


def _chunks(places: np.ndarray, image_shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """Divide `places` into parts whose images take at most CHUNK_BYTES."""
    rows = max(1, CHUNK_BYTES // math.prod(image_shape))
    for start in range(0, len(places), rows):
        yield places[start : start + rows]


def _mean_std(split: Split) -> tuple[list[float], list[float]]:
    """The mean and standard deviation of each channel over all pixels, on a scale of 0 to 1, to 6 digits.

    Pixels are counted by value and summed as integers, so the result is exact and does not depend on the order.
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
        std.append(deviation or 1.0)  # a constant channel is divided by 1 and becomes 0
    return mean, std
