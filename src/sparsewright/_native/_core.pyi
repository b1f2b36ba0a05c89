class Operand:
    def __init__(
        self,
        values: int,
        half_values: bool,
        index: int,
        pointers: int,
        out: int,
        in_: int,
        group: int,
        blocks: int,
        block_columns: int,
        kept_per_8: int,
    ) -> None: ...
    def linear(self, x: int, x_stride: int, tokens: int, bias: int, y: int, kernel: int, threads: int) -> None: ...

class Int8Operand:
    def __init__(
        self, values: int, columns: int, pointers: int, scale: int, sums: int, out: int, in_: int, group: int
    ) -> None: ...
    def linear(self, x: int, x_stride: int, tokens: int, bias: int, y: int, threads: int) -> None: ...

def instruction_set() -> str: ...
def instruction_sets() -> list[str]: ...
def fma_peak(iterations: int) -> float: ...
