"""N:M for callers who count what is removed: `prune_n` of every `prune_m`, as Wanda and SparseGPT do."""

from .errors import PatternError
from .numeric import is_whole
from .patterns import NM


def from_prune_n(prune_n: int, prune_m: int) -> NM:
    """The pattern that removes `prune_n` of every `prune_m` consecutive weights along `in`.

    Wanda (arXiv:2306.11695) and SparseGPT (arXiv:2301.00774) count what is removed; ALPS, llm-compressor and this
    package what is kept. So their `prune_n=1, prune_m=4` is `3:4` here, a quarter removed, not `1:4`. Only for `2:4`
    and `4:8` are both the same.

    Args:
        prune_n: weights removed of each group, 1 to `prune_m - 1`.
        prune_m: weights of a group.

    Raises:
        PatternError: not two such numbers. Both 0, which there means unstructured, is a density here.
    """
    if not is_whole(prune_n, 0) or not is_whole(prune_m, 0):
        raise PatternError(
            f"prune_n and prune_m are whole numbers, got {prune_n!r} and {prune_m!r}. Pass for instance 2, 4."
        )
    if prune_n == prune_m == 0:
        raise PatternError(
            "prune_n=0, prune_m=0 means unstructured, which is a density here. Write for instance '50%'."
        )
    if not 1 <= prune_n < prune_m:
        raise PatternError(
            f"prune_n weights are removed of every prune_m, so 1 <= prune_n < prune_m; got {prune_n} and {prune_m}. "
            "Leave the layer dense to remove nothing."
        )
    return NM(int(prune_m) - int(prune_n), int(prune_m))
