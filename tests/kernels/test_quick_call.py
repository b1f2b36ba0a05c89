"""The short way of a call: the same bits as the long one, taken only where nothing else has to see the call."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sparsewright.core import parse_pattern
from sparsewright.kernels import Sharing, linear, set_sharing
from sparsewright.kernels.sparse_linear.operand import native_operand, quick_calls
from sparsewright.layouts import pack
from sparsewright.solvers import solve_mask

OUT, IN = 12, 20


def packed_weight(value_dtype=torch.float32):
    torch.manual_seed(3)
    weight = torch.randn(OUT, IN)
    return pack(weight, solve_mask(weight.abs(), parse_pattern("2:4x4")), pattern="2:4x4", value_dtype=value_dtype)


@pytest.fixture
def packed():
    return packed_weight()


@pytest.fixture
def quick(packed):
    native_operand(packed)
    return quick_calls[id(packed)]


class Seeing(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Special(torch.Tensor):
    pass


@pytest.mark.parametrize("value_dtype", [torch.float32, torch.float16, torch.int8])
@pytest.mark.parametrize("shape", [(IN,), (1, IN), (7, IN), (2, 3, IN), (2, 1, 5, IN)])
def test_it_gives_the_bits_of_the_long_way(shape, value_dtype):
    packed, x, bias = packed_weight(value_dtype), torch.randn(shape), torch.randn(OUT)
    operand = native_operand(packed)
    for given in (bias, None):
        for code in (0, 1, 2):
            wanted = torch.empty(*shape[:-1], OUT)
            operand.run(x, given, wanted, x.numel() // IN, code)
            assert torch.equal(quick_calls[id(packed)](x, given, code), wanted)


def test_rows_apart_are_read_where_they_lie(quick):
    wide, column = torch.randn(9, IN + 3), torch.randn(1, IN)
    assert torch.equal(quick(wide[:, :IN], None), quick(wide[:, :IN].contiguous(), None))
    assert torch.equal(quick(column.expand(5, IN), None), quick(column.expand(5, IN).contiguous(), None))
    offset = torch.randn(9 * IN + 1)[1:].view(9, IN)
    assert torch.equal(quick(offset, None), quick(offset.clone(), None))


def unfit():
    x = torch.randn(4, IN)
    yield "transposed", torch.randn(IN, 4).T, None
    yield "three dimensions apart", torch.randn(4, 2, IN + 1)[..., :IN], None
    yield "double", x.double(), None
    yield "half", x.half(), None
    yield "no dimension", torch.tensor(1.0), None
    yield "other columns", torch.randn(4, IN + 1), None
    yield "no token", torch.randn(0, IN), None
    yield "meta", x.to("meta"), None
    yield "sparse", x.to_sparse(), None
    yield "subclass", x.as_subclass(Special), None
    yield "pending negation", torch.randn(4, IN, dtype=torch.complex64).conj().imag, None
    yield "short bias", x, torch.randn(OUT - 1)
    yield "matrix bias", x, torch.randn(1, OUT)
    yield "apart bias", x, torch.randn(2 * OUT)[::2]
    yield "half bias", x, torch.randn(OUT).half()
    yield "not a tensor", [1.0], None


@pytest.mark.parametrize("name,x,bias", list(unfit()), ids=lambda value: value if isinstance(value, str) else "")
def test_what_does_not_fit_goes_the_long_way(quick, name, x, bias):
    assert quick(x, bias) is None


def test_calls_that_others_must_see_go_the_long_way(quick):
    x, bias = torch.randn(4, IN), torch.nn.Parameter(torch.randn(OUT))
    assert quick(x, None) is not None
    assert quick(x, bias) is None
    assert quick(x.clone().requires_grad_(), None) is None
    with torch.no_grad():
        assert quick(x, bias) is not None
        assert quick(torch.nn.Parameter(x), bias) is not None
        with torch.autocast("cpu"):
            assert quick(x, bias) is None
        with Seeing():
            assert quick(x, bias) is None
        torch.vmap(lambda row: row * 0 if quick(row, bias) is None else 1 / 0)(x)
        torch.jit.trace(lambda row: row * 0 if quick(row, bias) is None else 1 / 0, (x,), check_trace=False)


def test_gradients_reach_x_through_the_public_function_after_short_calls(packed):
    x = torch.randn(4, IN)
    linear(x, packed)
    learning = x.clone().requires_grad_()
    linear(learning, packed).sum().backward()
    assert torch.allclose(learning.grad, packed.unpack().sum(0).expand(4, IN), atol=1e-5)


def test_the_choice_is_made_again_when_what_it_rests_on_changes(packed):
    from sparsewright._native import Operand

    asked = []

    def plan(tokens):
        asked.append(tokens)
        return 0, 1

    operand = native_operand(packed)
    assert isinstance(operand.native, Operand)
    quick, x, threads = operand.native.quick_call([], plan, OUT, IN), torch.randn(4, IN), torch.get_num_threads()
    quick(x, None)
    quick(x, None)
    quick(x[:3], None)
    assert asked == [4, 3]
    try:
        torch.set_num_threads(threads + 1)
        quick(x, None)
        assert asked == [4, 3, 4]
    finally:
        torch.set_num_threads(threads)
    try:
        set_sharing(Sharing(serial_s=1.0))
        quick(x, None)
        assert asked == [4, 3, 4, 4]
    finally:
        set_sharing(None)


def test_a_plan_that_fails_is_heard_of(packed):
    def plan(tokens):
        raise RuntimeError("no kernel")

    quick = native_operand(packed).native.quick_call([], plan, OUT, IN)
    with pytest.raises(RuntimeError, match="no kernel"):
        quick(torch.randn(4, IN), None)
