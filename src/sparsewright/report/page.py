"""The report as one HTML file: no script, no address, nothing fetched; every text is escaped on its way in.

A content policy in the file forbids scripts and requests outright, so a hostile layer name stays a name.
"""

import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any

from .document import Block, Cell, Chart, Document, Fact, Section, Table, Text

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def element(name: str, inside: str = "", **attributes: str | bool | None) -> str:
    """One element; attribute values are escaped, `inside` must be markup already.

    A trailing underscore is dropped from attribute names (`class_`), other underscores become hyphens; None and False
    leave the attribute out.
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value not in (None, False, "")
    )
    return f"<{name}{written}>{inside}</{name}>"


def render_page(document: Document, results: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        document: what to show.
        results: the raw results, put at the end of the page as readable JSON.
    """
    style = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    links = "".join(
        element("a", escape(section.short or section.title), href=f"#{section.anchor}") for section in document.sections
    )
    raw = element("summary", "Raw results (JSON)") + element(
        "pre", escape(json.dumps(results, indent=1, ensure_ascii=False)), id="results"
    )
    body = (
        _first_screen(document)
        + element("nav", links, aria_label="Sections")
        + element("main", "".join(_section(section) for section in document.sections))
        + element("details", raw, class_="raw")
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(document.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _first_screen(document: Document) -> str:
    first, *rest = document.headline
    under = element("p", escape(document.under), class_="under")
    title = element("h1", escape(first))
    others = "".join(element("p", escape(sentence)) for sentence in rest)
    facts = element("dl", "".join(_fact(fact) for fact in document.facts), class_="facts") if document.facts else ""
    return element(
        "header", under + title + element("div", others, class_="more") + facts, class_=document.verdict or None
    )


def _fact(fact: Fact) -> str:
    detail = element("dd", escape(fact.detail), class_="detail") if fact.detail else ""
    figure = element("dd", escape(fact.value), class_="figure")
    return element("div", element("dt", escape(fact.label)) + figure + detail, class_=fact.tone or None)


def _section(section: Section) -> str:
    blocks = "".join(_block(block) for block in section.blocks)
    return element("section", element("h2", escape(section.title)) + blocks, id=section.anchor)


def _block(block: Block) -> str:
    match block:
        case Text():
            return element("p", escape(block.text), class_=f"notice {block.tone}" if block.tone else None)
        case Table():
            return _table(block)
        case Chart():
            return _chart(block)


def _chart(chart: Chart) -> str:
    if chart.missing:
        return element("p", escape(chart.missing), class_="notice quiet")
    keys = "".join(
        element("li", element("i", "", class_=key.form, style=f"color:var(--{key.colour})") + escape(key.label))
        for key in chart.legend
    )
    drawings = element("div", chart.wide, class_="wide") + element("div", chart.narrow, class_="narrow")
    legend = element("ul", keys, class_="legend") if keys else ""
    note = element("figcaption", escape(chart.note)) if chart.note else ""
    return element("figure", legend + drawings + note)


def _table(table: Table) -> str:
    head = "".join(
        element("th", escape(column.title), scope="col", class_="number" if column.numeric else None, title=column.hint)
        for column in table.columns
    )
    rows = "".join(
        element(
            "tr",
            "".join(_cell(part, column.numeric, i == 0) for i, (part, column) in enumerate(zip(row, table.columns))),
            class_="strong" if index in table.strong else None,
        )
        for index, row in enumerate(table.rows)
    )
    heads = element("thead", element("tr", head)) if any(column.title for column in table.columns) else ""
    grid = element("table", heads + element("tbody", rows), class_="heat" if table.heat else None)
    scroll = element("div", grid, class_="scroll", tabindex="0", role="region", aria_label=table.caption or "table")
    if table.folded:
        return element("details", element("summary", escape(table.caption)) + scroll)
    caption = element("p", escape(table.caption), class_="caption") if table.caption else ""
    return caption + _scale(table) + scroll


def _scale(table: Table) -> str:
    if not (table.heat and any(table.legend)):
        return ""
    low, high = (escape(text) for text in table.legend)
    return element("p", f"{low} {element('i')} {high}", class_="scale", aria_hidden="true")


def _cell(part: Cell, numeric: bool, head: bool) -> str:
    inside = escape(part.text)
    if part.code:
        inside = element("code", inside)
    style = None
    if part.bar is not None:
        inside += element("i", "", class_="bar", style=f"width:{100 * min(1.0, max(0.0, part.bar)):.0f}%")
    if part.heat is not None:
        style = f"--heat:{100 * min(1.0, max(0.0, part.heat)):.0f}%"
    kinds = ["number"] if numeric else []
    kinds += [part.tone] if part.tone else []
    kinds += ["chosen"] if part.chosen else []
    kinds += ["hot"] if part.heat is not None else []
    return element(
        "th" if head else "td",
        inside,
        scope="row" if head else None,
        class_=" ".join(kinds),
        style=style,
        title=part.hint,
    )
