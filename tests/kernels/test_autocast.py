"""Under autocast a packed layer answers in the dtype in which a dense one answers, computed in float32."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsewright.core import KernelError
from sparsewright.kernels import linear, reference_linear
from sparsewright.layouts import pack
from sparsewright.nn import SparseTensor, as_parameter

LOWER = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def pair(values: torch.dtype = torch.float32) -> tuple[nn.Linear, nn.Linear]:
    """A layer that runs packed, and the dense one with the same numbers."""
    torch.manual_seed(0)
    dense = nn.Linear(64, 32)
    mask = (torch.arange(64) % 4 < 2).expand(32, 64)
    packed = pack(dense.weight.detach(), mask, pattern="2:4x4", value_dtype=values)
    sparse = copy.deepcopy(dense)
    sparse.weight = as_parameter(SparseTensor(packed))
    with torch.no_grad():
        dense.weight.copy_(packed.unpack())
    return sparse, dense


@LOWER
@pytest.mark.parametrize("shape", [(64,), (1, 64), (5, 64), (2, 3, 64), (0, 64)])
@pytest.mark.parametrize("given", [torch.float32, None], ids=["float32", "lowered"])
@pytest.mark.parametrize("gradients", [False, True])
def test_it_answers_in_the_dtype_of_a_dense_layer(dtype, shape, given, gradients) -> None:
    sparse, dense = pair()
    x = torch.randn(shape).to(given or dtype)
    exact = F.linear(x.double(), dense.weight.double(), dense.bias.double())
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", dtype=dtype):
        ours, theirs = sparse(x), dense(x)
    assert ours.dtype == theirs.dtype == dtype
    assert ours.shape == theirs.shape
    # One rounding of a float32 result: exact to half a step of the lower dtype.
    torch.testing.assert_close(ours.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("values", [torch.float32, torch.float16, torch.int8])
def test_both_doors_give_the_same_bits(values) -> None:
    sparse, _ = pair(values)
    x = torch.randn(7, 64, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            fast = sparse(x)
        through_operator = sparse(x)
    assert through_operator.requires_grad
    assert torch.equal(fast, through_operator)


def test_the_operator_itself_knows_autocast() -> None:
    sparse, _ = pair()
    tensors = sparse.weight.packed.tensors
    arguments = (tensors["values"], tensors["index"], tensors["pointers"], sparse.bias, 32)
    x = torch.randn(5, 64, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = torch.ops.sparsewright.linear(x, *arguments)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, torch.ops.sparsewright.linear(x.float(), *arguments).bfloat16())
    with pytest.raises(KernelError, match="compute in float32"):
        torch.ops.sparsewright.linear(x, *arguments)


@pytest.mark.parametrize("inside", [False, True], ids=["backward outside", "backward inside"])
@pytest.mark.parametrize("values", [torch.float32, torch.int8])
def test_gradients_keep_the_dtypes_of_their_tensors(inside, values) -> None:
    sparse, dense = pair(values)
    x = torch.randn(6, 64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    for layer, argument in ((sparse, x), (dense, y)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = layer(argument).float().square().mean()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
    assert x.grad.dtype == y.grad.dtype == torch.float32
    assert sparse.bias.grad.dtype == torch.float32
    # The dense layer multiplies bfloat16 numbers, ours do not (int8 weights round x to 7 bits instead).
    torch.testing.assert_close(x.grad, y.grad, rtol=0.05, atol=5e-3)
    torch.testing.assert_close(sparse.bias.grad, dense.bias.grad, rtol=0.05, atol=5e-3)


def test_a_region_that_is_switched_off_computes_as_ever() -> None:
    sparse, _ = pair()
    x = torch.randn(5, 64)
    with torch.no_grad():
        expected = sparse(x)
        with torch.autocast("cpu", enabled=False):
            assert torch.equal(sparse(x), expected)
        with pytest.raises(KernelError, match="compute in float32"):
            sparse(x.bfloat16())
        with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(KernelError, match="float64"):
            sparse(x.double())


def test_products_other_than_linear_follow_it_too() -> None:
    sparse, dense = pair()
    x = torch.randn(5, 64)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for product in (x @ sparse.weight.T, torch.addmm(sparse.bias, x, sparse.weight.T), sparse.weight @ x.T):
            assert product.dtype == torch.bfloat16
        torch.testing.assert_close(x @ sparse.weight.T, x @ dense.weight.T, rtol=0.05, atol=0.05)


def test_a_transformer_layer_of_torch_trains_under_autocast() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 32, batch_first=True, dropout=0.0)
    sparse, dense = pair()
    reference = copy.deepcopy(layer)
    layer.linear1, reference.linear1 = sparse, dense
    x = torch.randn(2, 5, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = layer(x), reference(x)
    ours.float().square().sum().backward()
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)
    assert layer.linear2.weight.grad.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("values", [torch.float32, torch.int8])
def test_a_compiled_layer_under_autocast_equals_eager(values) -> None:
    sparse, _ = pair(values)

    def run(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return sparse(torch.relu(x))

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 64)
    with torch.no_grad():
        assert torch.equal(compiled(x), run(x))
    x.requires_grad_()
    result = compiled(x)
    assert result.dtype == torch.bfloat16
    result.float().sum().backward()
    assert x.grad.dtype == torch.float32


def test_the_reference_takes_lower_dtypes_by_itself() -> None:
    sparse, _ = pair()
    x = torch.randn(5, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = linear(x, sparse.weight.packed)
        torch.testing.assert_close(ours, reference_linear(x, sparse.weight.packed), rtol=0.05, atol=0.05)
