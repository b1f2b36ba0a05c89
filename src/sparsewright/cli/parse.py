"""Texts of options: lists of counts and shapes."""

from ..core import DataError


def counts(text: str) -> list[int]:
    """`1,32` -> [1, 32].

    Raises:
        DataError: not positive whole numbers.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise DataError(f"Give positive whole numbers with a comma between, for instance 1,32; got {text!r}.")
    return [int(part) for part in parts]


def shapes(text: str) -> list[tuple[int, int]]:
    """`768x768,3072x768` -> [(768, 768), (3072, 768)].

    Raises:
        DataError: not of the form OUTxIN.
    """
    found = []
    for part in text.split(","):
        out, x, in_ = part.strip().lower().partition("x")
        if not x or not out.isdigit() or not in_.isdigit() or not int(out) or not int(in_):
            raise DataError(f"A shape is written OUTxIN, for instance 3072x768; got {part.strip()!r}.")
        found.append((int(out), int(in_)))
    return found
