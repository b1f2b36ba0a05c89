"""What torch's `FlopCounterMode` counts of our operators: two for every kept weight and token.

Weights that only fill up a last row group or a last quad of bytes are multiplied, and so they count.
"""

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch

_COUNTER = "torch.utils.flop_counter"
# Registered with torch in this process.
_known: dict[Any, Any] = {}


def tell_flop_counters() -> None:
    """Let the flop counters that are open, and all later ones, know our operators. Free where torch's is not imported.

    Called in front of an operator that a dispatch mode will see, because importing the counter takes long, and a
    counter copies its formulas when it is made.
    """
    module: Any = sys.modules.get(_COUNTER)
    if module is None or torch._C._len_torch_dispatch_stack() == 0:
        return
    if not _known:
        for names, formula in _FORMULAS.items():
            for name in names:
                operator = getattr(torch.ops.sparsewright, name)
                _known[operator] = module.register_flop_formula(operator)(formula)
    for mode in torch.utils._python_dispatch._get_current_dispatch_mode_stack():
        if isinstance(mode, module._FlopCounterMode):
            for operator, formula in _known.items():
                mode.counter.flop_registry.setdefault(operator, formula)


# Formulas are given shapes in place of tensors.
Shape = Sequence[int]


def _product(x: Shape, values: Shape, *rest: Any, out_shape: Shape = (), **named: Any) -> int:
    return 2 * math.prod(x[:-1]) * math.prod(values)


def _n_m_g(x: Shape, values: Shape, *rest: Any, out_shape: Shape = (), **named: Any) -> int:
    # Slots without a column are skipped: every column has n values in each block of rows.
    return 2 * math.prod(x) * values[1] * values[-1]


def _n_m_g_input_grad(grad: Shape, values: Shape, *rest: Any, out_shape: Shape, **named: Any) -> int:
    return _n_m_g(out_shape, values)


def _weight_grad(grad: Shape, x: Shape, index: Shape, *rest: Any, out_shape: Shape, **named: Any) -> int:
    return 2 * math.prod(grad[:-1]) * math.prod(out_shape)


def _dense(x: Shape, *rest: Any, out_shape: Shape, **named: Any) -> int:
    return 2 * math.prod(x) * out_shape[-1]


def _convolution(x: Shape, values: Shape, *rest: Any, out_shape: Shape, **named: Any) -> int:
    return 2 * out_shape[0] * math.prod(out_shape[2:]) * math.prod(values)


def _convolution_input_grad(grad: Shape, values: Shape, *rest: Any, out_shape: Shape = (), **named: Any) -> int:
    return 2 * grad[0] * math.prod(grad[2:]) * math.prod(values)


_FORMULAS = {
    ("linear", "int8_linear", "semi_structured_linear"): _product,
    ("linear_input_grad", "int8_linear_input_grad"): _product,
    ("nmg_linear",): _n_m_g,
    ("nmg_linear_input_grad",): _n_m_g_input_grad,
    ("linear_weight_grad",): _weight_grad,
    ("dense_linear", "dense_linear_input_grad"): _dense,
    ("conv2d",): _convolution,
    ("conv2d_input_grad",): _convolution_input_grad,
}
