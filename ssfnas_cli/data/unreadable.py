"""What becomes of images that cannot be read: an error, or they are left out and counted (`on_bad`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ssfnas_cli.data.images import BadImage
from ssfnas_cli.data.sources.base import PartOfSplit, Source, SourceSplit, where
from ssfnas_cli.errors import InputError

if TYPE_CHECKING:
    from ssfnas_cli.settings import MakeDatasetSettings

MAX_NAMED = 20  # images that are named in the manifest and in warnings


class UnreadableImages:
    """Handles unreadable images: raises an error for them or skips and counts them, as `on_bad` says."""

    def __init__(self, settings: MakeDatasetSettings, report: Callable[[str], None]):
        self.settings, self.report = settings, report
        self.count = 0
        self.names: list[str] = []

    def add(self, bad: BadImage) -> None:
        """Raise an error for an unreadable image, or count it."""
        if self.settings.on_bad == "fail":
            raise InputError(
                f"{where(self.settings)}: {bad}: mend or remove it, or leave such out with --set on_bad=skip"
            ) from bad
        self.count += 1
        if self.count <= MAX_NAMED:
            self.names.append(bad.name)
            self.report(f"warning: left out {bad}")

    def remove_from(self, source: Source) -> None:
        """Remove unreadable images from the splits of a source.

        With `on_bad=skip`, every image is read, because the class sizes of the distribution count readable images only.
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
