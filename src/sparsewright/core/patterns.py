"""Patterns: the rule where zeros may be, parsed from text and printed back.

| text | meaning |
| --- | --- |
| `dense` | nothing removed |
| `2:4` | keep 2 of every 4 consecutive weights along `in` |
| `2:4x16` | the same, 16 consecutive outputs share one choice |
| `2:4t` | transposable: 2 of 4 in every row and every column of each 4x4 tile |
| `2:4tx4` | the same by blocks of 4x4 weights: 2 of 4 in every row and column of each tile of 4x4 blocks |
| `3:6:4` | n:m:g of STen (arXiv:2304.07613): n of every m consecutive outputs per column, patterns used by g columns |
| `10%` | unstructured, density 0.10 of the layer |
| `4x1@50%` | blocks of 4 rows x 1 column, density 0.50 of the blocks of every row group, anywhere |

A pattern bounds what may be kept: a mask that keeps less still obeys it. So `1:4 <= 2:4 <= dense`. Groups that the end
of a matrix cuts off keep at most as much as whole ones.
"""

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Literal, Self, final, get_args

import torch
from torch import Tensor
from torch.nn import functional

from .errors import PatternError
from .grouped import MOST_PATTERNS, assign_patterns, mask_of_patterns, row_blocks
from .numeric import is_whole

Shape = tuple[int, int]
# Groups and tiles that the end of a matrix cuts off: refused, kept to at most as much as whole ones, or left dense.
Edge = Literal["error", "at_most", "dense"]

# Index bits of a ragged column: a local column in a block of 256 takes 8 bits.
_LOCAL_COLUMN_BITS = 8.0


def _percent(density: float) -> str:
    return f"{100 * density:.10g}%"


def _checked_density(density: float, text: str) -> float:
    """Density rounded to what its text can carry, so that `parse(str(p)) == p`."""
    if not 0.0 < density < 1.0:
        raise PatternError(
            f"A density must lie between 0% and 100%, got {text}. Write `dense` to keep everything, "
            "or leave the layer out of the model to keep nothing."
        )
    return float(f"{100 * density:.10g}") / 100


def _padded_groups(mask: Tensor, group: int) -> Tensor:
    """`(groups, group, in)` view of a mask; rows that pad the last group repeat its last real row."""
    short = -mask.shape[0] % group
    if short:
        mask = torch.cat([mask, mask[-1:].expand(short, -1)])
    padded: Tensor = mask.unflatten(0, (-1, group))
    return padded


@dataclass(frozen=True)
class AbstractPattern(ABC):
    """Rule where zeros may be, for a weight of shape `(out, in)`.

    Attributes:
        edge: what becomes of groups and tiles that the end of a matrix cuts off: `error` fits no such matrix, `at_most`
            keeps at most as much of them as of whole ones, `dense` keeps them whole. How a matrix is solved, so no part
            of the text nor of equality.
    """

    edge: Edge = field(default="error", kw_only=True, compare=False, repr=False)

    @property
    @abstractmethod
    def density(self) -> float:
        """Kept / all, 0..1."""

    @property
    def group(self) -> int:
        """Consecutive output rows that share one choice of columns."""
        return 1

    @property
    def width(self) -> int:
        """Consecutive input columns that are kept or dropped together."""
        return 1

    @abstractmethod
    def index_bits(self, in_: int) -> float:
        """Index bits per (dense) weight that a tight file needs, as a real number."""

    @property
    def tile(self) -> Shape:
        """Rows and columns of what the rule holds in: a matrix of whole tiles has no edge."""
        return (1, 1)

    def why_not(self, shape: Shape) -> list[str]:
        """Reasons why a weight of this shape cannot have this pattern; empty if it can."""
        if self.edge != "error":
            return []
        rows, columns = self.tile
        sides = (("input", shape[1], columns), ("output", shape[0], rows))
        return [f"the {side} dimension must be a multiple of {m}, got {size}" for side, size, m in sides if size % m]

    def cuts(self, shape: Shape) -> bool:
        """Whether the end of a matrix of this shape cuts off a tile."""
        return bool(shape[0] % self.tile[0] or shape[1] % self.tile[1])

    @abstractmethod
    def check_mask(self, mask: Tensor) -> list[str]:
        """Where a `(out, in)` bool mask breaks the rule; empty if it obeys. Edges may keep as much as `edge` says."""

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def _inside(self, other: "AbstractPattern") -> bool:
        """Whether every mask of self is one of `other`, which is neither dense nor equal to self."""

    def fits(self, shape: Shape) -> bool:
        """Whether a weight of this shape can have this pattern."""
        return not self.why_not(shape)

    def require_fit(self, shape: Shape, layer: str = "this layer") -> None:
        """Raise PatternError with all reasons unless the pattern fits the shape."""
        reasons = self.why_not(shape)
        if reasons:
            raise PatternError(
                f"{self} does not fit {layer} of shape {tuple(shape)}: {'; '.join(reasons)}. "
                "Ask for edge='at_most' or edge='dense', or choose another pattern."
            )

    def with_edge(self, edge: Edge) -> Self:
        """The same rule with another treatment of edges.

        Raises:
            PatternError: there is no such treatment.
        """
        if edge not in get_args(Edge):
            raise PatternError(f"edge is 'error', 'at_most' or 'dense', got {edge!r}.")
        return self if edge == self.edge else replace(self, edge=edge)

    def obeyed_by(self, mask: Tensor) -> Self | None:
        """This rule with the edge that a `(out, in)` mask shows; None where the mask breaks it."""
        edges: tuple[Edge, ...] = ("at_most", "dense") if self.cuts((mask.shape[0], mask.shape[1])) else (self.edge,)
        return next((rule for rule in map(self.with_edge, edges) if not rule.check_mask(mask)), None)

    def _whole(self, mask: Tensor) -> Tensor:
        """A mask as whole tiles: filled up with dropped places, or without the edges where those are dense."""
        (out, in_), (rows, columns) = mask.shape, self.tile
        if self.edge == "dense":
            return mask[: out // rows * rows, : in_ // columns * columns]
        if out % rows or in_ % columns:
            mask = functional.pad(mask, (0, -in_ % columns, 0, -out % rows))
        return mask

    def theoretical_bytes(self, shape: Shape, value_bits: int) -> float:
        """Bytes of a weight of this shape: value bits x density + index bits, per weight."""
        return shape[0] * shape[1] * (value_bits * self.density + self.index_bits(shape[1])) / 8

    def __le__(self, other: "AbstractPattern") -> bool:
        """Containment: every mask of self is a mask of `other` (block counts taken before rounding to columns)."""
        return self == other or isinstance(other, Dense) or self._inside(other)

    def __lt__(self, other: "AbstractPattern") -> bool:
        return self != other and self <= other


@final
@dataclass(frozen=True)
class Dense(AbstractPattern):
    """Nothing removed."""

    @property
    def density(self) -> float:
        return 1.0

    def index_bits(self, in_: int) -> float:
        return 0.0

    def check_mask(self, mask: Tensor) -> list[str]:
        return []

    def _inside(self, other: AbstractPattern) -> bool:
        return False

    def __str__(self) -> str:
        return "dense"


def _check_n_of_m(n: int, m: int) -> None:
    if not is_whole(n, 0) or not is_whole(m, 0):
        raise PatternError(f"n:m is made of two whole numbers, got {n!r} and {m!r}. Write for instance 2:4.")
    if not 1 <= n <= m:
        hint = f"Write {m}:{n}?" if min(n, m) >= 1 else "Write for instance 2:4."
        raise PatternError(f"n:m keeps n of every m, so 1 <= n <= m; got {n}:{m}. {hint}")
    if m > 256:
        raise PatternError(f"m can be at most 256, got {n}:{m}. Use a density such as {_percent(n / m)} instead.")


def _over_n(mask: Tensor, n: int, m: int, group: int, size: int = 1) -> list[str]:
    """Where rows of a `(rows, units)` mask keep more than n of m.

    A row stands for `group` rows of weights; with `size` above 1 a place stands for a block of `size` x `size` of them.
    """
    if not mask.numel():
        return []
    over = (mask.unflatten(1, (-1, m)).sum(-1) > n).nonzero()
    if not len(over):
        return []
    row, place = (int(i) for i in over[0])
    units = f" blocks of {size} x {size}" if size > 1 else ""
    first, last = place * m * size, (place + 1) * m * size - 1
    return [f"row {row * group * size}, columns {first} to {last} keep more than {n} of {m}{units}"]


@final
@dataclass(frozen=True)
class NM(AbstractPattern):
    """N:M along `in`: keep `n` of every `m` consecutive weights; `group` consecutive rows share the choice.

    Source: plain N:M, Zhou et al. 2021, arXiv:2102.04010; shared over rows, VENOM, arXiv:2310.02065.
    """

    n: int
    m: int
    group: int = 1

    def __post_init__(self) -> None:
        _check_n_of_m(self.n, self.m)
        if not 1 <= self.group <= 64:
            raise PatternError(f"n:mxG shares a choice over G = 1 to 64 rows, got G = {self.group}.")

    @property
    def density(self) -> float:
        return self.n / self.m

    def index_bits(self, in_: int) -> float:
        return math.ceil(math.log2(self.m)) * self.density / self.group

    @property
    def tile(self) -> Shape:
        return (1, self.m)

    def check_mask(self, mask: Tensor) -> list[str]:
        union = _padded_groups(self._whole(mask), self.group).any(1)
        return _over_n(union, self.n, self.m, self.group)

    def _inside(self, other: AbstractPattern) -> bool:
        if isinstance(other, NM):
            return self.group % other.group == 0 and _n_of_m_inside(self.n, self.m, other.n, other.m)
        if isinstance(other, Unstructured | Block):
            return self.density <= other.density and self.group % other.group == 0 and _single_column(other)
        return False

    def __str__(self) -> str:
        return f"{self.n}:{self.m}" + (f"x{self.group}" if self.group > 1 else "")


def _n_of_m_inside(n: int, m: int, other_n: int, other_m: int) -> bool:
    """Whether at most n of every m consecutive always means at most other_n of every other_m (aligned groups)."""
    # The most that a group of other_m can hold: whole groups of m inside, and the worst overlap at its ends.
    worst = 0
    for start in range(0, math.lcm(m, other_m), other_m):
        kept = 0
        position = start
        while position < start + other_m:
            stop = min((position // m + 1) * m, start + other_m)
            kept += min(n, stop - position)
            position = stop
        worst = max(worst, kept)
    return worst <= other_n


def _single_column(pattern: "AbstractPattern") -> bool:
    return not isinstance(pattern, Block) or pattern.columns == 1


@final
@dataclass(frozen=True)
class Transposable(AbstractPattern):
    """Transposable N:M: `n` of `m` in every row and in every column of each aligned `m` x `m` tile.

    With `size` above 1 the tile is made of blocks of `size` x `size` weights that are kept or dropped together, so that
    the weight and its transpose both have row groups that share their columns.

    Source: Hubara et al. 2021, arXiv:2102.08124; TSENOR, arXiv:2505.23949.
    """

    n: int
    m: int
    size: int = 1

    def __post_init__(self) -> None:
        _check_n_of_m(self.n, self.m)
        if not 1 <= self.size <= 64:
            raise PatternError(f"n:mtxG keeps blocks of G x G weights, G = 1 to 64, got G = {self.size}.")

    @property
    def density(self) -> float:
        return self.n / self.m

    @property
    def group(self) -> int:
        return self.size

    @property
    def width(self) -> int:
        return self.size

    def index_bits(self, in_: int) -> float:
        return math.ceil(math.log2(self.m)) * self.density / self.size**2

    @property
    def tile(self) -> Shape:
        return (self.m * self.size, self.m * self.size)

    def check_mask(self, mask: Tensor) -> list[str]:
        tiles = self._whole(mask)
        blocks = tiles.unflatten(0, (-1, self.size)).any(1).unflatten(1, (-1, self.size)).any(2)
        reasons = _over_n(blocks, self.n, self.m, 1, self.size)
        columns = _over_n(blocks.T, self.n, self.m, 1, self.size)
        return reasons + [f"transposed, {reason}" for reason in columns]

    def _inside(self, other: AbstractPattern) -> bool:
        n, m, size = self.n * self.size, self.m * self.size, self.size
        if isinstance(other, Transposable):
            return size % other.size == 0 and _n_of_m_inside(n, m, other.n * other.size, other.m * other.size)
        if isinstance(other, Block) and other.columns > 1:
            return size % other.rows == 0 and size % other.columns == 0 and self.density <= other.density
        return NM(n, m, size) <= other

    def __str__(self) -> str:
        return f"{self.n}:{self.m}t" + (f"x{self.size}" if self.size > 1 else "")


@final
@dataclass(frozen=True)
class NMG(AbstractPattern):
    """STen's n:m:g: in every block of `m` consecutive outputs each column keeps `n`; within a chunk of
    C(m, n) * g columns each of the C(m, n) patterns is used by exactly `g` columns.

    Source: STen, arXiv:2304.07613. The last chunk may be short; then each pattern is used by at most `g` columns. The
    last block may be short; then the rule holds for the weight filled up with rows of zeros.
    """

    n: int
    m: int
    g: int

    def __post_init__(self) -> None:
        _check_n_of_m(self.n, self.m)
        if self.g < 1:
            raise PatternError(f"n:m:g needs g >= 1 columns per pattern, got g = {self.g}.")
        if math.comb(self.m, self.n) > MOST_PATTERNS:
            raise PatternError(
                f"{self} has {math.comb(self.m, self.n)} patterns; at most {MOST_PATTERNS}. Choose a smaller m."
            )
        if self.chunk > 65536:
            raise PatternError(f"{self} has {self.chunk} columns in a chunk; at most 65536. Choose smaller m or g.")

    @property
    def density(self) -> float:
        return self.n / self.m

    @property
    def chunk(self) -> int:
        """Columns of one chunk: C(m, n) * g."""
        return math.comb(self.m, self.n) * self.g

    def index_bits(self, in_: int) -> float:
        """The number of a column's pattern."""
        return math.ceil(math.log2(math.comb(self.m, self.n))) / self.m

    def check_mask(self, mask: Tensor) -> list[str]:
        blocks = row_blocks(mask.to("cpu"), self.m)
        over = (blocks.sum(1) > self.n).nonzero()
        if len(over):
            block, column = (int(i) for i in over[0])
            return [f"output block {block}, column {column} keeps more than {self.n} of {self.m}"]
        # What is kept has as many patterns to itself as can be had, so one column left over breaks the rule.
        chosen = assign_patterns(blocks, self.n, self.m, self.g)
        missed = (blocks.flatten(0, 1) & ~mask_of_patterns(chosen, self.n, self.m, blocks.shape[0] * self.m)).nonzero()
        if not len(missed):
            return []
        row, column = (int(i) for i in missed[0])
        start = column // self.chunk * self.chunk
        return [f"output block {row // self.m}, columns from {start}: one pattern serves more than {self.g} columns"]

    def _inside(self, other: AbstractPattern) -> bool:
        if isinstance(other, NMG):
            return (self.n, self.m) == (other.n, other.m) and self.g <= other.g and other.g % self.g == 0
        return isinstance(other, Unstructured) and self.density <= other.density

    def __str__(self) -> str:
        return f"{self.n}:{self.m}:{self.g}"


def _ragged_index_bits(density: float, rows: int, columns: int) -> float:
    """The smaller of one bit per column of a row group and 8 bits per kept column."""
    return min(1.0, _LOCAL_COLUMN_BITS * density) / (rows * columns)


@final
@dataclass(frozen=True)
class Unstructured(AbstractPattern):
    """Any position, `round(density * out * in)` of them kept."""

    kept: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept", _checked_density(self.kept, _percent(self.kept)))

    @property
    def density(self) -> float:
        return self.kept

    def kept_weights(self, shape: Shape) -> int:
        """How many weights a layer of this shape keeps (at least one)."""
        return max(1, round(self.density * shape[0] * shape[1]))

    def index_bits(self, in_: int) -> float:
        return _ragged_index_bits(self.density, 1, 1)

    def check_mask(self, mask: Tensor) -> list[str]:
        allowed = self.kept_weights((mask.shape[0], mask.shape[1]))
        kept = int(mask.sum())
        return [] if kept <= allowed else [f"{kept} weights are kept, {self} allows {allowed}"]

    def _inside(self, other: AbstractPattern) -> bool:
        return isinstance(other, Unstructured) and self.density <= other.density

    def __str__(self) -> str:
        return _percent(self.density)


@final
@dataclass(frozen=True)
class Block(AbstractPattern):
    """Blocks of `rows` x `columns`; every group of `rows` outputs keeps the same share of its blocks, anywhere.

    With one column this is the fast CPU form without the N:M rule ("ragged").
    """

    rows: int
    columns: int
    kept: float

    def __post_init__(self) -> None:
        if not (1 <= self.rows <= 64 and 1 <= self.columns <= 256):
            raise PatternError(f"Blocks have 1 to 64 rows and 1 to 256 columns, got {self.rows}x{self.columns}.")
        object.__setattr__(self, "kept", _checked_density(self.kept, _percent(self.kept)))

    @property
    def density(self) -> float:
        return self.kept

    @property
    def group(self) -> int:
        return self.rows

    @property
    def width(self) -> int:
        return self.columns

    @property
    def tile(self) -> Shape:
        return (1, self.columns)

    def kept_blocks(self, in_: int) -> int:
        """How many blocks of columns each row group keeps (at least one); a last block that is cut off counts too."""
        return max(1, round(self.density * -(-in_ // self.columns)))

    def index_bits(self, in_: int) -> float:
        return _ragged_index_bits(self.density, self.rows, self.columns)

    def check_mask(self, mask: Tensor) -> list[str]:
        whole = self._whole(mask)
        if not whole.numel():
            return []
        blocks = _padded_groups(whole, self.rows).any(1).unflatten(1, (-1, self.columns)).any(-1)
        kept = blocks.sum(1)
        allowed = self.kept_blocks(whole.shape[1])
        over = (kept > allowed).nonzero()
        if not len(over):
            return []
        first = int(over[0, 0])
        return [f"rows from {first * self.rows} keep {int(kept[first])} blocks, {self} allows {allowed}"]

    def _inside(self, other: AbstractPattern) -> bool:
        if isinstance(other, Unstructured):
            return self.density <= other.density
        if isinstance(other, Block):
            whole = self.rows % other.rows == 0 and self.columns % other.columns == 0
            return whole and self.density <= other.density
        return False

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}@{_percent(self.density)}"


_NUMBER = r"(\d+(?:\.\d+)?)"
_FORMS = (
    (re.compile(r"(\d+):(\d+)(?:x(\d+))?"), lambda n, m, g: NM(int(n), int(m), int(g or 1))),
    (re.compile(r"(\d+):(\d+)t(?:x(\d+))?"), lambda n, m, g: Transposable(int(n), int(m), int(g or 1))),
    (re.compile(r"(\d+):(\d+):(\d+)"), lambda n, m, g: NMG(int(n), int(m), int(g))),
    (re.compile(_NUMBER + "%"), lambda d: Unstructured(float(d) / 100)),
    (re.compile(r"(\d+)x(\d+)@" + _NUMBER + "%"), lambda r, c, d: Block(int(r), int(c), float(d) / 100)),
)


def parse_pattern(text: str | AbstractPattern) -> AbstractPattern:
    """Read a pattern text; `parse_pattern(str(p)) == p`.

    Args:
        text: one of the forms in this module's header; blanks and case do not matter. A pattern passes through.

    Raises:
        PatternError: the text is none of the forms, or its numbers are out of range.
    """
    if isinstance(text, AbstractPattern):
        return text
    if not isinstance(text, str):
        raise PatternError(
            f"A pattern is a text such as '2:4' or '4x1@50%', got {text!r} ({type(text).__name__}). "
            "In YAML put it in quotes: unquoted 2:4 is read as the base-60 number 124."
        )
    squeezed = re.sub(r"\s+", "", text).lower()
    if squeezed == "dense":
        return Dense()
    for form, make in _FORMS:
        match = form.fullmatch(squeezed)
        if match:
            return make(*match.groups())
    for values in ("fp32", "fp16", "int8"):
        if squeezed.endswith(values):
            raise PatternError(
                f"{text!r} is a pattern and a value type: give the pattern {squeezed.removesuffix(values)!r}, and "
                f"value_dtype={values!r} as an argument of its own or in a plan."
            )
    raise PatternError(
        f"{text!r} is no pattern. Write `dense`, `2:4`, `2:4x4` (4 rows share a choice), `2:4t` (transposable), "
        "`2:4tx4` (the same by 4x4 blocks), `3:6:4` (n:m:g), `10%` (unstructured) or `4x1@50%` (blocks)."
    )
