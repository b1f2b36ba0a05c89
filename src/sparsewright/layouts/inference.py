"""Patterns read off masks: for weights whose rule nobody remembers."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from ..core import NM, NMG, AbstractPattern, Block, Dense, Transposable, Unstructured
from ..core.grouped import MOST_PATTERNS

# Row groups that kernels know; the widest one that the mask obeys is found.
SHARING_GROUPS = (16, 8, 4, 2)
_BLOCKS = (4, 8, 16, 32)
_OUTPUTS = range(2, 17)
# What is kept of what a rule allows, at least, to be recognised as of that rule.
_NEARLY = 0.99
_COLUMNS = (1, 2, 4, 8, 16, 32, 64)


def infer_pattern(mask: Tensor) -> AbstractPattern:
    """The tightest pattern that a mask obeys.

    In this order: `dense`; `n:mxG` with m of 4, 8, 16 or 32, where every block keeps exactly n and G rows share it;
    `Gx1@d%` with the density of its fullest group; `n:m:g` with m up to 16 and g a power of two up to 64, where one
    whole chunk fits; else `d%`. G is the widest of 16, 8, 4, 2.

    Args:
        mask: `(out, in)` bool.
    """
    if bool(mask.all()) or mask.numel() == 1:
        return Dense()
    group = _sharing_rows(mask)
    found: AbstractPattern | None = _n_of_m(mask, group)
    if found is None and group > 1:
        found = Block(group, 1, int(mask[::group].sum(1).max()) / mask.shape[1])
    if found is None:
        found = _n_of_m_outputs(mask)
    return found or Unstructured(max(1, int(mask.sum())) / mask.numel())


def recognise(mask: Tensor) -> AbstractPattern:
    """The tightest rule that a mask obeys, whoever made it.

    Other than `infer_pattern`, which says what a layout stores, it finds transposable rules, takes groups that keep a
    little less (weights that happen to be zero), and groups that the end of a matrix cuts off. In this order:
    `n:mt`, `n:mxG`, `Gx1@d%`, each where it allows at most a hundredth more than is kept; else as `infer_pattern`.

    Args:
        mask: `(out, in)` bool.
    """
    density = float(mask.sum()) / mask.numel()
    read = infer_pattern(mask)
    if isinstance(read, Dense) or density == 0:
        return read
    # The widest sharing and the smallest groups first: that is tighter.
    for group in (*SHARING_GROUPS, 1):
        shared = _shared(mask, group)
        for m in (block for block in _BLOCKS if block <= mask.shape[1]):
            n = _fullest(shared, m)
            if n < m and density >= _NEARLY * n / m:
                both = group == 1 and _fullest(mask.T, m) <= n and m <= mask.shape[0]
                return Transposable(n, m) if both else NM(n, m, group)
        widest = int(shared.sum(1).max()) / mask.shape[1]
        if 1 < group <= mask.shape[0] and widest < 1 and density >= _NEARLY * widest:
            return Block(group, 1, widest)
    return read


def _shared(mask: Tensor, group: int) -> Tensor:
    """`(ceil(out / group), in)` bool: columns that any row of a group keeps."""
    shared: Tensor = functional.pad(mask, (0, 0, 0, -mask.shape[0] % group)).unflatten(0, (-1, group)).any(1)
    return shared


def _fullest(mask: Tensor, m: int) -> int:
    """The most that any m consecutive columns of a row keep."""
    padded: Tensor = functional.pad(mask, (0, -mask.shape[1] % m))
    return int(padded.unflatten(1, (-1, m)).sum(-1).max())


def _sharing_rows(mask: Tensor) -> int:
    """Rows that share one choice of columns."""
    out, in_ = mask.shape
    for group in SHARING_GROUPS:
        leaders = torch.arange(out, device=mask.device) // group * group
        if group <= out and torch.equal(mask, mask[leaders]) and 0 < int(mask[::group].sum(1).max()) < in_:
            return group
    return 1


def _n_of_m(mask: Tensor, group: int) -> NM | None:
    kept = int(mask.sum())
    for block in _BLOCKS:
        n, rest = divmod(kept * block, mask.numel())
        if rest or not 0 < n < block or mask.shape[1] % block:
            continue
        if bool((mask.unflatten(1, (-1, block)).sum(-1) == n).all()):
            return NM(n, block, group)
    return None


def _n_of_m_outputs(mask: Tensor) -> NMG | None:
    out, in_ = mask.shape
    for m in _OUTPUTS:
        if m > out:
            return None
        # The first block tells nearly every other mask apart.
        first = mask[:m].to(torch.int64)
        n = int(first[:, 0].sum())
        patterns = math.comb(m, n)
        if not 0 < n < m or patterns > min(in_, MOST_PATTERNS) or bool((first.sum(0) != n).any()):
            continue
        chosen = (first << torch.arange(m, device=mask.device)[:, None]).sum(0)
        for g in _COLUMNS:
            chunk = patterns * g
            if chunk > in_:
                break
            places = torch.arange(in_, device=mask.device) // chunk
            _, times = torch.unique((places << m) + chosen, return_counts=True)
            if int(times.max()) <= g and not NMG(n, m, g).check_mask(mask):
                return NMG(n, m, g)
    return None
