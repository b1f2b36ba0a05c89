from collections.abc import Callable

from torch import Tensor

class QuickCall:
    def __call__(self, x: Tensor, bias: Tensor | None, activation: int = 0) -> Tensor | None: ...
    def planes_stand(self) -> bool: ...

def forget_plans() -> None: ...

class Operand:
    def __init__(
        self,
        values: int,
        value_type: int,
        scale: int,
        index: int,
        pointers: int,
        out: int,
        in_: int,
        group: int,
        blocks: int,
        block_columns: int,
        kept_per_8: int,
    ) -> None: ...
    def quick_call(
        self, planes: list[Tensor], plan: Callable[[int], tuple[int, int]], out: int, in_: int
    ) -> QuickCall: ...
    def linear(
        self, x: int, x_stride: int, tokens: int, bias: int, y: int, kernel: int, threads: int, activation: int = 0
    ) -> None: ...
    def input_grad(self, dy: int, dy_stride: int, tokens: int, dx: int, threads: int) -> None: ...
    def input_grad_by_columns(
        self,
        dy: int,
        dy_stride: int,
        tokens: int,
        dx: int,
        index: int,
        pointers: int,
        places: int,
        blocks: int,
        block_groups: int,
        threads: int,
    ) -> None: ...
    def set_strips(self, records: int, counts: int) -> None: ...
    def strip_input_grad(
        self,
        dy: int,
        dy_stride: int,
        tokens: int,
        dx: int,
        records: int,
        counts: int,
        blocks: int,
        block_rows: int,
        threads: int,
    ) -> None: ...
    def weight_grad(
        self, dy: int, dy_stride: int, x: int, x_stride: int, tokens: int, dw: int, threads: int
    ) -> None: ...
    def conv2d(
        self, x: int, bias: int, y: int, geometry: tuple[int, ...], channels_last: bool, threads: int
    ) -> None: ...

class Int8Operand:
    def __init__(
        self, values: int, columns: int, pointers: int, scale: int, sums: int, out: int, in_: int, group: int
    ) -> None: ...
    def quick_call(
        self, planes: list[Tensor], plan: Callable[[int], tuple[int, int]], out: int, in_: int
    ) -> QuickCall: ...
    def linear(
        self, x: int, x_stride: int, tokens: int, bias: int, y: int, threads: int, activation: int = 0
    ) -> None: ...

class NmgOperand:
    def __init__(
        self,
        values: int,
        half_values: bool,
        index: int,
        rows: int,
        out: int,
        in_: int,
        n: int,
        m: int,
        g: int,
        patterns: int,
    ) -> None: ...
    def quick_call(
        self, planes: list[Tensor], plan: Callable[[int], tuple[int, int]], out: int, in_: int
    ) -> QuickCall: ...
    def linear(
        self, x: int, x_stride: int, tokens: int, bias: int, y: int, threads: int, activation: int = 0
    ) -> None: ...

def grouped_nm(
    scores: int, blocks: int, in_: int, n: int, m: int, g: int, patterns: int, rows: int, chosen: int, threads: int
) -> None: ...
def instruction_set() -> str: ...
def instruction_sets() -> list[str]: ...
def fma_peak(iterations: int) -> float: ...
def transposable(
    scores: int,
    type: int,
    sizes: tuple[int, int, int],
    strides: tuple[int, int, int],
    tile: tuple[int, int],
    counts: tuple[int, int],
    at_most: bool,
    edge_dense: bool,
    keep: int,
    drop: int,
    mask: int,
    certificate: tuple[int, int, int, int],
    first_columns: int,
    threads: int,
) -> tuple[int, int, int]: ...
