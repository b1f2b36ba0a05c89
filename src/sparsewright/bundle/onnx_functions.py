"""Packed layers in ONNX: operators of the domain `sparsewright`, and what each means in standard operators.

A node holds the planes of its layout as they lie in memory. Its function body, which any runtime can inline, makes the
dense weight of them with standard operators and multiplies by it; a runtime that folds constants does the first part
once, at load. A runtime with kernels of its own for the domain takes the node instead.

| operator | inputs | attributes |
| --- | --- | --- |
| `VectorLinear` | x, values, index, pointers, bias? | out, in_columns, block_columns |
| `Int8Linear` | x, values, columns, pointers, scale, bias? | out, in_columns |
| `Int8DenseLinear` | x, values, scale, bias? | out, in_columns |
| `NmgLinear` | x, values, index, bias? | out, in_columns, block_rows, kept_rows |
| `VectorConv` | x, values, index, pointers, bias? | those of `VectorLinear` and of `Conv` |

Planes are those of `layouts.vector`, `layouts.int8` and `layouts.nmg`; `kept_rows` lists, pattern after pattern, the
rows of a block that it keeps. The int8 bodies round x as the kernels do: from two tokens on, to 7 bits, one range per
token.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch

from ..core import ModelError
from ..core.grouped import kept_rows
from ..layouts.vector import block_columns

DOMAIN = "sparsewright"
VERSION = 1

LAYOUTS: Mapping[str, str] = {
    "vector": "VectorLinear",
    "int8_weights": "VectorLinear",
    "int8": "Int8Linear",
    "nmg": "NmgLinear",
    "masked": "",
}
"""Layout -> the operator that its linear layers become; empty: the standard one, with every zero. Others have none."""

_PLANE_TYPES = tuple(f"tensor({name})" for name in ("float", "float16", "uint8", "int8", "int16", "int32"))

_CONSTANTS = """
    out = Constant <value_int: int = @out> ()
    in_columns = Constant <value_int: int = @in_columns> ()
    first = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    last = Constant <value_ints = [-1]> ()
    axis = Constant <value_int = 0> ()
    out_list = Reshape (out, last)
    in_list = Reshape (in_columns, last)
"""

# `segment`: for each of `kept` places, in which segment it lies. Segments follow one another, some may be empty; a
# place lies in the last one that begins at or before it.
_SEGMENTS = """
    starts = Reshape (begins, last)
    with_end = Add (kept, one)
    nothing = ConstantOfShape <value = int64[1] {0}> (with_end)
    segments = Shape (starts)
    ones = ConstantOfShape <value = int64[1] {1}> (segments)
    beginning = ScatterElements <axis = 0, reduction = "add"> (nothing, starts, ones)
    begun = CumSum (beginning, axis)
    begun_here = Slice (begun, first, kept)
    segment = Sub (begun_here, one)
"""

# Where a plane's rows of `group` values go in zeros `(groups * in, group)`, and the `(out, in)` weight that this makes.
_SCATTER = """
    row_start = Mul (row_group, in_columns)
    place = Add (row_start, column)
    place_list = Reshape (place, last)
    at = Unsqueeze (place_list, last)
    slots = Mul (groups, in_list)
    room = Concat <axis = 0> (slots, group)
    zeros = ConstantOfShape <value = float[1] {0}> (room)
    scattered = ScatterND <reduction = "add"> (zeros, at, floats)
    by_group_shape = Concat <axis = 0> (groups, in_list, group)
    by_group = Reshape (scattered, by_group_shape)
    turned = Transpose <perm = [0, 2, 1]> (by_group)
    rows_shape = Concat <axis = 0> (last, in_list)
    all_rows = Reshape (turned, rows_shape)
"""

_VECTOR_PLACES = """
    width = Constant <value_int: int = @block_columns> ()
    places = Cast <to = 7> (pointers)
    begins = Slice (places, first, last, one)
    kept = Shape (index)
"""
_VECTOR_WEIGHT = """
    groups = Shape <start = 1> (begins)
    row_group = Mod (segment, groups)
    block = Div (segment, groups)
    inside = Cast <to = 7> (index)
    before = Mul (block, width)
    column = Add (before, inside)
    group = Shape <start = 1> (values)
    floats = Cast <to = 1> (values)
"""

_INT8_PLACES = """
    places = Cast <to = 7> (pointers)
    begins = Slice (places, first, last)
    kept = Shape <end = 1> (values)
"""
# Columns are unsigned numbers of 16 bits that lie in signed ones.
_INT8_WEIGHT = """
    groups = Shape (begins)
    row_group = Unsqueeze (segment, last)
    whole = Constant <value_int = 65536> ()
    signed = Cast <to = 7> (columns)
    lifted = Add (signed, whole)
    column = Mod (lifted, whole)
    group = Shape <start = 1, end = 2> (values)
    single = Transpose <perm = [0, 2, 1]> (values)
    slots_shape = Concat <axis = 0> (last, group)
    by_slot = Reshape (single, slots_shape)
    floats = Cast <to = 1> (by_slot)
"""
_INT8_DENSE_WEIGHT = """
    three = Constant <value_ints = [3]> ()
    four = Constant <value_ints = [4]> ()
    filled = Add (in_list, three)
    quads = Div (filled, four)
    group = Shape <start = 1, end = 2> (values)
    by_group_shape = Concat <axis = 0> (last, quads, group, four)
    by_group = Reshape (values, by_group_shape)
    turned = Transpose <perm = [0, 2, 1, 3]> (by_group)
    columns = Mul (quads, four)
    rows_shape = Concat <axis = 0> (last, columns)
    padded_rows = Reshape (turned, rows_shape)
    bytes = Slice (padded_rows, first, in_list, one)
    all_rows = Cast <to = 1> (bytes)
"""
# A slot without a column (-1) holds zeros, which may be added to any column.
_NMG_WEIGHT = """
    block_height = Constant <value_int: int = @block_rows> ()
    rows_of_all = Constant <value_ints: ints = @kept_rows> ()
    single = Constant <value_int = 1> ()
    chunks = Shape <start = 0, end = 1> (values)
    blocks = Shape <start = 1, end = 2> (values)
    patterns = Shape <start = 2, end = 3> (values)
    slots = Shape <start = 3, end = 4> (values)
    kept = Shape <start = 4> (values)
    chunk_count = Squeeze (chunks)
    chunk = Range (axis, chunk_count, single)
    chunk_columns = Mul (patterns, slots)
    chunk_start = Mul (chunk, chunk_columns)
    by_chunk_shape = Concat <axis = 0> (last, one, one, one, one)
    by_chunk = Reshape (chunk_start, by_chunk_shape)
    signed = Cast <to = 7> (index)
    inside = Max (signed, first)
    column = Add (by_chunk, inside)
    block_count = Squeeze (blocks)
    block = Range (axis, block_count, single)
    block_start = Mul (block, block_height)
    by_block_shape = Concat <axis = 0> (last, one, one, one)
    by_block = Reshape (block_start, by_block_shape)
    rows_shape = Concat <axis = 0> (patterns, one, kept)
    rows = Reshape (rows_of_all, rows_shape)
    row = Add (by_block, rows)
    row_start = Mul (row, in_columns)
    place = Add (row_start, column)
    place_list = Reshape (place, last)
    floats = Cast <to = 1> (values)
    float_list = Reshape (floats, last)
    height = Mul (blocks, block_height)
    room = Mul (height, in_list)
    zeros = ConstantOfShape <value = float[1] {0}> (room)
    scattered = ScatterElements <axis = 0, reduction = "add"> (zeros, place_list, float_list)
    weight_shape = Concat <axis = 0> (last, in_list)
    all_rows = Reshape (scattered, weight_shape)
"""
_SCALED = """
    scales = Unsqueeze (scale, last)
    scaled = Mul (all_rows, scales)
    weight = Slice (scaled, first, out_list, first)
"""
_ROUNDED = """
    half_of = Constant <value_float = 0.5> ()
    smallest = Constant <value_float = 5e-31> ()
    top_step = Constant <value_float = 127.0> ()
    half_steps = Constant <value_float = 63.5> ()
    none = Constant <value_float = 0.0> ()
    low = ReduceMin <keepdims = 1> (x, last)
    top = ReduceMax <keepdims = 1> (x, last)
    low_half = Mul (low, half_of)
    top_half = Mul (top, half_of)
    half = Sub (top_half, low_half)
    varies = Greater (half, smallest)
    steep = Div (top_step, half)
    inverse = Where (varies, steep, none)
    long_step = Div (half, half_steps)
    step = Where (varies, long_step, none)
    x_half = Mul (x, half_of)
    above = Sub (x_half, low_half)
    in_steps = Mul (above, inverse)
    raised = Add (in_steps, half_of)
    steps = Floor (raised)
    grown = Mul (steps, step)
    rounded = Add (low, grown)
    size = Size (x)
    tokens = Div (size, in_list)
    single_token = Equal (tokens, one)
    inputs = Where (single_token, x, rounded)
"""
# The bias may be missing: of the standard products only Gemm takes that.
_PRODUCT = """
    flat_shape = Concat <axis = 0> (last, in_list)
    flat = Reshape (inputs, flat_shape)
    product = Gemm <transB = 1> (flat, weight, bias)
    leading = Shape <end = -1> (x)
    shape = Concat <axis = 0> (leading, out_list)
    y = Reshape (product, shape)
"""
_AS_IT_IS = """
    inputs = Identity (x)
    weight = Slice (all_rows, first, out_list, first)
"""
_CONVOLVED = """
    kernel_list = Constant <value_ints: ints = @kernel_shape> ()
    matrix = Slice (all_rows, first, out_list, first)
    weight_shape = Concat <axis = 0> (out_list, last, kernel_list)
    weight = Reshape (matrix, weight_shape)
    y = Conv <strides: ints = @strides, pads: ints = @pads, dilations: ints = @dilations, group: int = @group>
        (x, weight, bias)
"""


@final
@dataclass(frozen=True)
class OnnxOperator:
    """One operator of the domain.

    Attributes:
        name: its name in the domain.
        inputs: its inputs in order; the last is the bias, which may be missing.
        attributes: its attributes, integers.
        body: its meaning, in the textual form of ONNX.
        lists: those of its attributes that are lists of integers.
    """

    name: str
    inputs: tuple[str, ...]
    attributes: tuple[str, ...]
    body: str
    lists: tuple[str, ...] = ()

    def text(self, opset: int) -> str:
        """The whole function in the textual form, over a version of the standard operators."""
        head = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>\n'
        return f"{head}{self.name} <{', '.join(self.attributes)}> ({', '.join(self.inputs)}) => (y)\n{{{self.body}}}\n"


VECTOR = OnnxOperator(
    "VectorLinear",
    ("x", "values", "index", "pointers", "bias"),
    ("out", "in_columns", "block_columns"),
    _CONSTANTS + _VECTOR_PLACES + _SEGMENTS + _VECTOR_WEIGHT + _SCATTER + _AS_IT_IS + _PRODUCT,
)
INT8 = OnnxOperator(
    "Int8Linear",
    ("x", "values", "columns", "pointers", "scale", "bias"),
    ("out", "in_columns"),
    _CONSTANTS + _INT8_PLACES + _SEGMENTS + _INT8_WEIGHT + _SCATTER + _SCALED + _ROUNDED + _PRODUCT,
)
INT8_DENSE = OnnxOperator(
    "Int8DenseLinear",
    ("x", "values", "scale", "bias"),
    ("out", "in_columns"),
    _CONSTANTS + _INT8_DENSE_WEIGHT + _SCALED + _ROUNDED + _PRODUCT,
)
NMG = OnnxOperator(
    "NmgLinear",
    ("x", "values", "index", "bias"),
    ("out", "in_columns", "block_rows", "kept_rows"),
    _CONSTANTS + _NMG_WEIGHT + _AS_IT_IS + _PRODUCT,
    ("kept_rows",),
)
VECTOR_CONV = OnnxOperator(
    "VectorConv",
    VECTOR.inputs,
    (*VECTOR.attributes, "kernel_shape", "strides", "pads", "dilations", "group"),
    _CONSTANTS + _VECTOR_PLACES + _SEGMENTS + _VECTOR_WEIGHT + _SCATTER + _CONVOLVED,
    ("kernel_shape", "strides", "pads", "dilations"),
)
OPERATORS: Mapping[str, OnnxOperator] = {
    operator.name: operator for operator in (VECTOR, INT8, INT8_DENSE, NMG, VECTOR_CONV)
}


def translations() -> dict[Any, Callable[..., Any]]:
    """Torch operator -> what writes its node: the table that torch's exporter takes.

    Imports onnx and onnxscript. A function of onnxscript would be inlined by the exporter; a bare node is not.
    """
    nodes = {name: _node_writer(operator) for name, operator in OPERATORS.items()}
    ops = torch.ops.sparsewright

    def vector(*args: Any, **kwargs: Any) -> Any:
        given = _by_name(ops.linear.default, args, kwargs)
        in_ = _columns(given["x"])
        blocks = given["pointers"].shape[0]
        return nodes["VectorLinear"](
            *(given[name] for name in VECTOR.inputs),
            out=given["out"],
            in_columns=in_,
            block_columns=block_columns(in_, blocks),
        )

    def int8(*args: Any, **kwargs: Any) -> Any:
        given = _by_name(ops.int8_linear.default, args, kwargs)
        operator = INT8 if given["columns"].shape[0] else INT8_DENSE
        return nodes[operator.name](
            *(given[name] for name in operator.inputs), out=given["out"], in_columns=_columns(given["x"])
        )

    def nmg(*args: Any, **kwargs: Any) -> Any:
        given = _by_name(ops.nmg_linear.default, args, kwargs)
        return nodes["NmgLinear"](
            *(given[name] for name in NMG.inputs),
            out=given["out"],
            in_columns=_columns(given["x"]),
            block_rows=given["m"],
            kept_rows=kept_rows(int(given["values"].shape[-1]), given["m"]).flatten().tolist(),
        )

    def convolution(*args: Any, **kwargs: Any) -> Any:
        given = _by_name(ops.conv2d.default, args, kwargs)
        height, width = given["kernel_size"]
        top, bottom, left, right = given["padding"]
        in_ = _columns(given["x"], 1) // given["groups"] * height * width
        return nodes["VectorConv"](
            *(given[name] for name in VECTOR_CONV.inputs),
            out=given["out"],
            in_columns=in_,
            block_columns=block_columns(in_, given["pointers"].shape[0]),
            kernel_shape=[height, width],
            strides=list(given["stride"]),
            pads=[top, left, bottom, right],
            dilations=list(given["dilation"]),
            group=given["groups"],
        )

    return {
        ops.linear.default: vector,
        ops.int8_linear.default: int8,
        ops.nmg_linear.default: nmg,
        ops.conv2d.default: convolution,
    }


def _by_name(overload: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by the names of the schema, so that its order and its further arguments do not matter."""
    names = [argument.name for argument in overload._schema.arguments]
    return {**dict.fromkeys(names), **dict(zip(names, args)), **kwargs}


def _columns(x: Any, axis: int = -1) -> int:
    width = x.shape[axis]
    # A size that was free until the layer fixed it comes as a symbol that is named by its number.
    text = str(width if isinstance(width, int) else width.value)
    if not text.isdecimal():
        raise ModelError(
            f"A packed layer's input must have a fixed number of features in the exported graph, got {text}. Export "
            "with other `dynamic_shapes`."
        )
    return int(text)


def _node_writer(operator: OnnxOperator) -> Callable[..., Any]:
    import onnx
    import onnxscript

    schema = onnx.defs.OpSchema
    optional = schema.FormalParameterOption.Optional
    inputs = [schema.FormalParameter(name, f"T{place}") for place, name in enumerate(operator.inputs[:-1])]
    types = [
        (f"T{place}", ["tensor(float)"] if name in ("x", "scale") else list(_PLANE_TYPES), "")
        for place, name in enumerate(operator.inputs[:-1])
    ]
    inputs.append(schema.FormalParameter("bias", "T0", param_option=optional))
    declared = schema(
        operator.name,
        DOMAIN,
        VERSION,
        inputs=inputs,
        outputs=[schema.FormalParameter("y", "T0")],
        type_constraints=types,
        attributes=[
            schema.Attribute(
                name, schema.AttrType.INTS if name in operator.lists else schema.AttrType.INT, "", required=True
            )
            for name in operator.attributes
        ],
    )
    writer: Callable[..., Any] = onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, VERSION), operator.name, declared)
    return writer
