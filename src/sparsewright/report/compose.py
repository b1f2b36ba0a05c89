"""Results -> document: which sections there are, in the order a reader asks for them."""

from collections.abc import Callable

from .document import Document, Section, Text
from .end_table import bytes_section, end_table_section
from .headline import Headline
from .layers import heat_section, layers_section
from .origin import origin_section, timings_section
from .plans import devices_section, front_section
from .quality import quality_section
from .returns import returns_section
from .schema import Results
from .speed import energy_section, latency_section, prediction_section

_PARTS: tuple[tuple[str, Callable[[Results], Section | None]], ...] = (
    ("the side-by-side table", end_table_section),
    ("the front between quality and latency", front_section),
    ("quality", quality_section),
    ("latency and memory", latency_section),
    ("predicted against measured", prediction_section),
    ("bytes", bytes_section),
    ("energy", energy_section),
    ("return on investment", returns_section),
    ("sensitivity of layers", heat_section),
    ("layers", layers_section),
    ("other devices", devices_section),
    ("origin", origin_section),
    ("stage timings", timings_section),
)


def compose(results: Results) -> Document:
    """Put the whole report together; what was not measured is named at its end instead of being left out in silence."""
    found: list[Section] = []
    absent: list[str] = []
    for name, part in _PARTS:
        section = part(results)
        if section is None:
            absent.append(name)
        else:
            found.append(section)
    if absent:
        text = Text(f"Not measured in this run: {', '.join(absent)}.", "quiet")
        found.append(Section("absent", "Not measured", (text,)))
    headline = Headline(results)
    machine = str(results.environment.get("cpu") or "machine not recorded")
    under = " · ".join(part for part in (results.model.source, machine, results.created[:16].replace("T", " ")) if part)
    return Document(
        title=f"{results.model.source}: sparsewright report",
        headline=headline.sentences(),
        verdict=headline.tone(),
        under=under,
        facts=headline.facts(),
        sections=tuple(found),
    )
