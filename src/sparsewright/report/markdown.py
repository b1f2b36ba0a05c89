"""The report as Markdown, and the one page for a meeting."""

import re

from .document import Block, Chart, Document, Table, Text
from .end_table import end_table_section
from .headline import Headline
from .layers import layer_counts
from .returns import returns_section
from .schema import Results
from .units import seconds

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#])")


def escape(text: str) -> str:
    """Text that Markdown shows as it is; neither markup nor HTML survives."""
    return _SPECIAL.sub(r"\\\1", text).replace("&", "&amp;").replace("\n", " ").replace("\r", " ")


def render_markdown(document: Document) -> str:
    """The whole report as GitHub-flavoured Markdown."""
    lines = [f"# {escape(document.headline[0])}", ""]
    for sentence in document.headline[1:]:
        lines += [escape(sentence), ""]
    lines += [f"*{escape(document.under)}*", ""]
    for section in document.sections:
        lines += [f"## {escape(section.title)}", ""]
        for block in section.blocks:
            lines += [*_block(block), ""]
    return "\n".join(lines).rstrip() + "\n"


def _block(block: Block) -> list[str]:
    match block:
        case Text():
            return [f"> **{escape(block.text)}**" if block.tone == "bad" else escape(block.text)]
        case Table():
            return _table(block)
        case Chart():
            return [f"*{escape(block.missing or block.description + ' Drawn in report.html.')}*"]


def _table(table: Table) -> list[str]:
    lines = [escape(table.caption), ""] if table.caption else []
    lines.append("| " + " | ".join(escape(column.title) for column in table.columns) + " |")
    lines.append("| " + " | ".join("---:" if column.numeric else "---" for column in table.columns) + " |")
    for index, row in enumerate(table.rows):
        texts = []
        for part in row:
            text = escape(part.text)
            texts.append(f"**{text}**" if part.text and (index in table.strong or part.chosen) else text)
        lines.append("| " + " | ".join(texts) + " |")
    return lines


def render_summary(results: Results) -> str:
    """One page for a meeting: verdict, end table, return, what to do next."""
    headline = Headline(results)
    sentences = headline.sentences()
    lines = [f"# {results.model.source}", "", *(f"- {sentence}" for sentence in sentences), ""]
    for section in (end_table_section(results), returns_section(results)):
        if section is None:
            continue
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            if isinstance(block, Table):
                lines += [*_plain_table(block), ""]
            elif isinstance(block, Text) and block.tone != "quiet":
                lines += [block.text, ""]
    if results.layers:
        lines.append(layer_counts(results))
    machine = ", ".join(str(results.environment[key]) for key in ("cpu", "threads") if results.environment.get(key))
    if machine:
        lines.append(
            f"Measured on {machine} thread(s)." if results.environment.get("threads") else f"Measured on {machine}."
        )
    if results.timings:
        lines.append(f"The run took {seconds(sum(row.seconds for row in results.timings))}.")
    lines += ["", "## Next step", "", _next_step(headline)]
    return "\n".join(lines).rstrip() + "\n"


def _next_step(headline: Headline) -> str:
    if not headline.batches:
        return "Measure the model end to end before deciding (`sparsewright run`)."
    rivals = headline.faster_rivals()
    if rivals:
        return f"Prefer {rivals[0][0].name} unless the smaller file or another batch size decides otherwise."
    slower = headline.slower_batches()
    if slower and len(slower) < len(headline.batches):
        return f"Use it only where batches other than {', '.join(slower)} are served; there it is no faster than dense."
    if headline.tone() == "bad":
        return "Do not deploy this plan. Allow a longer recovery or a smaller speed-up, then run the recipe again."
    return "Try the bundle on a share of the real load, with `sparsewright verify` before and the dense model at hand."


def _plain_table(table: Table) -> list[str]:
    """Columns padded, so that the table reads in a terminal as well."""
    head = [column.title for column in table.columns]
    body = [[part.text for part in row] for row in table.rows]
    widths = [max(len(text) for text in column) for column in zip(head, *body, strict=True)]
    rule = ["-" * width for width in widths]

    def line(texts: list[str]) -> str:
        cells = (
            text.rjust(width) if column.numeric else text.ljust(width)
            for text, width, column in zip(texts, widths, table.columns, strict=True)
        )
        return "| " + " | ".join(cells) + " |"

    return [line(head), "|-" + "-|-".join(rule) + "-|", *(line(row) for row in body)]
