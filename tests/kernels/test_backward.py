"""Gradients of sparse linear against float64: for x by rows and by columns, for kept values, of any order."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from sparsewright._native import instruction_sets
from sparsewright.core import KernelError
from sparsewright.kernels.sparse_linear.transposed import structure_of, transpose_structure
from sparsewright.layouts import PackedWeight, pack
from sparsewright.layouts.vector import operand_places

# Relative to the largest entry; written once. The reference uses the stored values, so half values lose nothing more.
TOLERANCE = 2e-6

TOKENS = (1, 2, 7, 33, 100, 128, 1024)
PATTERNS = (
    "2:4",
    "1:4",
    "1:8x2",
    "2:4x4",
    "3:8x8",
    "1:4x16",
    "10%",
    "60%",
    "2x1@30%",
    "4x1@50%",
    "16x1@10%",
    "2:4t",
    "1:4tx4",
)
ops = torch.ops.sparsewright


def random_input(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def operands(packed: PackedWeight) -> tuple[Tensor, Tensor, Tensor]:
    return packed.tensors["values"], packed.tensors["index"], packed.tensors["pointers"]


def input_grad(dy: Tensor, packed: PackedWeight) -> Tensor:
    return ops.linear_input_grad(dy, *operands(packed), packed.shape[1])


def weight_grad(dy: Tensor, x: Tensor, packed: PackedWeight) -> Tensor:
    values, index, pointers = operands(packed)
    return ops.linear_weight_grad(dy, x, index, pointers, values.shape[1])


def at_kept_places(dense: Tensor, packed: PackedWeight) -> Tensor:
    """`(out, in)` read where the values lie: `(kept, G)`, zero in rows that only fill the last group."""
    values, index, pointers = operands(packed)
    group = values.shape[1]
    row, column = operand_places(index, pointers, packed.shape[1])
    padded = torch.nn.functional.pad(dense, (0, 0, 0, -dense.shape[0] % group))
    return padded.unflatten(0, (-1, group))[row, :, column]


def assert_near(got: Tensor, truth: Tensor) -> None:
    assert got.shape == truth.shape
    assert got.dtype == torch.float32
    scale = float(truth.abs().max()) if truth.numel() else 0.0
    torch.testing.assert_close(got.double(), truth, rtol=0, atol=TOLERANCE * max(scale, 1e-3))


def assert_gradients(packed: PackedWeight, dy: Tensor, x: Tensor) -> None:
    wide_dy, wide_x = dy.double(), x.double()
    assert_near(input_grad(dy, packed), wide_dy @ packed.unpack().double())
    full = wide_dy.reshape(-1, wide_dy.shape[-1]).T @ wide_x.reshape(-1, wide_x.shape[-1])
    assert_near(weight_grad(dy, x, packed), at_kept_places(full, packed))


@pytest.mark.parametrize("value_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_gradients_agree_with_float64(packed_weight, pattern, value_dtype):
    packed = packed_weight(pattern, 96, 384, value_dtype)
    for tokens in TOKENS:
        assert_gradients(packed, random_input(tokens, 96), random_input(tokens, 384, seed=8))


@pytest.mark.parametrize(
    "out,in_", [(1, 1), (3, 5), (37, 100), (50, 160), (33, 257), (130, 1000), (5, 3072), (2100, 24)]
)
@pytest.mark.parametrize("pattern", ["30%", "4x1@50%", "16x1@25%", "2x1@50%", "8x1@40%"])
def test_no_shape_is_too_odd(packed_weight, pattern, out, in_):
    packed = packed_weight(pattern, out, in_)
    for tokens in (1, 3, 70):
        assert_gradients(packed, random_input(tokens, out), random_input(tokens, in_, seed=8))


@pytest.mark.parametrize("group", [1, 2, 4, 8, 16])
def test_every_small_batch_fills_its_vectors_rightly(packed_weight, group):
    packed = packed_weight(f"{group}x1@40%", 50, 300)
    for tokens in (2, 4, 5, 8, 9, 15, 16, 17, 31, 32, 47, 48, 49, 63, 64, 65, 127, 129):
        assert_gradients(packed, random_input(tokens, 50), random_input(tokens, 300, seed=8))


@pytest.mark.parametrize("group", [1, 2, 4, 16])
def test_empty_rows_empty_columns_and_all_dense_masks_are_weights_too(group):
    weight = random_input(48, 64)
    rows, columns = torch.zeros(48, 64, dtype=torch.bool), torch.zeros(48, 64, dtype=torch.bool)
    rows[16:32, ::3] = True
    columns[:, 5] = True
    full = torch.ones(48, 64, dtype=torch.bool)
    full[:, 0] = False
    for mask in (rows, columns, full):
        packed = pack(weight, mask, "vector", f"{group}x1@99%" if group > 1 else "99%")
        assert_gradients(packed, random_input(9, 48), random_input(9, 64, seed=8))
    dx = input_grad(random_input(9, 48), pack(weight, columns, "vector"))
    assert not dx[:, :5].any()
    assert not dx[:, 6:].any()


@pytest.mark.parametrize("pattern", ["2:4", "2:4x4", "1:4x16"])
def test_strides_dimensions_and_empty_batches_do_not_matter(packed_weight, pattern):
    packed = packed_weight(pattern, 40, 64)
    wide_dy, wide_x = random_input(9, 80), random_input(9, 128, seed=8)
    for dy, x in (
        (wide_dy[:, ::2], wide_x[:, ::2]),
        (wide_dy[:, 3:43], wide_x[:, 3:67]),
        (random_input(40, 9).T, random_input(64, 9).T),
        (random_input(2, 3, 40), random_input(2, 3, 64)),
        (random_input(40), random_input(64)),
        (random_input(1, 40).expand(9, 40), random_input(1, 64).expand(9, 64)),
    ):
        assert_gradients(packed, dy, x)
    assert input_grad(torch.empty(0, 40), packed).shape == (0, 64)
    assert not weight_grad(torch.empty(0, 40), torch.empty(0, 64), packed).any()


@pytest.mark.parametrize("pattern", ["2:4", "1:8x2", "2:4x4", "1:4x8", "1:4x16", "20%", "2x1@20%"])
def test_bits_depend_on_neither_threads_nor_run_nor_place_in_the_batch(packed_weight, pattern):
    packed = packed_weight(pattern, 256, 768)
    dy, x = random_input(301, 256), random_input(301, 768, seed=8)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        of_x, of_values = input_grad(dy, packed), weight_grad(dy, x, packed)
        few = input_grad(dy[:7], packed)
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            assert torch.equal(of_x, input_grad(dy, packed))
            assert torch.equal(of_values, weight_grad(dy, x, packed))
            assert torch.equal(few, input_grad(dy[:7], packed))
    finally:
        torch.set_num_threads(threads)
    for begin, end in ((0, 1), (0, 2), (5, 12), (17, 81), (200, 301)):
        assert torch.equal(of_x[begin:end], input_grad(dy[begin:end], packed))


def test_an_infinity_stays_where_it_belongs(packed_weight):
    packed = packed_weight("2:4x4", 16, 32)
    dy, x = torch.ones(5, 16), torch.ones(5, 32)
    x[4, 3] = torch.inf
    got = weight_grad(dy, x, packed)
    expected = at_kept_places(dy.T @ x, packed)
    assert torch.equal(got, expected)
    dy[4, 2] = torch.nan
    assert torch.equal(input_grad(dy, packed).isnan().any(1), torch.tensor([False] * 4 + [True]))


def functional_call(packed: PackedWeight):
    _, index, pointers = operands(packed)
    return lambda x, values, bias: ops.linear(x, values, index, pointers, bias, packed.shape[0])


@pytest.mark.parametrize("pattern", ["2:4", "2:4x4", "3x1@40%"])
def test_first_and_second_derivatives_pass_gradcheck(packed_weight, pattern):
    packed = packed_weight(pattern, 6 if pattern == "3x1@40%" else 8, 16)
    call = functional_call(packed)
    x, values = random_input(3, 16).requires_grad_(), packed.tensors["values"].clone().requires_grad_()
    bias = random_input(packed.shape[0]).requires_grad_()
    # The kernels are float32 and bilinear: wide steps cost no accuracy.
    assert torch.autograd.gradcheck(call, (x, values, bias), eps=0.5, atol=1e-3, rtol=1e-3)
    squared = lambda x, values: call(x, values, None) ** 2  # noqa: E731
    assert torch.autograd.gradgradcheck(squared, (x, values), eps=1e-2, atol=5e-2, rtol=5e-2)


def test_gradients_of_half_values_are_halves(packed_weight):
    packed = packed_weight("2:4x4", 8, 16, torch.float16)
    values = packed.tensors["values"].clone().requires_grad_()
    x = random_input(5, 16)
    functional_call(packed)(x, values, None).sum().backward()
    assert values.grad.dtype == torch.float16
    full = at_kept_places(torch.ones(5, 8).T @ x, packed)
    torch.testing.assert_close(values.grad.float(), full, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["2:4", "2:4x4"])
def test_operators_pass_opcheck(packed_weight, pattern):
    packed = packed_weight(pattern, 12, 16)
    values, index, pointers = operands(packed)
    trained = values.clone().requires_grad_()
    dy, x = random_input(5, 12).requires_grad_(), random_input(5, 16).requires_grad_()
    torch.library.opcheck(ops.linear.default, (x, trained, index, pointers, random_input(12), 12, 0))
    torch.library.opcheck(ops.linear_input_grad.default, (dy, trained, index, pointers, 16))
    torch.library.opcheck(ops.linear_weight_grad.default, (dy, x, index, pointers, values.shape[1]))


@pytest.mark.slow
def test_a_training_step_compiles_as_one_graph(packed_weight):
    packed = packed_weight("2:4x4", 12, 16)
    call = functional_call(packed)
    compiled = torch.compile(
        lambda x, v: call(torch.relu(x), v, None).tanh().sum(), fullgraph=True, backend="aot_eager"
    )
    x, values = random_input(5, 16), packed.tensors["values"].clone().requires_grad_()
    compiled(x, values).backward()
    expected = torch.autograd.grad(call(torch.relu(x), values, None).tanh().sum(), values)[0]
    torch.testing.assert_close(values.grad, expected)


def test_what_does_not_fit_is_refused_in_words(packed_weight):
    packed = packed_weight("2:4x4", 8, 16)
    with pytest.raises(KernelError, match="not the operand of 99 outputs"):
        input_grad(torch.ones(2, 99), packed)
    with pytest.raises(KernelError, match="same tokens"):
        weight_grad(torch.ones(2, 8), torch.ones(3, 16), packed)
    with pytest.raises(KernelError, match="float64"):
        input_grad(torch.ones(2, 8).double(), packed)


@pytest.mark.parametrize(
    "pattern,out,in_", [("2:4", 37, 100), ("10%", 300, 260), ("2x1@30%", 131, 64), ("1:4x4", 40, 64)]
)
def test_the_structure_by_columns_names_every_value_once(packed_weight, pattern, out, in_):
    packed = packed_weight(pattern, out, in_)
    values, index, pointers = operands(packed)
    columns = transpose_structure(index, pointers, values.shape[1], in_)
    counts = columns.pointers.long().diff(dim=1).reshape(-1)
    segment = torch.repeat_interleave(counts)
    group = segment // in_ * columns.block_groups + columns.index.long()
    row, column = operand_places(index, pointers, in_)
    assert torch.equal(columns.places.long().sort().values, torch.arange(len(index)))
    assert torch.equal(row[columns.places.long()], group)
    assert torch.equal(column[columns.places.long()], segment % in_)


def test_the_structure_is_made_once_and_survives_new_values_and_leaves_with_its_weight(packed_weight):
    from sparsewright.kernels.sparse_linear import transposed

    packed = packed_weight("2:4", 40, 64)
    _, index, pointers = operands(packed)
    dy = random_input(5, 40)
    first = input_grad(dy, packed)
    structure = structure_of(index, pointers, 1, 64)
    packed.tensors["values"].mul_(2)
    assert torch.equal(input_grad(dy, packed), 2 * first)
    assert structure_of(index.detach(), pointers, 1, 64) is structure
    keys = {key for key, (_, held) in transposed._structures.items() if held is structure}
    del packed, index, pointers, structure
    input_grad(dy, packed_weight("1:4", 40, 64))
    assert not keys & transposed._structures.keys()


# Every set meets its contract in tests/native; here the way from Python is tried, with long vectors and without.
@pytest.mark.parametrize("isa", [name for name in instruction_sets()[1:] if name in ("avx2", "scalar")])
def test_a_lower_instruction_set_gives_the_same_gradients(packed_weight, tmp_path, isa):
    import os

    cases = []
    for pattern in ("2:4", "1:8x2", "2:4x4", "1:4x8", "1:4x16", "20%"):
        for value_dtype in (torch.float32, torch.float16):
            packed = packed_weight(pattern, 50 if pattern in ("2:4", "20%") else 48, 136, value_dtype)
            for tokens in (1, 3, 7, 40, 130):
                dy, x = random_input(tokens, packed.shape[0]), random_input(tokens, 136, seed=8)
                got = (input_grad(dy, packed), at_kept_places(dy.T @ x, packed).sum())
                cases.append((pattern, packed.unpack(), dy, x, *got))
    torch.save(cases, tmp_path / "cases.pt")
    program = """
import sys, torch
from sparsewright._native import instruction_set
from sparsewright.layouts import pack
import sparsewright.kernels
assert instruction_set() == sys.argv[2]
ops = torch.ops.sparsewright
for pattern, dense, dy, x, of_x, of_values in torch.load(sys.argv[1], weights_only=True):
    packed = pack(dense, dense != 0, "vector", pattern)
    values, index, pointers = (packed.tensors[name] for name in ("values", "index", "pointers"))
    got = ops.linear_input_grad(dy, values, index, pointers, x.shape[1])
    torch.testing.assert_close(got, of_x, rtol=0, atol=1e-5)
    got = ops.linear_weight_grad(dy, x, index, pointers, values.shape[1]).sum()
    torch.testing.assert_close(got, of_values, rtol=1e-4, atol=1e-2)
print("same")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "cases.pt"), isa],
        env={**os.environ, "SPARSEWRIGHT_ISA": isa},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "same", done.stderr
