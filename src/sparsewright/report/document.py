"""The report before it has a form: sections of paragraphs, tables and charts, for HTML and Markdown alike."""

from dataclasses import dataclass
from typing import Literal, final

Tone = Literal["", "good", "bad", "quiet"]


@final
@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what it says.
        tone: good or bad news, or quiet (missing).
        hint: a longer text, shown on hover.
        bar: 0..1, length of a bar drawn under the text.
        heat: 0..1, strength of the background.
        chosen: outlined.
        code: set in a fixed-width face (names of layers and patterns).
    """

    text: str
    tone: Tone = ""
    hint: str = ""
    bar: float | None = None
    heat: float | None = None
    chosen: bool = False
    code: bool = False


@final
@dataclass(frozen=True)
class Column:
    """Head of a column; numbers are set flush right."""

    title: str
    numeric: bool = True
    hint: str = ""


@final
@dataclass(frozen=True)
class Table:
    """Rows of cells.

    Attributes:
        strong: indices of rows that stand out (ours).
        folded: shown closed behind its caption where the form allows it.
        heat: a heat map: narrow cells, its colours explained by `legend`.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    strong: frozenset[int] = frozenset()
    folded: bool = False
    heat: bool = False
    legend: tuple[str, str] = ("", "")


@final
@dataclass(frozen=True)
class Text:
    """A paragraph; `tone` makes it a notice."""

    text: str
    tone: Tone = ""


@final
@dataclass(frozen=True)
class Key:
    """One entry of a chart's legend: a colour of the page, the form of its mark, what it means."""

    colour: str
    form: Literal["circle", "square", "triangle", "hollow", "ring", "tick", "dash"]
    label: str


@final
@dataclass(frozen=True)
class Chart:
    """A drawing, as SVG for a wide page and for a phone; both empty means it could not be drawn.

    Attributes:
        legend: marks and their meaning, in order.
        note: one line under the drawing.
        missing: what to say in its place.
    """

    wide: str
    narrow: str
    description: str
    legend: tuple[Key, ...] = ()
    note: str = ""
    missing: str = ""


Block = Table | Text | Chart


@final
@dataclass(frozen=True)
class Fact:
    """One figure of the first screen."""

    value: str
    label: str
    detail: str = ""
    tone: Tone = ""


@final
@dataclass(frozen=True)
class Section:
    """A part of the report under its own heading."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]
    short: str = ""


@final
@dataclass(frozen=True)
class Document:
    """The whole report.

    Attributes:
        headline: sentences, the first one above all.
        verdict: tone of the headline.
        under: one line under the headline (model, machine, date).
    """

    title: str
    headline: tuple[str, ...]
    verdict: Tone
    under: str
    facts: tuple[Fact, ...]
    sections: tuple[Section, ...]


def missing(what: str = "not measured") -> Cell:
    """The cell of a figure that nobody measured."""
    return Cell(what, tone="quiet")


def cell(text: str, absent: bool = False) -> Cell:
    """A plain cell; quiet where the figure is absent."""
    return missing() if absent else Cell(text)
