"""Tensors that are no packed weight are refused in one sentence; the kernels never read past them."""

import multiprocessing

import pytest
import torch

from sparsewright.core import KernelError, parse_pattern
from sparsewright.kernels import linear
from sparsewright.layouts import PackedWeight, pack
from sparsewright.solvers import solve_mask

OUT, IN = 32, 64


def packed_weight(layout, pattern):
    torch.manual_seed(1)
    weight = torch.randn(OUT, IN)
    parsed = parse_pattern(pattern)
    dtype = torch.int8 if layout.startswith("int8") else torch.float32
    mask = torch.ones(OUT, IN, dtype=torch.bool) if pattern == "dense" else solve_mask(weight.abs(), parsed)
    return pack(weight, mask, layout, parsed, value_dtype=dtype)


WEIGHTS = {
    "vector": "1:4x4",
    "plain": "2:4",
    "int8_weights": "2:4",
    "int8": "2:4x4",
    "dense int8": "dense",
    "nmg": "2:4:2",
}


def changed(packed, **planes):
    return PackedWeight(
        packed.layout, packed.pattern, packed.shape, packed.value_dtype, {**dict(packed.tensors), **planes}
    )


def index_of(packed):
    return "columns" if packed.layout == "int8" else "index"


def damages(packed):
    planes = packed.tensors
    index = index_of(packed)
    for name, plane in planes.items():
        yield f"{name} in another dtype", {name: plane.to(torch.float64)}
        yield f"{name} flat and short", {name: plane.reshape(-1)[:-1]}
        if plane.numel():
            yield f"{name} empty", {name: plane[:0]}
        yield f"{name} on no device", {name: plane.to("meta")}
    if planes[index].numel():
        for what, value in (("far", 30000 if planes[index].dtype != torch.uint8 else 255), ("odd", -2)):
            wrong = planes[index].clone()
            wrong.view(-1)[wrong.numel() // 2] = value if wrong.dtype != torch.uint8 else 255
            yield f"an index {what}", {index: wrong}
    if "pointers" in planes:
        pointers = planes["pointers"]
        middle = pointers.numel() // 2
        for what, change in (("far", 10**6), ("negative", -(10**6)), ("early", -int(pointers.view(-1)[middle]) - 1)):
            wrong = pointers.clone()
            wrong.view(-1)[middle] += change
            yield f"pointers {what}", {"pointers": wrong}
        yield "pointers reversed", {"pointers": pointers.flip(-1)}
        yield "pointers scaled", {"pointers": pointers * 1000}
        yield "a pointer less", {"pointers": pointers[..., :-1]}
    if "sums" in planes:
        yield "other sums", {"sums": planes["sums"] + 1}
        yield "the byte -128", {"values": torch.full_like(planes["values"], -128)}


CASES = [
    pytest.param(name, what, id=f"{name}, {what}")
    for name, pattern in WEIGHTS.items()
    for what, _ in damages(packed_weight(name.split()[-1] if name != "plain" else "vector", pattern))
]


@pytest.mark.parametrize("name,what", CASES)
def test_damaged_tensors_are_refused(name, what):
    packed = packed_weight(name.split()[-1] if name != "plain" else "vector", WEIGHTS[name])
    planes = dict(damages(packed))[what]
    for tokens in (1, 5):
        with pytest.raises(KernelError):
            linear(torch.randn(tokens, IN), changed(packed, **planes))


@pytest.mark.parametrize("layout,pattern", [("vector", "1:4x4"), ("int8", "2:4x4"), ("nmg", "2:4:2")])
def test_missing_tensors_are_named(layout, pattern):
    packed = packed_weight(layout, pattern)
    for name in packed.tensors:
        rest = {other: plane for other, plane in packed.tensors.items() if other != name}
        broken = PackedWeight(packed.layout, packed.pattern, packed.shape, packed.value_dtype, rest)
        with pytest.raises(KernelError, match=rf"\b{name} is missing"):
            linear(torch.randn(2, IN), broken)


@pytest.mark.parametrize("layout,pattern", [("vector", "1:4x4"), ("int8", "2:4x4"), ("nmg", "2:4:2")])
def test_a_weight_of_another_shape_is_refused(layout, pattern):
    packed = packed_weight(layout, pattern)
    # Bytes that share columns lie the same way in a wider weight.
    for shape in ((4 * OUT, IN), *([] if layout == "int8" else [(OUT, 8 * IN)])):
        other = PackedWeight(packed.layout, packed.pattern, shape, packed.value_dtype, packed.tensors)
        with pytest.raises(KernelError):
            linear(torch.randn(2, shape[1]), other)


def test_a_promise_of_evenly_kept_columns_is_checked():
    packed = packed_weight("vector", "30%")
    values, index, pointers = (packed.tensors[name] for name in ("values", "index", "pointers"))
    with pytest.raises(KernelError, match="of every 8 columns"):
        torch.ops.sparsewright.linear(torch.randn(2, IN), values, index, pointers, None, OUT, 1)


def test_operators_check_what_they_get():
    packed = packed_weight("vector", "1:4x4")
    values, index, pointers = (packed.tensors[name] for name in ("values", "index", "pointers"))
    x, dy = torch.randn(3, IN), torch.randn(3, OUT)
    calls = [
        lambda: torch.ops.sparsewright.linear(x[:, :8], values, index, pointers, None, OUT),
        lambda: torch.ops.sparsewright.linear(x, values, index.long(), pointers, None, OUT),
        lambda: torch.ops.sparsewright.linear_input_grad(dy, values, index, pointers, 16),
        lambda: torch.ops.sparsewright.linear_input_grad(dy, values[:-3], index, pointers, IN),
        lambda: torch.ops.sparsewright.linear_weight_grad(dy, x[:, :8], index, pointers, 4),
        lambda: torch.ops.sparsewright.linear_weight_grad(dy, x, index[:5], pointers, 4),
    ]
    for call in calls:
        with pytest.raises(KernelError):
            call()


@pytest.mark.parametrize("layout,pattern", [("vector", "1:4x4"), ("int8", "2:4x4"), ("nmg", "2:4:2")])
def test_a_weight_may_move_while_it_is_in_use(layout, pattern):
    packed, x = packed_weight(layout, pattern), torch.randn(3, IN)
    wanted = linear(x, packed)
    for plane in packed.tensors.values():
        plane.share_memory_()
        assert torch.equal(linear(x, packed), wanted)
    values = packed.tensors["values"]
    if values.is_floating_point():
        values.data = torch.zeros_like(values)
        assert not linear(x, packed).any()


def test_a_weight_that_is_written_to_in_use_is_looked_at_again():
    packed, x = packed_weight("vector", "1:4x4"), torch.randn(3, IN)
    wanted = linear(x, packed)
    packed.tensors["values"].mul_(2.0)
    assert torch.equal(linear(x, packed), 2 * wanted)
    packed.tensors["pointers"].mul_(1000)
    with pytest.raises(KernelError, match="does not hold together"):
        linear(x, packed)


def _multiply_there(packed, x, queue):
    queue.put(linear(x, packed).sum().item())


@pytest.mark.slow
def test_a_weight_may_be_sent_to_another_process():
    packed, x = packed_weight("vector", "1:4x4"), torch.randn(3, IN)
    wanted = linear(x, packed)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = torch.multiprocessing.get_context("spawn").Process(target=_multiply_there, args=(packed, x, queue))
    child.start()
    assert queue.get(timeout=60) == pytest.approx(wanted.sum().item(), abs=1e-4)
    child.join(60)
    assert torch.equal(linear(x, packed), wanted)
