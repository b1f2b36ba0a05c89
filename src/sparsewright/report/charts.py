"""Charts as still SVG: drawn by altair when the report is written, coloured by the page's own variables.

Every chart is drawn twice, for a wide page and for a phone, and carries no script, no font and no address. Where altair
is not installed the page says so and its tables hold the same figures.
"""

import re
from typing import Any

from .document import Chart, Key
from .schema import FrontPoint, Interval
from .units import NOT_MEASURED, points, seconds, signed_points, size, times

MISSING = "Chart not drawn: install sparsewright[report]. The table below holds the same figures."

WIDE, NARROW = 760, 320

# Stand-in colours that occur nowhere else; the page replaces them by variables, so light and dark share one drawing.
_INK = {
    "ink": "#010a01",
    "quiet": "#010a02",
    "line": "#010a03",
    "accent": "#010a04",
    "warm": "#010a05",
    "cool": "#010a06",
    "bad": "#010a07",
    "card": "#010a08",
}

_KINDS = {"search": ("cool", "circle"), "uniform": ("warm", "square"), "baseline": ("quiet", "triangle-up")}
_KIND_KEYS = {
    "search": Key("cool", "circle", "searched plan"),
    "uniform": Key("warm", "square", "uniform plan"),
    "baseline": Key("quiet", "triangle", "baseline"),
}


def front_chart(front: list[FrontPoint], dense_quality: float | None, allowed_drop: float | None) -> Chart:
    """Quality against time of every plan; hollow marks are predicted only, the chosen one is ringed."""
    rows = _front_rows(front, dense_quality)
    rows, note = _near(rows, dense_quality, allowed_drop)
    description = f"Quality against latency of {len(rows)} plans."
    if len(rows) < 2:
        return Chart("", "", description, missing="Fewer than two plans have a known quality, so no chart is drawn.")
    floor = None
    if dense_quality is not None and allowed_drop is not None:
        floor = 100 * (dense_quality - allowed_drop)
    legend = [key for kind, key in _KIND_KEYS.items() if any(row["kind"] == kind for row in rows)]
    if not all(row["evaluated"] for row in rows):
        legend.append(Key("quiet", "hollow", "quality predicted only"))
    if any(row["chosen"] for row in rows):
        legend.append(Key("accent", "ring", "chosen"))
    if any(row["measured"] is not None and row["measured"] != row["time"] for row in rows):
        legend.append(Key("ink", "tick", "its measured time"))
    if floor is not None:
        legend.append(Key("bad", "dash", "least quality allowed"))
    return _drawn(lambda width: _front_spec(rows, floor, width), description, tuple(legend), note)


def interval_chart(marks: list[tuple[str, float, Interval | None]], allowed_drop: float | None) -> Chart:
    """Change of quality of every split and slice, with its interval.

    Args:
        marks: name, drop (fraction, positive means lost), interval of the drop.
        allowed_drop: the budget, or None.
    """
    rows = []
    for name, drop, interval in marks:
        low, high = interval if interval is not None else (drop, drop)
        text = f"{name}: {signed_points(drop)} points ({signed_points(high)} to {signed_points(low)})"
        rows.append({"name": name, "change": -100 * drop, "low": -100 * high, "high": -100 * low, "text": text})
    legend = [Key("accent", "circle", "change, with 95 % interval")]
    if allowed_drop is not None:
        legend.append(Key("bad", "dash", "budget"))
    description = "Change of quality in points per split and slice, with 95 % intervals."
    return _drawn(lambda width: _interval_spec(rows, allowed_drop, width), description, tuple(legend))


def _front_rows(front: list[FrontPoint], dense_quality: float | None) -> list[dict[str, Any]]:
    rows = []
    for point in front:
        # Plans are compared on one footing, the predicted time; what was measured is drawn beside it.
        time = point.predicted_s if point.predicted_s is not None else point.measured_s
        drop = point.drop if point.drop is not None else point.predicted_drop
        quality = point.quality
        if quality is None and drop is not None and dense_quality is not None:
            quality = dense_quality - drop
        if time is None or quality is None:
            continue
        evaluated = point.quality is not None or point.drop is not None
        kind = point.kind if point.kind in _KINDS else "search"
        how = "predicted" if point.predicted_s is not None else "measured"
        if point.measured_s is not None and point.predicted_s is not None:
            how += f" ({seconds(point.measured_s)} measured)"
        speed = times(point.predicted_speedup) if point.predicted_speedup is not None else NOT_MEASURED
        text = (
            f"{point.label}: {points(quality)} points{'' if evaluated else ' predicted'}, {seconds(time)} {how}, "
            f"predicted speed-up {speed}, {size(point.size_bytes)}"
        )
        rows.append(
            {
                "time": 1e3 * time,
                "measured": None if point.measured_s is None else 1e3 * point.measured_s,
                "quality": 100 * quality,
                "kind": kind,
                "evaluated": evaluated,
                "chosen": point.chosen,
                "text": text,
                "label": point.label,
            }
        )
    return rows


def _near(
    rows: list[dict[str, Any]], dense_quality: float | None, allowed_drop: float | None
) -> tuple[list[dict[str, Any]], str]:
    """Leave out plans so far below everything of interest that they would flatten the rest, and say so."""
    if dense_quality is None:
        return rows, ""
    chosen = [100 * dense_quality - row["quality"] for row in rows if row["chosen"]]
    reach = max([2.0, 400 * (allowed_drop or 0.0), *(2 * drop for drop in chosen)])
    near = [row for row in rows if row["quality"] >= 100 * dense_quality - reach]
    left = len(rows) - len(near)
    note = f"{left} plans that lose more than {reach:.1f} points lie below the chart; they stand in the table."
    return near, note if left else ""


def _front_spec(rows: list[dict[str, Any]], floor: float | None, width: int) -> Any:
    import altair as alt

    kinds = list(_KINDS)
    colours = alt.Scale(domain=kinds, range=[_INK[_KINDS[kind][0]] for kind in kinds])
    shapes = alt.Scale(domain=kinds, range=[_KINDS[kind][1] for kind in kinds])
    x = alt.X("time:Q", title="predicted latency, ms", scale=alt.Scale(zero=False, padding=18))
    y = alt.Y("quality:Q", title="quality, points", scale=alt.Scale(zero=False, padding=18))
    data = alt.Data(values=rows)
    base = alt.Chart(data)
    hollow = alt.value(_INK["card"])
    layers = []
    if floor is not None:
        rule = alt.Chart(alt.Data(values=[{"quality": floor}]))
        layers.append(rule.mark_rule(color=_INK["bad"], strokeDash=[5, 4]).encode(y="quality:Q"))
    best = _not_dominated([row for row in rows if row["kind"] == "search"])
    if len(best) > 1:
        path = alt.Chart(alt.Data(values=best)).mark_line(color=_INK["cool"], opacity=0.45, strokeWidth=1.5)
        layers.append(path.encode(x="time:Q", y="quality:Q", order="time:Q"))
    layers.append(
        base.mark_point(filled=True, size=62, opacity=0.92, strokeWidth=1.6).encode(
            x=x,
            y=y,
            fill=alt.condition("datum.evaluated", alt.Fill("kind:N", scale=colours, legend=None), hollow),
            stroke=alt.Stroke("kind:N", scale=colours, legend=None),
            shape=alt.Shape("kind:N", scale=shapes, legend=None),
            description="text:N",
        )
    )
    timed = alt.Chart(alt.Data(values=[row for row in rows if row["measured"] is not None]))
    reach = timed.mark_rule(color=_INK["ink"], strokeWidth=1.2).encode(x="time:Q", x2="measured:Q", y="quality:Q")
    end = timed.mark_tick(color=_INK["ink"], thickness=3, size=13, orient="vertical", opacity=1)
    layers += [reach, end.encode(x="measured:Q", y="quality:Q")]
    chosen = alt.Chart(alt.Data(values=[row for row in rows if row["chosen"]]))
    ring = chosen.mark_point(filled=False, size=240, strokeWidth=2.5, color=_INK["accent"], shape="circle")
    layers.append(ring.encode(x="time:Q", y="quality:Q", description="text:N"))
    name = chosen.mark_text(dy=-17, fontSize=12, fontWeight="bold", color=_INK["accent"])
    layers.append(name.encode(x="time:Q", y="quality:Q", text=alt.value("chosen")))
    return alt.layer(*layers).properties(width=width, height=300 if width == WIDE else 250)


def _interval_spec(rows: list[dict[str, Any]], allowed_drop: float | None, width: int) -> Any:
    import altair as alt

    data = alt.Data(values=rows)
    y = alt.Y("name:N", title=None, sort=None, axis=alt.Axis(labelLimit=110 if width == NARROW else 260, ticks=False))
    x = alt.X(
        "low:Q",
        title="change, points",
        scale=alt.Scale(padding=12),
        axis=alt.Axis(tickCount=4 if width == NARROW else 7),
    )
    zero = alt.Chart(alt.Data(values=[{"at": 0.0}])).mark_rule(color=_INK["ink"], opacity=0.6).encode(x="at:Q")
    layers = [zero]
    if allowed_drop is not None:
        edge = alt.Chart(alt.Data(values=[{"at": -100 * allowed_drop}]))
        layers.append(edge.mark_rule(color=_INK["bad"], strokeDash=[5, 4]).encode(x="at:Q"))
    bars = alt.Chart(data).mark_rule(color=_INK["accent"], strokeWidth=2, opacity=0.75)
    layers.append(bars.encode(x=x, x2="high:Q", y=y))
    dots = alt.Chart(data).mark_point(filled=True, size=60, color=_INK["accent"], opacity=1)
    layers.append(dots.encode(x="change:Q", y=y, description="text:N"))
    return alt.layer(*layers).properties(width=width - 120, height=26 * len(rows))


def _not_dominated(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that no other row beats in both time and quality, by time."""
    best: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["time"], -row["quality"])):
        if not best or row["quality"] > best[-1]["quality"]:
            best.append(row)
    return best


def _drawn(spec: Any, description: str, legend: tuple[Key, ...], note: str = "") -> Chart:
    """Draw both widths, or a chart that says what to install."""
    try:
        wide, narrow = (_svg(spec(width), description) for width in (WIDE, NARROW))
    except ImportError:
        return Chart("", "", description, legend, missing=MISSING)
    return Chart(wide, narrow, description, legend, note)


def _svg(chart: Any, description: str) -> str:
    """One chart as inline SVG with the page's colours and font; hover texts become `<title>`."""
    import vl_convert

    styled = chart.configure(font="sans-serif", background="transparent").configure_view(stroke=None)
    styled = styled.configure_axis(
        labelColor=_INK["quiet"],
        titleColor=_INK["quiet"],
        titleFontWeight="normal",
        gridColor=_INK["line"],
        domainColor=_INK["line"],
        tickColor=_INK["line"],
        labelFontSize=12,
        titleFontSize=12,
        titlePadding=10,
        tickCount=6,
    )
    text: str = vl_convert.vegalite_to_svg(styled.to_json())
    return recolour(text, description)


def recolour(svg: str, description: str) -> str:
    """Make an SVG of vega part of the page.

    Args:
        svg: as vl-convert returns it, with the stand-in colours.
        description: what a screen reader says; must not hold markup.

    Returns:
        The SVG without name spaces and fixed fonts, its colours as CSS variables, hover texts as `<title>`.
    """
    for name, stand_in in _INK.items():
        svg = re.sub(stand_in, f"var(--{name})", svg, flags=re.IGNORECASE)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r' font-family="[^"]*"', "", svg)
    # Only drawn marks carry a text of ours; vega's own labels for axes stay attributes.
    svg = re.sub(
        r'<path aria-label="([^"]*)" role="graphics-symbol"([^>]*)/>',
        r'<path role="graphics-symbol"\2><title>\1</title></path>',
        svg,
    )
    return svg.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)
