"""A model without memory: parameters on the meta device, filled from disk part by part and let go again."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ...core import FileError, MissingPackageError, ModelError, require_finite
from ...models import ensure_torchvision_imports
from ...models.sources import config_of_folder
from .source import StoredTensors

Factory = Callable[[], nn.Module]


@contextmanager
def without_parameters() -> Iterator[None]:
    """Modules that are built inside the block keep their parameters on the meta device.

    Buffers are built as ever: those that no file holds (the frequencies of rotary embeddings) must have values.
    """

    def to_meta(module: nn.Module, name: str, parameter: Any) -> Any:
        # A parameter that is there already stays the same object, so that tied weights stay tied.
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(to_meta)
    try:
        yield
    finally:
        hook.remove()


def build(folder: Path, stored: StoredTensors, factory: Factory | None) -> nn.Module:
    """The architecture, in eval mode, its parameters on the meta device.

    Args:
        folder: with a `config.json` of transformers, where there is no factory.
        stored: tells the dtype where the config names none.
        factory: builds any other model.

    Raises:
        ModelError: there is neither; or the factory returns no module.
        MissingPackageError: transformers is needed and not installed.
    """
    with without_parameters():
        if factory is None:
            model = _from_config(folder, stored)
        else:
            model = factory()
            if not isinstance(model, nn.Module):
                raise ModelError(f"model= is a callable that returns a torch.nn.Module, got {type(model).__name__}.")
    for parameter in model.parameters():
        if not parameter.is_meta:
            # Made outside and handed over by the factory: it would stay in memory for the whole run.
            raise ModelError("model= must build the model when it is called, and not hand over one that exists.")
    return model.eval().requires_grad_(False)


def _from_config(folder: Path, stored: StoredTensors) -> nn.Module:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} has no config.json, so the architecture is unknown. Pass model=, a callable that builds it."
        )
    ensure_torchvision_imports()
    try:
        loader, config = config_of_folder(folder)
    except ImportError as error:
        raise MissingPackageError(f"{folder} needs transformers: pip install 'sparsewright[hf]'.") from error
    dtype = getattr(config, "dtype", None) or next(
        (stored.dtype(name) for name in stored.places if stored.dtype(name).is_floating_point), torch.float32
    )
    model: nn.Module = _saved_class(config, loader)(config, dtype=dtype)
    tie: Any = getattr(model, "tie_weights", None)
    if tie is not None:
        tie()
    return model


def _saved_class(config: Any, loader: Any) -> Callable[..., nn.Module]:
    """What builds the class that the files were saved from, as its names are theirs; else the auto class."""
    import transformers

    named = next(iter(getattr(config, "architectures", None) or ()), "")
    own: Any = getattr(transformers, named, None) if isinstance(named, str) else None
    is_model = inspect.isclass(own) and issubclass(own, transformers.PreTrainedModel)
    if is_model and own.config_class is type(config):
        # Of the auto classes it is the public `from_config`, which calls this.
        found: Callable[..., nn.Module] = own._from_config
        return found
    auto: Callable[..., nn.Module] = loader.from_config
    return auto


@final
@dataclass(frozen=True, eq=False)
class Skeleton:
    """The model and where its tensors lie.

    Attributes:
        model: parameters on the meta device, except what is held at the moment.
        names: state name -> name under which it is stored; tied names share one.
    """

    model: nn.Module
    names: dict[str, str]

    @staticmethod
    def of(model: nn.Module, stored: StoredTensors) -> "Skeleton":
        """Match the model's state with the files.

        Raises:
            FileError: a tensor is missing.
            ModelError: a tensor has another shape.
        """
        names: dict[str, str] = {}
        owners: dict[int, list[str]] = {}
        state = model.state_dict(keep_vars=True)
        for name, value in state.items():
            owners.setdefault(id(value), []).append(name)
        for name, value in state.items():
            tied = owners[id(value)]
            names[name] = next((other for other in tied if other in stored.places), name)
            if names[name] not in stored.places:
                raise FileError(
                    f"{stored.path} holds no tensor {name!r}, which a {type(model).__name__} needs. Fetch the files "
                    "again; or, where transformers renames or joins this tensor while it loads, save the model's "
                    "state_dict() with safetensors and pass model=."
                )
            shape = stored.shape(names[name])
            if tuple(value.shape) != shape:
                raise ModelError(
                    f"{stored.path} holds {names[name]!r} with the shape {shape}, the model needs "
                    f"{tuple(value.shape)}. Give the model that the files were saved from."
                )
        return Skeleton(model, names)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype in which the model holds a tensor of its state."""
        owner, leaf = self._owner(name)
        held = owner._parameters.get(leaf)
        tensor = held if held is not None else owner._buffers[leaf]
        assert tensor is not None
        return tensor.dtype

    def inside(self, prefix: str) -> list[str]:
        """State names of a submodule."""
        return [name for name in self.names if name.startswith(f"{prefix}.")]

    def outside(self, prefixes: Sequence[str]) -> list[str]:
        """State names of everything that is in none of the submodules."""
        starts = tuple(f"{prefix}." for prefix in prefixes)
        return [name for name in self.names if not name.startswith(starts)]

    def put(self, name: str, tensor: Tensor) -> None:
        """Give the model one tensor of its state."""
        owner, leaf = self._owner(name)
        if leaf in owner._parameters:
            owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
        else:
            owner._buffers[leaf] = tensor

    def fill(self, names: Sequence[str], stored: StoredTensors) -> None:
        """Read tensors of the state into the model, in the model's dtype.

        Raises:
            FileError: a file cannot be read.
            NumericError: a value is NaN or infinite; names tensor and position.
        """
        for name in names:
            tensor = stored.read(self.names[name]).to(self.dtype(name))
            require_finite(tensor, f"tensor {name}")
            self.put(name, tensor)

    def release(self, names: Sequence[str]) -> None:
        """Let tensors go; the model keeps shape and dtype of each."""
        for name in names:
            owner, leaf = self._owner(name)
            held = owner._parameters.get(leaf)
            if held is not None:
                owner._parameters[leaf] = nn.Parameter(held.detach().to("meta"), requires_grad=False)
            elif (buffer := owner._buffers.get(leaf)) is not None:
                owner._buffers[leaf] = buffer.to("meta")

    def _owner(self, name: str) -> tuple[nn.Module, str]:
        path, _, leaf = name.rpartition(".")
        return self.model.get_submodule(path), leaf
