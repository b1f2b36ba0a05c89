"""`export_onnx`: a model with packed layers becomes one ONNX file that any runtime loads and that stays small.

Every packed layer is one node of the domain `sparsewright` holding the planes of its layout, and the file carries each
operator's meaning as a function over standard operators (`onnx_functions`). So the file is small, and a runtime without
kernels for the domain runs it densely: what it saves there is bytes, not time.
"""

import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from ..core import (
    BundleError,
    KernelError,
    MissingPackageError,
    ModelError,
    SparsewrightError,
    atomic_write,
    require_module,
    require_whole,
)
from ..layouts import PackedWeight
from ..models import eval_mode
from ..nn import PackedLinear, SparseTensor, operators
from .onnx_functions import DOMAIN, LAYOUTS, OPERATORS, translations

# Protocol buffers hold no more in one message.
_MOST_BYTES = 2**31 - 1
# Of the largest value of an answer. int8 layers may round an input that lies between two steps the other way.
_TOLERANCE, _INT8_TOLERANCE = 1e-4, 3e-2
# float16 is rounded after every layer, and onnxruntime sums in another order.
_FLOAT16_TOLERANCE = 1e-2


@final
@dataclass(frozen=True)
class OnnxFile:
    """What was written.

    Attributes:
        path: the file.
        size_bytes: its size.
        packed_layers: operator of the domain `sparsewright` -> nodes.
        dense_weight_bytes: what the packed layers' weights would take as dense float32 matrices.
        inputs, outputs: names, in order.
        error: largest difference between onnxruntime's and torch's answer to the example / largest value of the
            answer; None if it was not checked.
    """

    path: Path
    size_bytes: int
    packed_layers: Mapping[str, int]
    dense_weight_bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    error: float | None


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Any,
    *,
    dynamic_shapes: Any = "free",
    check: bool = True,
) -> OnnxFile:
    """Write a model as ONNX.

    Args:
        model: on the CPU; packed layers (layouts `vector`, `int8`, `int8_weights` and `nmg`, convolutions too) become
            nodes of our domain, masked and dense layers become standard nodes. It is exported in evaluation mode,
            packed weights that train as what they are now, and left as it was.
        path: goal; an earlier file stays as it was until the new one is whole.
        example: one input: a tensor, a tuple of tensors, or a mapping by keyword.
        dynamic_shapes: `free` leaves the first two axes of every input open (items and tokens) wherever the model
            allows it; None fixes all sizes to the example's; anything else goes to `torch.export` as it is.
        check: run the file on the example with onnxruntime before it takes its place.

    Raises:
        MissingPackageError: onnx or onnxscript is not installed, or onnxruntime where `check` asks for it.
        ModelError: torch cannot export the model, it is sharded, its answer holds no tensor, or it computes in bfloat16
            and `check` asks onnxruntime to run that.
        KernelError: a packed layer is of a layout that has no ONNX operator.
        BundleError: onnxruntime answers otherwise than torch, or the file would be larger than 2 GiB.
        FileError: the folder is read-only, or the disk is full; nothing was changed.
    """
    _require("onnx", "onnxscript", *(["onnxruntime"] if check else []))
    require_module(model)
    goal = Path(path)
    for name, parameter in model.named_parameters():
        require_whole(parameter, name)
    _require_forms(model)
    names, args, kwargs = _call(example)
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if not given or not all(value.numel() for value in given):
        raise ModelError(
            "An example is an input with something in it, a tensor, a tuple or a mapping of tensors; got "
            f"{example!r:.80}."
        )
    with eval_mode(model), _stand_ins(model), torch.no_grad():
        expected = _tensors(model(*args, **kwargs))
        if not expected:
            raise ModelError(f"{type(model).__name__} answers without a tensor, so there is nothing to export.")
        if check:
            _require_runnable([*given, *expected.values(), *model.parameters()])
            _require_finite_answers(expected)
        program = _program(model, args, kwargs, dynamic_shapes)
        proto = _translate(program, names, list(expected))
    _finish(proto)
    size = proto.ByteSize()
    if size > _MOST_BYTES:
        raise BundleError(
            f"One ONNX file holds at most 2 GiB, this model needs {size:,} bytes. Prune more, or save it as a bundle "
            "with `sw.save`."
        )
    nodes = Counter(node.op_type for node in proto.graph.node if node.domain == DOMAIN)
    with atomic_write(goal) as temporary:
        temporary.write_bytes(proto.SerializeToString())
        error = _compare(temporary, {**dict(zip(names, args)), **kwargs}, expected) if check else None
        _require_close(error, _tolerance(expected, any("Int8" in name for name in nodes)))
    return OnnxFile(
        goal,
        goal.stat().st_size,
        nodes,
        sum(4 * weight.numel() for weight in model.parameters() if isinstance(weight, SparseTensor)),
        tuple(entry.name for entry in proto.graph.input),
        tuple(entry.name for entry in proto.graph.output),
        error,
    )


def _require(*packages: str) -> None:
    for package in packages:
        if find_spec(package) is None:
            raise MissingPackageError(f"{package} is not installed; `pip install sparsewright[onnx]` brings it.")


def _require_forms(model: nn.Module) -> None:
    """Raise KernelError where a packed layer's layout has no form in ONNX."""
    # Operators of others are traced through, and so consist of standard ones.
    traced = {operator.layout for _, operator in operators.items()}
    for name, packed in _packed_layers(model):
        if packed.layout not in LAYOUTS and packed.layout not in traced:
            known = ", ".join(repr(layout) for layout in LAYOUTS)
            raise KernelError(
                f"{name or 'The model'} is packed in the layout {packed.layout!r}, which has no form in ONNX. Unpack "
                f"it and pack it in one that has ({known}), or leave it dense."
            )


def _packed_layers(model: nn.Module) -> Iterator[tuple[str, PackedWeight]]:
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if isinstance(weight, SparseTensor):
            yield name, weight.packed
        elif isinstance(module, PackedLinear):
            yield name, module.packed


@contextmanager
def _stand_ins(model: nn.Module) -> Iterator[None]:
    """Other, frozen tensors around the same packed weights inside the block.

    Frozen, because exporters would ask a gradient of the indices too. Others, because torch.export leaves weak
    references behind, and a module does not move a tensor subclass that has any (`.half()`, `.to(device)`).
    """
    held: list[tuple[nn.Module, str, Any]] = [
        (module, name, weight)
        for module in model.modules()
        for name, weight in module._parameters.items()
        if isinstance(weight, SparseTensor)
    ]
    made: dict[int, nn.Parameter] = {}
    try:
        for module, name, weight in held:
            # Tied weights stay tied.
            made.setdefault(id(weight), nn.Parameter(weight.like(weight.packed), requires_grad=False))
            module._parameters[name] = made[id(weight)]
        yield
    finally:
        for module, name, weight in held:
            module._parameters[name] = weight


def _call(example: Any) -> tuple[list[str], tuple[Any, ...], dict[str, Any]]:
    """Names of the inputs, and how the model is called with the example."""
    if isinstance(example, Mapping):
        return list(example), (), dict(example)
    args = tuple(example) if isinstance(example, tuple | list) else (example,)
    return ["input"] if len(args) == 1 else [f"input_{number}" for number in range(len(args))], args, {}


def _tensors(answer: Any) -> dict[str, Tensor]:
    """The answer's tensors by name: `output` for a bare one, keys of a mapping, numbers otherwise."""
    if isinstance(answer, Tensor):
        return {"output": answer}
    if isinstance(answer, Mapping) and all(isinstance(value, Tensor) for value in answer.values()):
        return {str(name): value for name, value in answer.items()}
    leaves = torch.utils._pytree.tree_leaves(answer)
    return {f"output_{number}": value for number, value in enumerate(leaves) if isinstance(value, Tensor)}


def _program(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any) -> Any:
    """The exported program, packed operators in it."""
    if dynamic_shapes == "free":
        # A size of 1 would be taken for a constant.
        args = tuple(_doubled(value) for value in args)
        kwargs = {name: _doubled(value) for name, value in kwargs.items()}
        free = (*map(_free, args),) if args else {name: _free(value) for name, value in kwargs.items()}
    else:
        free = dynamic_shapes
    try:
        with _silence():
            return torch.export.export(model, args, kwargs, dynamic_shapes=free, strict=False)
    except Exception as error:
        raise _refusal(f"torch cannot export {type(model).__name__}", error) from error


def _doubled(value: Any) -> Any:
    one = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == 1
    return torch.cat([value, value]) if one else value


def _free(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return None
    return dict.fromkeys(range(min(2, value.dim())), torch.export.Dim.AUTO)


def _translate(program: Any, names: list[str], outputs: list[str]) -> Any:
    """The model proto, packed layers as bare nodes."""
    table = translations()
    for node in program.graph.nodes:
        name = str(node.target)
        if name.startswith("sparsewright.") and node.target not in table:
            raise KernelError(
                f"The operator {name} has no form in ONNX. Pack the layer in the layout 'vector' or 'int8', or leave "
                "it dense."
            )
    try:
        with _silence():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=names,
                output_names=outputs,
                custom_translation_table=table,
                verbose=False,
            )
            assert exported is not None
            return exported.model_proto
    except Exception as error:
        raise _refusal("torch cannot translate the model to ONNX", error) from error


def _refusal(what: str, error: BaseException) -> SparsewrightError:
    """One sentence for an exporter's failure: its first cause, which is an error of ours or of anybody's."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error if isinstance(error, SparsewrightError) else ModelError(f"{what}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def _silence() -> Iterator[None]:
    """Exporters warn of much that is no concern of whoever exports."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _finish(proto: Any) -> None:
    """Append the functions that are used, name planes after their layers, and drop what only debuggers read."""
    from onnx import parser

    standard = next(entry.version for entry in proto.opset_import if entry.domain == "")
    used = [node for node in proto.graph.node if node.domain == DOMAIN]
    for name in sorted({node.op_type for node in used}):
        proto.functions.append(parser.parse_function(OPERATORS[name].text(standard)))
    _name_planes(proto.graph, used)
    graph = proto.graph
    described = (*graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info)
    for held in (proto, graph, *described):
        # Stack traces, paths of sources among them.
        del held.metadata_props[:]
        held.doc_string = ""


def _name_planes(graph: Any, used: list[Any]) -> None:
    """`<layer>.parametrizations.weight.original0` becomes `<layer>.weight.values`, as in our own files."""
    renamed: dict[str, str] = {}
    for node in used:
        operator = OPERATORS[node.op_type]
        # All inputs are there, the missing bias by an empty name.
        node.input.extend([""] * (len(operator.inputs) - len(node.input)))
        for place, plane in enumerate(operator.inputs[1:-1], 1):
            layer, found, _ = node.input[place].rpartition("parametrizations.weight.original")
            if found:
                renamed[node.input[place]] = f"{layer}weight.{plane}"
    for initializer in graph.initializer:
        initializer.name = renamed.get(initializer.name, initializer.name)
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
    for entry in graph.value_info:
        entry.name = renamed.get(entry.name, entry.name)


def _require_runnable(tensors: Iterable[Tensor]) -> None:
    if any(tensor.dtype == torch.bfloat16 for tensor in tensors):
        raise ModelError(
            "Exported files are run by onnxruntime on the CPU, which has no bfloat16 kernels, and this model computes "
            "in bfloat16. Export it after `.float()` or `.half()`, or with `check=False` for a runtime that has them."
        )


def _require_finite_answers(expected: Mapping[str, Tensor]) -> None:
    """Examples are judged by their answers: a mask of minus infinity is a good input."""
    strange = next((name for name, tensor in expected.items() if not bool(torch.isfinite(tensor).all())), None)
    if strange is not None:
        raise ModelError(
            f"Answers to an example are compared, so they must be finite, but torch's {strange!r} holds NaN or "
            "infinity. Pass an example with a finite answer, or export with `check=False`."
        )


def _compare(path: Path, inputs: Mapping[str, Any], expected: Mapping[str, Tensor]) -> float:
    """Largest difference between onnxruntime's answer and torch's / largest value of the answer."""
    from ..hardware.onnx_rival import open_session

    try:
        session = open_session(path)
        wanted = [entry.name for entry in session.get_inputs()]
        found = session.run(list(expected), {name: inputs[name].numpy() for name in wanted})
    except Exception as error:
        # Its errors have no common class below Exception.
        raise BundleError(f"onnxruntime does not run the exported file: {_first_line(error)}") from error
    worst = torch.zeros((), dtype=torch.float64)
    for answer, tensor in zip(found, expected.values()):
        if tensor.numel():
            difference = (torch.from_numpy(answer).double() - tensor.double()).abs().max()
            # Unlike `max`, this keeps NaN.
            worst = worst.maximum(difference / tensor.double().abs().max().clamp_min(1e-30))
    return float(worst)


def _tolerance(expected: Mapping[str, Tensor], rounds: bool) -> float:
    half = any(tensor.dtype == torch.float16 for tensor in expected.values())
    return max(_INT8_TOLERANCE if rounds else _TOLERANCE, _FLOAT16_TOLERANCE if half else 0.0)


def _require_close(error: float | None, allowed: float) -> None:
    # NaN is no answer either.
    if error is not None and not error <= allowed:
        raise BundleError(
            f"onnxruntime's answer to the example differs from torch's by {error:.1e} of its largest value, more than "
            f"{allowed:.0e}. Export with `check=False` to look at the file."
        )
