"""2:4 for sparse tensor cores: torch's compressed form, what stands against it here, and its results on a GPU."""

import pytest
import torch
from torch.sparse import SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from sparsewright.core import KernelError, LayoutError
from sparsewright.kernels import linear, reference_linear, which, why_not
from sparsewright.layouts import layouts, pack, storage_bytes
from sparsewright.solvers import solve_mask

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="torch finds no CUDA device with sparse tensor cores: not measured",
)


def packed_and_kept(out, in_, pattern="2:4", dtype=torch.float16):
    weight = torch.randn(out, in_, generator=torch.Generator().manual_seed(3)) + 0.01
    mask = solve_mask(weight.abs(), pattern)
    return pack(weight, mask, "semi_structured", pattern, dtype), torch.where(mask, weight, 0).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_tensors_are_those_of_torch(dtype):
    packed, kept = packed_and_kept(64, 128, dtype=dtype)
    values, meta = sparse_semi_structured_from_dense_cutlass(kept)
    assert torch.equal(packed.tensors["values"], values)
    assert torch.equal(packed.tensors["meta"], meta)


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor")
@pytest.mark.parametrize("out,in_", [(1, 4), (50, 160), (32, 64), (77, 308)])
def test_torch_reads_every_shape_because_it_is_filled_up(out, in_):
    packed, kept = packed_and_kept(out, in_)
    values, meta = packed.tensors["values"], packed.tensors["meta"]
    rows, columns = values.shape[0], 2 * values.shape[1]
    limits = SparseSemiStructuredTensorCUTLASS._DTYPE_SHAPE_CONSTRAINTS[torch.float16]
    assert rows % limits.sparse_min_rows == 0
    assert columns % limits.sparse_min_cols == 0
    read = SparseSemiStructuredTensorCUTLASS(torch.Size((rows, columns)), values, meta, None, None, None).to_dense()
    assert torch.equal(read[:out, :in_], kept)
    assert not read[out:].any()
    assert not read[:, in_:].any()


def test_a_kept_zero_stays_kept():
    weight = torch.zeros(32, 64)
    mask = (torch.arange(64) % 4 < 2).repeat(32, 1)
    packed = pack(weight, mask, "semi_structured", "2:4", torch.float16)
    places = layouts.get("semi_structured").to_storage(packed)["index"]
    assert torch.equal(places, layouts.get("vector").to_storage(pack(weight, mask, "vector", "2:4"))["index"])


@pytest.mark.parametrize("pattern", ["2:4", "2:4x4", "2:4t"])
def test_a_file_holds_half_the_values_and_their_places(pattern):
    weight = torch.randn(64, 128)
    row = torch.arange(64)[:, None] // (1 if pattern == "2:4t" else 4)
    mask = (row + torch.arange(128)) % 4 < 2
    packed = pack(weight, mask, "semi_structured", pattern, torch.float16)
    group = 4 if pattern == "2:4x4" else 1
    assert storage_bytes(packed) == 64 * 64 * 2 + 64 * 64 * 2 // 8 // group


@pytest.mark.parametrize("pattern", ["1:4", "4:8", "50%", "4x1@50%"])
def test_other_patterns_are_refused_with_the_rule(pattern):
    weight = torch.randn(32, 64)
    mask = solve_mask(weight.abs(), pattern)
    with pytest.raises(LayoutError, match="keep 2 of every 4"):
        pack(weight, mask, "semi_structured", pattern, torch.float16)
    with pytest.raises(LayoutError, match="float16"):
        pack(weight, solve_mask(weight.abs(), "2:4"), "semi_structured", "2:4", torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_every_kernel_says_why_it_cannot():
    packed, _ = packed_and_kept(32, 64)
    said = why_not(packed, 16)
    assert "CUDA device, and torch finds none on this machine; the weight is on cpu" in said["semi_structured"][0]
    assert all(said.values())
    with pytest.raises(KernelError, match="semi_structured: it runs on a CUDA device"):
        linear(torch.randn(2, 64, dtype=torch.float16), packed)
    with pytest.raises(KernelError, match="semi_structured: it runs on a CUDA device"):
        linear(torch.randn(2, 64, requires_grad=True), packed)


def test_the_operator_knows_its_result_without_data_and_has_no_gradient_for_x():
    packed, _ = packed_and_kept(48, 96)
    values, meta = (packed.tensors[name].to("meta") for name in ("values", "meta"))
    x = torch.empty(2, 5, 96, dtype=torch.float16, device="meta", requires_grad=True)
    y = torch.ops.sparsewright.semi_structured_linear(x, values, meta, None, 48)
    assert (y.shape, y.dtype) == ((2, 5, 48), torch.float16)
    with pytest.raises(KernelError, match="its transpose is not 2:4"):
        y.sum().backward()


def test_a_bias_still_learns_where_x_does_not_ask():
    packed, _ = packed_and_kept(48, 96)
    values, meta = (packed.tensors[name].to("meta") for name in ("values", "meta"))
    x = torch.empty(5, 96, dtype=torch.float16, device="meta")
    bias = torch.empty(48, dtype=torch.float16, device="meta", requires_grad=True)
    torch.ops.sparsewright.semi_structured_linear(x, values, meta, bias, 48).sum().backward()
    assert bias.grad.shape == (48,)


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("out,in_", [(64, 128), (50, 160), (768, 3072)])
def test_results_on_a_gpu_agree_with_float64(out, in_, dtype):
    packed = packed_and_kept(out, in_, dtype=dtype)[0].to("cuda")
    assert which(packed, 9) == "semi_structured"
    bias = torch.randn(out, device="cuda", dtype=dtype)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-3
    for tokens in (1, 9, 128):
        x = torch.randn(tokens, in_, device="cuda", dtype=dtype) / in_**0.5
        for added in (bias, None):
            truth = reference_linear(x.double(), packed, None if added is None else added.double())
            y = linear(x, packed, added)
            torch.testing.assert_close(y.double(), truth, rtol=tolerance, atol=tolerance)


@needs_cuda
def test_x_of_another_dtype_is_refused_on_a_gpu():
    packed = packed_and_kept(64, 128)[0].to("cuda")
    with pytest.raises(KernelError, match="dtype of the values"):
        linear(torch.randn(2, 128, device="cuda"), packed)
