"""onnxruntime as a rival: the dense model exported, optionally quantised, behind the dense model's own interface."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from ..core import MissingPackageError, ModelError

_FP32 = "rival_fp32.onnx"
_INT8 = "rival_int8.onnx"


@final
class NamedOutput(dict[str, Any]):
    """An answer with one named tensor, reachable as attribute, key or first item, as transformers' outputs are."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error

    def __getitem__(self, key: Any) -> Any:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


def output_name(output: Any) -> str:
    """Name of the tensor that a model's answer is read by; empty where the answer is the tensor itself.

    Raises:
        ModelError: the answer is neither a tensor nor a named or ordered set of tensors.
    """
    if isinstance(output, Tensor):
        return ""
    for name in ("logits", "last_hidden_state"):
        if isinstance(getattr(output, name, None), Tensor):
            return name
    raise ModelError(f"A rival needs a model that answers with a tensor, logits or hidden states, got {type(output)}.")


class _TensorOut(nn.Module):
    """The dense model with positional inputs and one tensor as answer, as exporters want it."""

    def __init__(self, model: nn.Module, names: list[str], output: str) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.output = output

    def forward(self, *inputs: Tensor) -> Tensor:
        found = self.model(**dict(zip(self.names, inputs))) if self.names else self.model(*inputs)
        tensor: Tensor = getattr(found, self.output) if self.output else found
        return tensor


def export_once(dense: nn.Module, batch: Any, folder: Path) -> Path:
    """Export to ONNX with free batch size and length; an export that lies in the folder is used again.

    Raises:
        MissingPackageError: onnx or onnxscript is not installed.
        ModelError: the exporter failed.
    """
    path = folder / _FP32
    if path.exists():
        return path
    _require("onnx", "onnxscript", "onnxruntime")
    names, inputs = _inputs(batch)
    with torch.inference_mode():
        output = output_name(dense(**batch) if names else dense(*inputs))
    wrapper = _TensorOut(dense, names, output).eval()
    # A size of 1 would be taken for a constant; export with two items and a free first and second axis.
    twice = tuple(torch.cat([value, value]) if value.dim() and value.shape[0] == 1 else value for value in inputs)
    free = tuple(dict.fromkeys(range(min(2, value.dim())), torch.export.Dim.AUTO) for value in twice)
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                wrapper,
                twice,
                str(path),
                input_names=names or [f"input_{number}" for number in range(len(inputs))],
                output_names=["output"],
                dynamic_shapes=(free,),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        path.unlink(missing_ok=True)
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"The ONNX exporter refused the dense model: {first[:160]}.") from error
    finally:
        quiet.setLevel(level)
    return path


def quantise_once(fp32: Path, folder: Path) -> Path:
    """Dynamic int8 by onnxruntime's own tool; a file that lies in the folder is used again."""
    path = folder / _INT8
    if not path.exists():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        root = logging.getLogger()
        level = root.level
        root.setLevel(logging.ERROR)
        try:
            quantize_dynamic(str(fp32), str(path), weight_type=QuantType.QInt8)
        finally:
            root.setLevel(level)
    return path


@final
class OnnxModule(nn.Module):
    """A session behind a module's interface.

    Args:
        session: onnxruntime session.
        names: its inputs.
        output: name of the answer's tensor, empty for a bare tensor.
    """

    def __init__(self, session: Any, names: list[str], output: str) -> None:
        super().__init__()
        self._session = session
        self._names = names
        self._output = output

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """Run; inputs that the exported graph does not use are left out."""
        given = {**dict(zip(self._names, args)), **kwargs}
        feed = {name: given[name].numpy() for name in self._names}
        (found,) = self._session.run(None, feed)
        tensor = torch.from_numpy(found)
        return NamedOutput({self._output: tensor}) if self._output else tensor


def onnx_module(path: Path, dense: nn.Module, batch: Any, threads: int) -> OnnxModule:
    """The exported file as a module that answers as the dense model does."""
    session = open_session(path, threads)
    names, inputs = _inputs(batch)
    with torch.inference_mode():
        output = output_name(dense(**batch) if names else dense(*inputs))
    return OnnxModule(session, [entry.name for entry in session.get_inputs()], output)


def open_session(model: str | Path | bytes, threads: int = 1) -> Any:
    """A CPU session on a file, or on a model in memory, with a fixed number of threads that do not spin while others
    work."""
    _require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def load_session(path: str) -> OnnxModule:
    """What a fresh process has to do to serve an exported file."""
    session = open_session(path)
    return OnnxModule(session, [entry.name for entry in session.get_inputs()], "")


def _inputs(batch: Any) -> tuple[list[str], tuple[Tensor, ...]]:
    if isinstance(batch, Mapping):
        return list(batch), tuple(batch.values())
    return [], tuple(batch) if isinstance(batch, tuple | list) else (batch,)


def _require(*packages: str) -> None:
    from importlib.util import find_spec

    for package in packages:
        if find_spec(package) is None:
            raise MissingPackageError(f"{package} is not installed; `pip install sparsewright[onnx]` brings it.")
