"""Where images come from: one file a source, found by its name in the registry `SOURCES`.

A source is a factory `(options, settings) -> Source` (see `base`) with a decorator:

    @SOURCES.register("slides", options=SlidesOptions, facts=SourceFacts(root="a folder of slides"))
    def open_slides(options, settings): ...

A package brings one by an entry point of the group `ssfnas.sources`. Importing this module imports no source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from registry import REGISTRIES, Registry

if TYPE_CHECKING:
    from ssfnas_cli.data.sources.base import Source


@dataclass(frozen=True)
class SourceFacts:
    """What must be known of a source before it is opened.

    Attributes:
        root: what `--root` has to name, in words. Empty: the source reads no root. None: a root may be given.
        imbalanced: whether the classes differ in size by nature. `--dist auto` then keeps their profile, and `exp` and
            `step` go from the largest class to the smallest. Otherwise `auto` is `exp`, in the order of the classes.
    """

    root: str | None = None
    imbalanced: bool = True


SOURCES: Registry[Source] = Registry(
    "source",
    "ssfnas.sources",
    {
        "ssfnas_cli.data.sources.arrays": ("digits", "cifar10", "cifar100"),
        "ssfnas_cli.data.sources.folder": ("folder",),
        "ssfnas_cli.data.sources.npz": ("npz",),
    },
    default_facts=SourceFacts(),
)
REGISTRIES[SOURCES.kind] = SOURCES  # settings and `ssfnas plugins` look every kind up there
