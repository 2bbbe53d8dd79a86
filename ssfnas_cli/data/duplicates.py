"""Images that a data set holds more than once: in two of its splits, which is leakage, or within train.

Images are compared by a hash of the pixels that are written, so copies under other names, and other files of the same
pixels, are found. Images that were merely resized or compressed again are not.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ssfnas_cli.console import printable
from ssfnas_cli.data.sources.base import SourceSplit


def fingerprint(data: bytes | memoryview) -> int:
    """A hash of 64 bits. Among a million different things, two agree by chance with a probability of 3e-8."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


class Contents:
    """The fingerprints of the images of a split, in the order in which they were written: 24 bytes an image."""

    def __init__(self) -> None:
        self._hashes, self._labels, self._places = array("Q"), array("q"), array("q")

    def add(self, image: NDArray[np.uint8], label: int, place: int) -> None:
        """Add an image, uint8 [H, W, C]; `place` is its position in the split of the source."""
        self._hashes.append(fingerprint(np.ascontiguousarray(image).data))
        self._labels.append(label)
        self._places.append(place)

    def __len__(self) -> int:
        return len(self._hashes)

    @property
    def hashes(self) -> NDArray[np.uint64]:
        return np.array(self._hashes, np.uint64)

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.array(self._labels, np.int64)

    @property
    def places(self) -> NDArray[np.int64]:
        return np.array(self._places, np.int64)


def describe_duplicates(contents: Mapping[str, Contents], origins: Mapping[str, SourceSplit]) -> list[str]:
    """Lines for the user about the images that are in two splits, or twice in train.

    Args:
        contents: of each split that was written, `train` first.
        origins: the split of the source that each was written from, which knows the names of its images.
    """
    lines = []
    for first, second in combinations(contents, 2):
        lines += _describe_leakage(first, second, contents, origins)
    return lines + _describe_repeats(contents["train"], origins["train"])


def _describe_leakage(
    first: str, second: str, contents: Mapping[str, Contents], origins: Mapping[str, SourceSplit]
) -> list[str]:
    """A warning that counts the images of `second` that are in `first`, too."""
    hashes, others = contents[first].hashes, contents[second].hashes
    order = np.argsort(hashes, kind="stable")
    found = np.searchsorted(hashes, others, sorter=order)
    twins = order[np.minimum(found, len(order) - 1)]  # for each image of `second`, its first equal in `first`
    shared = np.flatnonzero(hashes[twins] == others)
    if not len(shared):
        return []
    differ = int((contents[first].labels[twins[shared]] != contents[second].labels[shared]).sum())
    here, there = int(shared[0]), int(twins[shared[0]])
    example = (
        f"{printable(origins[second].name(int(contents[second].places[here])))} in {second}, "
        f"{printable(origins[first].name(int(contents[first].places[there])))} in {first}"
    )
    as_other = f" ({differ} of them as another class)" if differ else ""
    return [
        f"warning: {len(shared)} of {len(others)} images in {second} are in {first}, too, pixel for pixel{as_other}: "
        f"for example {example}. Figures on {second} will look better than they are: remove the copies, from one split "
        "or altogether"
    ]


def _describe_repeats(train: Contents, origin: SourceSplit) -> list[str]:
    """How many images of train repeat another one, under its label or under another."""
    hashes, labels = train.hashes, train.labels
    order = np.lexsort((np.arange(len(hashes)), hashes))
    if len(order) < 2:
        return []
    is_repeat = np.diff(hashes[order]) == 0
    if not is_repeat.any():
        return []
    group = np.concatenate([[0], np.cumsum(~is_repeat)])
    lowest, highest = np.full(group[-1] + 1, np.iinfo(np.int64).max), np.full(group[-1] + 1, -1)
    np.minimum.at(lowest, group, labels[order])
    np.maximum.at(highest, group, labels[order])
    in_conflict = (lowest < highest)[group]
    lines = []
    if repeats := int((is_repeat & ~in_conflict[1:]).sum()):
        lines.append(f"{repeats} images in train repeat another one of their class, pixel for pixel")
    if in_conflict.any():
        members = order[in_conflict & (group == group[np.argmax(in_conflict)])]
        other = members[np.argmax(labels[members] != labels[members[0]])]
        names = [printable(origin.name(int(train.places[place]))) for place in (members[0], other)]
        lines.append(
            f"warning: {int(in_conflict.sum())} images in train are there under more than one class, pixel for pixel: "
            f"for example {names[0]} and {names[1]}: leave each in one class"
        )
    return lines


def describe_alike_names(class_names: Sequence[str]) -> list[str]:
    """A warning for the user if names of classes differ by case alone, as copies from several systems do."""
    spellings: dict[str, list[str]] = {}
    for name in class_names:
        spellings.setdefault(name.casefold(), []).append(f"'{printable(name)}'")
    alike = [" and ".join(names) for names in spellings.values() if len(names) > 1]
    if not alike:
        return []
    more = f" (and {len(alike) - 1} more)" if len(alike) > 1 else ""
    return [f"warning: classes {alike[0]} differ by case alone{more}: if they are one class, give it one name"]
