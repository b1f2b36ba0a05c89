"""Packed layers in ONNX: operators of the domain `sparsewright`, and what each means in standard operators.

A node holds the planes of its layout as they lie in memory. Its function body, which any runtime can inline, makes the
dense weight of them with standard operators and multiplies by it; a runtime that folds constants does the first part
once, at load. A runtime with kernels of its own for the domain takes the node instead.

| operator | inputs | attributes |
| --- | --- | --- |
| `VectorLinear` | x, values, index, pointers, bias? | out, in_columns, block_columns |
| `Int8Linear` | x, values, columns, pointers, scale, bias? | out, in_columns |
| `Int8DenseLinear` | x, values, scale, bias? | out, in_columns |

Planes are those of `layouts.vector` and `layouts.int8`. The int8 bodies round x as the kernels do: from two tokens on,
to 7 bits, one range per token.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch

from ..core import ModelError
from ..layouts.vector import block_columns

DOMAIN = "sparsewright"
VERSION = 1

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


@final
@dataclass(frozen=True)
class OnnxOperator:
    """One operator of the domain.

    Attributes:
        name: its name in the domain.
        inputs: its inputs in order; the last is the bias, which may be missing.
        attributes: its integer attributes.
        body: its meaning, in the textual form of ONNX.
    """

    name: str
    inputs: tuple[str, ...]
    attributes: tuple[str, ...]
    body: str

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
OPERATORS: Mapping[str, OnnxOperator] = {operator.name: operator for operator in (VECTOR, INT8, INT8_DENSE)}


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

    return {ops.linear.default: vector, ops.int8_linear.default: int8}


def _by_name(overload: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by the names of the schema, so that its order and its further arguments do not matter."""
    names = [argument.name for argument in overload._schema.arguments]
    return {**dict.fromkeys(names), **dict(zip(names, args)), **kwargs}


def _columns(x: Any) -> int:
    width = x.shape[-1]
    # A size that was free until the layer fixed it comes as a symbol that is named by its number.
    text = str(width if isinstance(width, int) else width.value)
    if not text.isdecimal():
        raise ModelError(
            f"A packed layer's input must have a fixed last dimension in the exported graph, got {text}. Export with "
            "other `dynamic_shapes`."
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
        attributes=[schema.Attribute(name, schema.AttrType.INT, "", required=True) for name in operator.attributes],
    )
    writer: Callable[..., Any] = onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, VERSION), operator.name, declared)
    return writer
