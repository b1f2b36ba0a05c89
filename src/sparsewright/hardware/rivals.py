"""Rivals: what else a user could do with the dense model today, built from it, timed and scored beside ours.

Each rival is a module that takes the same keyword arguments and answers in the same form as the dense model, so that
whatever scores a model scores a rival too. A rival that cannot be built here says why instead of vanishing.
"""

import copy
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

import torch
from torch import nn

from ..core import MissingPackageError, ModelError, SparsewrightError, require_whole_model, suggest
from .int8 import dynamic_int8

TORCH_FP32 = "torch fp32"


@final
@dataclass(frozen=True)
class Rival:
    """One alternative to ours.

    Attributes:
        name: as it stands in tables.
        model: module with the dense model's interface, or None where it could not be built.
        file_bytes: bytes of its weights on disk, or None.
        reason: why there is no model; empty if there is one.
        loader: `module:function` that builds it in a fresh process, or empty.
        argument: what the loader is called with.
    """

    name: str
    model: nn.Module | None
    file_bytes: int | None = None
    reason: str = ""
    loader: str = ""
    argument: str = ""


Builder = Callable[[nn.Module, Any, Path, int, str], Rival]


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and persistent buffers, shared ones once."""
    seen = {value.data_ptr(): value.numel() * value.element_size() for value in model.state_dict().values()}
    return sum(seen.values())


def _dynamic_int8(dense: nn.Module, batch: Any, folder: Path, threads: int, source: str) -> Rival:
    model = dynamic_int8(dense)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return Rival(
        "torch dynamic int8",
        model,
        buffer.getbuffer().nbytes,
        loader="sparsewright.hardware.rivals:load_dynamic_int8" if source else "",
        argument=source,
    )


def _fp16_file(dense: nn.Module, batch: Any, folder: Path, threads: int, source: str) -> Rival:
    """Weights stored as fp16 and computed in float32: half the file, the same time."""
    model = copy.deepcopy(dense)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.copy_(parameter.to(torch.float16).to(parameter.dtype))
    return Rival("fp16 file", model, weight_bytes(dense) // 2)


def _onnx_fp32(dense: nn.Module, batch: Any, folder: Path, threads: int, source: str) -> Rival:
    from .onnx_rival import export_once, onnx_module

    path = export_once(dense, batch, folder)
    return Rival(
        "onnxruntime fp32",
        onnx_module(path, dense, batch, threads),
        path.stat().st_size,
        loader="sparsewright.hardware.onnx_rival:load_session",
        argument=str(path),
    )


def _onnx_int8(dense: nn.Module, batch: Any, folder: Path, threads: int, source: str) -> Rival:
    from .onnx_rival import export_once, onnx_module, quantise_once

    path = quantise_once(export_once(dense, batch, folder), folder)
    return Rival(
        "onnxruntime dynamic int8",
        onnx_module(path, dense, batch, threads),
        path.stat().st_size,
        loader="sparsewright.hardware.onnx_rival:load_session",
        argument=str(path),
    )


BUILDERS: MappingProxyType[str, Builder] = MappingProxyType(
    {
        "torch dynamic int8": _dynamic_int8,
        "onnxruntime fp32": _onnx_fp32,
        "onnxruntime dynamic int8": _onnx_int8,
        "fp16 file": _fp16_file,
    }
)


def build_rivals(
    dense: nn.Module,
    batch: Any,
    names: Iterable[str] | str = "all",
    *,
    folder: str | Path,
    threads: int = 1,
    source: str = "",
) -> list[Rival]:
    """Build rivals from the dense model.

    Args:
        dense: float32 on the CPU, in eval mode; not changed.
        batch: one input, a mapping by keyword; exported models take other batch sizes and lengths too.
        names: which, or `all`.
        folder: where exported models are written; it must stay as long as the rivals are used.
        threads: of onnxruntime's sessions.
        source: how a fresh process loads the dense model (`hf:...`), for load times; may be empty.

    Returns:
        One rival per name; those that cannot be built carry the reason.

    Raises:
        ModelError: an unknown name, or a dense model whose weights lie in parts on several processes.
    """
    require_whole_model(dense)
    wanted = list(BUILDERS) if names == "all" else [names] if isinstance(names, str) else list(names)
    rivals = []
    for name in wanted:
        if name not in BUILDERS:
            raise ModelError(f"There is no rival {name!r}. {suggest(name, BUILDERS)}")
        try:
            rivals.append(BUILDERS[name](dense, batch, Path(folder), threads, source))
        except MissingPackageError as error:
            rivals.append(Rival(name, None, reason=f"not measured: {error}"))
        except (SparsewrightError, RuntimeError, ValueError, TypeError, OSError, KeyError) as error:
            # Exporters fail in many ways; a rival's failure must not take our own measurement with it.
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            rivals.append(Rival(name, None, reason=f"not measured: it could not be built ({first[:160]})"))
    return rivals


def load_dynamic_int8(source: str) -> nn.Module:
    """Load a dense model and quantise it: what a fresh process has to do."""
    from ..models import load_model

    return dynamic_int8(load_model(source).model.eval())
