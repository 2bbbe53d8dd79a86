"""What a page is made of: sections with a title, and the blocks that stand in them. templates/ gives them their looks.

All text is plain text; the page escapes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

LONG = 24  # letters


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Note:
    """Something that is missing or that the reader should mind, and the command that mends it, if there is one."""

    kind: ClassVar[str] = "note"
    text: str
    command: str = ""


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    kind: ClassVar[str] = "items"
    sentences: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Names with a value each."""

    kind: ClassVar[str] = "facts"
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """A table. The first cell of a row is its header; the others are numbers, which end at the right, or words."""

    kind: ClassVar[str] = "table"
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: bool = True

    @property
    def has_long_names(self) -> bool:
        """Whether a row's header is so long that it needs room, even on a narrow screen."""
        return any(len(row[0]) > LONG for row in self.rows)


@dataclass(frozen=True)
class Picture:
    """A picture as an SVG file, with its caption and a text for those who cannot see it.

    `themed`: it takes the ink and the paper of the page, dark or light. A picture that has areas of colour with ink on
    them does not, and stands on white.
    """

    kind: ClassVar[str] = "picture"
    caption: str
    alt: str
    svg: bytes
    themed: bool = True


@dataclass(frozen=True)
class Thumbnail:
    """A small image (`source` is a data URI), a text for those who cannot see it, and the lines below it."""

    source: str
    alt: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Gallery:
    """Thumbnails side by side."""

    kind: ClassVar[str] = "gallery"
    caption: str
    thumbnails: Sequence[Thumbnail]


@dataclass(frozen=True)
class Steps:
    """Commands in their order, with what each does."""

    kind: ClassVar[str] = "steps"
    steps: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away until the reader wants them."""

    kind: ClassVar[str] = "details"
    summary: str
    blocks: Sequence[Block]
    is_open: bool = False


@dataclass(frozen=True)
class Part:
    """Blocks with a heading, within a section."""

    kind: ClassVar[str] = "part"
    title: str
    blocks: Sequence[Block]


Block = Text | Note | Items | Facts | Table | Picture | Gallery | Steps | Details | Part


@dataclass(frozen=True)
class Section:
    """A section of the page; `name` is that of its address within the page."""

    name: str
    title: str
    blocks: Sequence[Block]


def turned_if_wide(table: Table, most: int = 3) -> Table:
    """The table; one of few rows and many columns is turned, since it is easier to read down than across."""
    if len(table.rows) > most or len(table.header) <= len(table.rows) + 2:
        return table
    columns = list(zip(table.header, *table.rows, strict=True))
    return Table(table.caption, columns[0], columns[1:], table.numbers)
