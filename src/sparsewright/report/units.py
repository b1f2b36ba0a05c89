"""How numbers read: three significant digits, units a person uses, a true minus sign, one text for what is missing."""

NOT_MEASURED = "not measured"

_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, never in exponents, thousands grouped."""
    if value == 0:
        return "0"
    magnitude = abs(value)
    places = digits - 1
    while magnitude >= 10 and places > 0:
        magnitude /= 10
        places -= 1
    while 0 < magnitude < 1 and places < 12:
        magnitude *= 10
        places += 1
    return minus(f"{value:,.{places}f}")


def minus(text: str) -> str:
    """The text with a typographic minus."""
    return text.replace("-", "−")


def seconds(value: float | None) -> str:
    """`3.42 ms`, `118 µs`, `1.27 s`, `8 min 12 s`."""
    if value is None:
        return NOT_MEASURED
    if abs(value) >= 120:
        whole = round(value)
        return f"{whole // 60} min {whole % 60:02d} s"
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if abs(value) >= unit:
            return f"{significant(value / unit)} {name}"
    return f"{significant(value / 1e-6)} µs"


def size(value: float | None) -> str:
    """`45.3 MB`, decimal units."""
    if value is None:
        return NOT_MEASURED
    for unit, name in _BYTES:
        if abs(value) >= unit:
            return f"{significant(value / unit)} {name}"
    return f"{value:.0f} B"


def times(value: float | None) -> str:
    """`1.52×`."""
    return NOT_MEASURED if value is None else f"{value:.2f}×"


def points(value: float | None, digits: int = 2) -> str:
    """A quality fraction as points: 0.692 reads `69.20`."""
    return NOT_MEASURED if value is None else minus(f"{100 * value:.{digits}f}")


def signed_points(value: float | None) -> str:
    """A change of quality, with its sign: a drop of 0.013 reads `−1.30`."""
    if value is None:
        return NOT_MEASURED
    change = round(-100 * value, 2)
    return minus(f"{change:+.2f}") if change else "0.00"


def percent(value: float | None, digits: int = 0) -> str:
    """`42 %`."""
    return NOT_MEASURED if value is None else minus(f"{100 * value:.{digits}f} %")


def money(value: float, currency: str) -> str:
    """`12.40 EUR`."""
    amount = f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"
    return minus(f"{amount} {currency}".strip())


def count(value: float | None) -> str:
    """`22,713,216`."""
    return NOT_MEASURED if value is None else f"{value:,.0f}"


def hours(value: float) -> str:
    """A stretch of time in the unit people plan with."""
    for length, name in ((24 * 365.25, "years"), (24 * 30.44, "months"), (24.0, "days")):
        if value >= 2 * length:
            return f"{significant(value / length, 2)} {name}"
    return f"{significant(value, 2)} hours"
