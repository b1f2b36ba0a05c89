"""Results of sparse convolution against float64, for every group, geometry, memory format and odd shape."""

import os
import subprocess
import sys
from itertools import product

import pytest
import torch

from sparsewright._native import instruction_sets
from sparsewright.core import KernelError
from sparsewright.kernels import conv2d, linear, reference_conv2d, which_conv2d, why_not_conv2d

# Written once: the reference uses the stored values, so half values lose nothing more.
TOLERANCE = 5e-6
PATTERNS = ("2:4", "1:4x4", "3:8x8", "10%", "60%", "2x1@30%", "4x1@50%", "16x1@10%")


def random_input(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def assert_close(x, packed, bias=None, **how):
    truth = reference_conv2d(x.double(), packed, None if bias is None else bias.double(), **how)
    y = conv2d(x, packed, bias, **how)
    assert y.shape == truth.shape
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), truth, rtol=0, atol=TOLERANCE)
    return y


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("value_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_results_agree_with_float64(packed_weight, pattern, value_dtype):
    packed = packed_weight(pattern, 48, 32 * 9, value_dtype)
    bias = random_input(48)
    for batch, size in product((1, 3), (1, 5, 14, 33)):
        x = random_input(batch, 32, size, size)
        assert_close(x, packed, bias, kernel_size=3, padding=1)
        assert_close(channels_last(x), packed, bias, kernel_size=3, padding=1)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 5), (1, 7)])
@pytest.mark.parametrize("stride", [1, 2, (3, 1)])
@pytest.mark.parametrize("dilation", [1, (2, 3)])
def test_every_geometry_agrees_with_float64(packed_weight, kernel, stride, dilation):
    packed = packed_weight("4x1@40%", 13, 6 * kernel[0] * kernel[1])
    bias = random_input(13)
    for padding, size in product((0, 1, (2, 3), (1, 0, 0, 2), (5, 5, 9, 9)), ((9, 23), (20, 19))):
        x = random_input(2, 6, *size)
        how = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
        assert_close(x, packed, bias, **how)
        assert_close(channels_last(x), packed, bias, **how)


@pytest.mark.parametrize("pattern", ["30%", "2x1@50%", "4x1@50%", "16x1@25%"])
@pytest.mark.parametrize("out,channels,size", [(1, 1, (1, 1)), (3, 5, (4, 1)), (37, 11, (1, 40)), (130, 67, (6, 7))])
def test_no_shape_is_too_odd(packed_weight, pattern, out, channels, size):
    x = random_input(2, channels, *size)
    one = packed_weight(pattern, out, channels) if out * channels > 1 else packed_weight("50%", 1, 1)
    wide = packed_weight(pattern, out, channels * 9)
    for view in (x, channels_last(x), x.transpose(0, 1).contiguous().transpose(0, 1), x.flip(3)):
        assert_close(view, one, kernel_size=1)
        assert_close(view, wide, kernel_size=3, padding=1)


def test_same_padding_is_that_of_torch(packed_weight):
    packed = packed_weight("4x1@50%", 16, 8 * 4 * 2)
    x = random_input(1, 8, 10, 11)
    weight = packed.unpack().view(16, 8, 4, 2)
    truth = torch.nn.functional.conv2d(x.double(), weight.double(), padding="same", dilation=(1, 2))
    y = conv2d(x, packed, kernel_size=(4, 2), padding="same", dilation=(1, 2))
    torch.testing.assert_close(y.double(), truth, rtol=0, atol=TOLERANCE)
    with pytest.raises(KernelError, match="same"):
        conv2d(x, packed, kernel_size=(4, 2), padding="same", stride=2)


def test_groups_of_channels_run_where_they_hold_whole_row_groups(packed_weight):
    x = random_input(2, 24, 9, 9)
    for pattern, groups in (("4x1@50%", 3), ("40%", 24), ("2x1@50%", 4)):
        packed = packed_weight(pattern, 48, 24 // groups * 9)
        assert_close(x, packed, random_input(48), kernel_size=3, padding=1, groups=groups)
        assert_close(channels_last(x), packed, kernel_size=3, stride=2, groups=groups)
    packed = packed_weight("16x1@50%", 48, 24 // 4 * 9)
    assert "16 rows" in why_not_conv2d(packed, 4)["pixel_lane"][0]
    with pytest.raises(KernelError, match="16 rows"):
        conv2d(x, packed, kernel_size=3, groups=4)


def test_empty_and_full_weights_agree_with_float64(packed_weight):
    from sparsewright.layouts import pack

    weight = random_input(20, 27)
    empty_rows = torch.ones(20, 27, dtype=torch.bool)
    empty_rows[4:12] = False
    for mask in (torch.zeros(20, 27, dtype=torch.bool), empty_rows, weight > 10):
        packed = pack(weight, mask, "vector", "50%" if mask.sum() * 2 == mask.numel() else None)
        assert_close(random_input(1, 3, 8, 8), packed, random_input(20), kernel_size=3)


def test_an_output_of_one_pixel_is_a_linear_layer(packed_weight):
    packed = packed_weight("4x1@50%", 32, 6 * 20)
    x = random_input(3, 6, 4, 5)
    y = assert_close(x, packed, kernel_size=(4, 5))
    assert torch.equal(y.flatten(1), linear(x.flatten(1), packed))


def test_the_output_has_the_memory_format_of_the_input(packed_weight):
    packed = packed_weight("4x1@50%", 32, 16 * 9)
    x = random_input(2, 16, 8, 8)
    assert conv2d(x, packed, kernel_size=3).is_contiguous()
    assert conv2d(channels_last(x), packed, kernel_size=3).is_contiguous(memory_format=torch.channels_last)
    assert conv2d(x[0], packed, kernel_size=3).shape == (32, 6, 6)
    assert conv2d(x[:0], packed, kernel_size=3).shape == (0, 32, 6, 6)


@pytest.mark.parametrize("pattern", ["1:4", "2x1@20%", "1:4x4", "1:4x16", "20%"])
def test_bits_depend_on_neither_threads_nor_format_nor_place_in_the_batch(packed_weight, pattern):
    packed = packed_weight(pattern, 128, 64 * 9)
    threads = torch.get_num_threads()
    try:
        for how in ({"padding": 1}, {"stride": 2, "padding": (0, 1, 1, 0)}, {}):
            x = random_input(5, 64, 30, 30)
            torch.set_num_threads(1)
            once = conv2d(x, packed, kernel_size=3, **how)
            assert torch.equal(once, conv2d(channels_last(x), packed, kernel_size=3, **how))
            assert torch.equal(once[2:3], conv2d(x[2:3], packed, kernel_size=3, **how))
            for count in (2, 3, 8):
                torch.set_num_threads(count)
                assert torch.equal(once, conv2d(x, packed, kernel_size=3, **how))
                assert torch.equal(once[:1], conv2d(x[:1], packed, kernel_size=3, **how))
                assert torch.equal(once[:2], conv2d(channels_last(x[:2]), packed, kernel_size=3, **how))
    finally:
        torch.set_num_threads(threads)


# Every set meets its contract in tests/native; here the way from Python is tried, with long vectors and without.
@pytest.mark.parametrize("isa", [name for name in instruction_sets()[1:] if name in ("avx2", "scalar")])
def test_a_lower_instruction_set_gives_the_same_results(packed_weight, tmp_path, isa):
    for number, (pattern, value_dtype) in enumerate(product(("1:4", "2x1@30%", "1:4x4", "16x1@30%"), TYPES)):
        packed = packed_weight(pattern, 48, 16 * 9, value_dtype)
        x = random_input(1, 16, 11, 13)
        results = [conv2d(x, packed, kernel_size=3, stride=stride, padding=1) for stride in (1, 2)]
        saved = {"dense": packed.unpack(), "x": x, "results": results, "pattern": pattern}
        torch.save(saved, tmp_path / f"{number}.pt")
    program = """
import pathlib, sys, torch
from sparsewright._native import instruction_set
from sparsewright.core import parse_pattern
from sparsewright.kernels import conv2d
from sparsewright.layouts import pack
assert instruction_set() == sys.argv[2]
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.pt")):
    saved = torch.load(path, weights_only=True)
    packed = pack(saved["dense"], saved["dense"] != 0, "vector", parse_pattern(saved["pattern"]))
    for stride, y in zip((1, 2), saved["results"]):
        for memory in (torch.contiguous_format, torch.channels_last):
            x = saved["x"].contiguous(memory_format=memory)
            torch.testing.assert_close(
                conv2d(x, packed, kernel_size=3, stride=stride, padding=1), y, rtol=0, atol=5e-6, check_stride=False
            )
print("same")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), isa],
        env={**os.environ, "SPARSEWRIGHT_ISA": isa},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "same", done.stderr


TYPES = (torch.float32, torch.float16)


@pytest.mark.parametrize("how", [{}, {"stride": 2, "padding": 1}, {"padding": (0, 1, 2, 0), "dilation": 2}])
def test_gradients_agree_with_float64(packed_weight, how):
    packed = packed_weight("4x1@40%", 12, 5 * 9)
    x, bias = random_input(2, 5, 9, 10).requires_grad_(), random_input(12).requires_grad_()
    exact_x, exact_bias = (tensor.detach().double().requires_grad_() for tensor in (x, bias))
    y = conv2d(x, packed, bias, kernel_size=3, **how)
    truth = reference_conv2d(exact_x, packed, exact_bias, kernel_size=3, **how)
    upstream = random_input(*y.shape)
    y.backward(upstream)
    truth.backward(upstream.double())
    torch.testing.assert_close(x.grad.double(), exact_x.grad, rtol=0, atol=1e-5)
    torch.testing.assert_close(bias.grad.double(), exact_bias.grad, rtol=0, atol=1e-4)


def test_the_operator_passes_the_checks_of_torch(packed_weight):
    packed = packed_weight("4x1@40%", 12, 5 * 9)
    tensors = (packed.tensors["values"], packed.tensors["index"], packed.tensors["pointers"])
    sizes = ([3, 3], [2, 1], [1, 1, 0, 2], [1, 1], 1)
    x = random_input(2, 5, 9, 10).requires_grad_()
    bias = random_input(12).requires_grad_()
    torch.library.opcheck(torch.ops.sparsewright.conv2d.default, (x, *tensors, bias, 12, *sizes))
    torch.library.opcheck(
        torch.ops.sparsewright.conv2d.default, (channels_last(x.detach()), *tensors, None, 12, *sizes)
    )
    grad = conv2d(x.detach(), packed, kernel_size=3, stride=(2, 1), padding=(1, 1, 0, 2)).requires_grad_()
    torch.library.opcheck(torch.ops.sparsewright.conv2d_input_grad.default, (grad, *tensors, [2, 5, 9, 10], *sizes))


def test_what_no_kernel_can_do_is_refused_with_reasons(packed_weight):
    packed = packed_weight("4x1@40%", 12, 5 * 9)
    x = random_input(1, 5, 9, 9)
    with pytest.raises(KernelError, match=r"\(batch, 5, height, width\)"):
        conv2d(random_input(1, 4, 9, 9), packed, kernel_size=3)
    with pytest.raises(KernelError, match="float32"):
        conv2d(x.double(), packed, kernel_size=3)
    with pytest.raises(KernelError, match="larger than the padded input"):
        conv2d(random_input(1, 5, 2, 9), packed, kernel_size=3)
    with pytest.raises(KernelError, match="no 4x4 kernel"):
        conv2d(x, packed, kernel_size=4)
    with pytest.raises(KernelError, match="bias of shape"):
        conv2d(x, packed, random_input(11), kernel_size=3)
    with pytest.raises(KernelError, match="stride"):
        conv2d(x, packed, kernel_size=3, stride=0)
    whole = packed_weight("4x1@40%", 12, 5 * 9, torch.int8, "int8")
    with pytest.raises(KernelError, match="it reads the layout 'vector', the weight has 'int8'"):
        conv2d(x, whole, kernel_size=3)


def test_dense_runs_only_where_the_layout_asks_for_it(packed_weight):
    masked = packed_weight("4x1@40%", 12, 5 * 9, layout="masked")
    assert which_conv2d(masked) == "masked_dense"
    assert_close(random_input(1, 5, 9, 9), masked, kernel_size=3, padding=1)
    assert which_conv2d(packed_weight("4x1@40%", 12, 5 * 9)) == "pixel_lane"


@pytest.mark.parametrize(
    "wrong",
    [
        {"stride": (1.5, 1)},
        {"stride": 1.5},
        {"kernel_size": "3"},
        {"padding": None},
        {"padding": (1.5, 1)},
        {"padding": (1, 1, 0.5, 1)},
    ],
    ids=str,
)
def test_sizes_that_are_no_integers_are_refused(packed_weight, wrong):
    packed = packed_weight("2:4", 8, 36)
    with pytest.raises(KernelError, match="integers"):
        conv2d(torch.randn(1, 4, 9, 9), packed, **{"kernel_size": 3, **wrong})


def test_autocast_gives_its_dtype_from_float32_sums(packed_weight):
    packed, x = packed_weight("2:4", 8, 36), random_input(2, 4, 9, 9)
    wanted = conv2d(x, packed, kernel_size=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(conv2d(x, packed, kernel_size=3), wanted.bfloat16())
        low = conv2d(x.bfloat16(), packed, kernel_size=3)
        learning = x.clone().requires_grad_()
        conv2d(learning, packed, kernel_size=3).float().sum().backward()
    assert torch.equal(low, conv2d(x.bfloat16().float(), packed, kernel_size=3).bfloat16())
    assert learning.grad.dtype == torch.float32
    assert learning.grad.abs().sum() > 0
