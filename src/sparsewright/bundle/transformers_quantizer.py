"""The classes that transformers asks for; imported only by `register_transformers`, because they load transformers."""

from collections.abc import Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..core import BundleError, ModelError, SparsewrightError
from ..layouts import layouts
from ..models import MASK
from ..nn import SparseTensor, as_parameter
from .header import DTYPE_NAMES, DTYPES
from .manifest import VALUE_TYPES, PackedLayer, read_packed_layer

METHOD = "sparsewright"
_VERSION = 1
_LEVEL = "L1"
# As in a bundle: beyond so many weights the planes' bytes must be in proportion.
_FREE_WEIGHTS = 2**26
_WEIGHTS_PER_BYTE = 1024


def register() -> None:
    """Put both classes into transformers' tables; calling it again does nothing."""
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(SparsewrightConfig)
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(METHOD)(SparsewrightQuantizer)


def is_pretrained(model: nn.Module) -> bool:
    """Whether it is a model of transformers."""
    return isinstance(model, PreTrainedModel)


def attach(model: Any) -> None:
    """Let the model's `save_pretrained` write packed and masked layers.

    Raises:
        ModelError: another quantiser is in charge of it.
    """
    other = getattr(model, "hf_quantizer", None)
    if other is not None and not isinstance(other, SparsewrightQuantizer):
        raise ModelError(
            f"{type(model).__name__} is quantised by {other.quantization_config.quant_method}; transformers keeps one "
            "method a model. Save it with sparsewright.save instead."
        )
    config = SparsewrightConfig()
    model.hf_quantizer = SparsewrightQuantizer(config)
    model.config.quantization_config = config
    _describe(model, config)


@final
class SparsewrightConfig(QuantizationConfigMixin):
    """What stands in `config.json` under `quantization_config`: plain JSON.

    Attributes:
        layers: module name -> how its packed weight is stored, and dtype and shape of each plane.
        masked: module name -> shape of its `weight_mask`.
        shared: name of a layer whose packed weight is another layer's -> name of that layer.
        dtype: of the model when it was saved; asking `from_pretrained` for another one moves packed weights as well.
    """

    def __init__(
        self,
        layers: Mapping[str, Any] | None = None,
        masked: Mapping[str, Any] | None = None,
        shared: Mapping[str, Any] | None = None,
        dtype: str = "",
        version: int = _VERSION,
        quant_method: str = METHOD,
        **others: Any,
    ) -> None:
        if version != _VERSION or quant_method != METHOD or others:
            strange = f"the field {next(iter(others))!r}" if others else f"version {version} of {quant_method}"
            raise BundleError(
                f"This release reads quantization_config version {_VERSION} of {METHOD}, the folder has {strange}. "
                "Install the release that wrote it."
            )
        self.quant_method: Any = METHOD
        self.version = version
        self.layers = dict(layers or {})
        self.masked = dict(masked or {})
        self.shared = dict(shared or {})
        self.dtype = str(dtype)


@final
class _Planes(nn.Module):
    """Stands where a packed weight will be while transformers fills its planes by name."""

    def __init__(self, planes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        super().__init__()
        level = nn.Module()
        for name, (dtype, shape) in planes.items():
            level.register_buffer(name, torch.empty(shape, dtype=dtype, device="meta"))
        self.add_module(_LEVEL, level)

    def filled(self, layer: str) -> dict[str, Tensor]:
        """The planes by name.

        Raises:
            BundleError: the folder's files lack one.
        """
        found = {}
        for name, tensor in self.get_submodule(_LEVEL).named_buffers():
            # The mark that transformers puts on everything that came out of a file.
            if tensor.is_meta or not getattr(tensor, "_is_hf_initialized", False):
                raise BundleError(
                    f"The folder lacks the plane '{layer}.weight.{_LEVEL}.{name}', or has it in another shape. "
                    "Fetch or save it again."
                )
            found[name] = tensor
        return found


@final
class SparsewrightQuantizer(HfQuantizer):
    """Reads planes into packed weights, and writes packed weights as planes."""

    requires_calibration = True
    _asked: torch.dtype | None = None

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        self._asked = dtype
        return dtype

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        self._records: dict[str, PackedLayer] = {}
        for layer, data in self.quantization_config.layers.items():
            module = _submodule(model, layer)
            record, planes = _read_record(layer, data)
            held = module._parameters.get("weight")
            if held is None or tuple(held.shape) != record.parameter_shape:
                shape = None if held is None else tuple(held.shape)
                raise BundleError(
                    f"The folder's weight of {layer!r} has the shape {record.parameter_shape}, the model's {shape}. "
                    "Load it into the model class it was saved from."
                )
            del module._parameters["weight"]
            module.add_module("weight", _Planes(planes))
            # Else transformers would draw random numbers into the weight that is not there.
            module._is_hf_initialized = True  # type: ignore[assignment]
            self._records[layer] = record
        for layer in self.quantization_config.shared:
            module = _submodule(model, layer)
            module._parameters["weight"] = None
            module._is_hf_initialized = True  # type: ignore[assignment]
        for layer, shape in self.quantization_config.masked.items():
            module = _submodule(model, layer)
            weight = module._parameters.get("weight")
            if weight is None or not isinstance(shape, list) or weight.numel() != _product(shape):
                raise BundleError(f"The folder's mask of {layer!r} has the shape {shape}, which is not the weight's.")
            module.register_buffer(MASK, torch.empty(shape, dtype=torch.bool, device="meta"), persistent=True)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        for layer, record in self._records.items():
            module = _submodule(model, layer)
            holder = module._modules.pop("weight")
            assert isinstance(holder, _Planes)
            weight: Any = _unpack(layer, record, holder.filled(layer))
            if self._asked is not None and str(self._asked) != self.quantization_config.dtype:
                weight = as_parameter(weight.to(self._asked))
            _put_weight(module, weight)
        for layer, goal in self.quantization_config.shared.items():
            _put_weight(_submodule(model, layer), _submodule(model, goal)._parameters.get("weight"))
        for layer in self.quantization_config.masked:
            mask = _submodule(model, layer)._buffers[MASK]
            if mask is None or mask.is_meta or not getattr(mask, "_is_hf_initialized", False):
                raise BundleError(f"The folder lacks the mask of {layer!r}. Fetch or save it again.")
        # Kept values are ordinary floating-point weights: `.half()` and the like stay allowed.
        model.is_quantized = False
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        _describe(model, self.quantization_config)
        model.config.quantization_config = self.quantization_config
        state: dict[str, Tensor] = {}
        shared = self.quantization_config.shared
        for name, value in model.state_dict(keep_vars=True).items():
            layer = name.removesuffix("weight").removesuffix(".")
            if not isinstance(value, SparseTensor):
                state[name] = value.detach()
            elif layer not in shared:
                for plane, tensor in _planes_of(value).items():
                    state[f"{name}.{_LEVEL}.{plane}"] = tensor
        return state, {}


def _describe(model: nn.Module, config: SparsewrightConfig) -> None:
    """Write into the config what the model holds now."""
    config.layers, config.masked, config.shared = {}, {}, {}
    config.dtype = str(getattr(model, "dtype", ""))
    names = {dtype: name for name, dtype in VALUE_TYPES.items()}
    owners: dict[int, str] = {}
    for layer, module in model.named_modules():
        value: Any = module._parameters.get("weight")
        mask = module._buffers.get(MASK)
        if mask is not None:
            config.masked[layer] = list(mask.shape)
        if not isinstance(value, SparseTensor):
            continue
        if id(value) in owners:
            config.shared[layer] = owners[id(value)]
            continue
        owners[id(value)] = layer
        packed, planes = value.packed, _planes_of(value)
        record = PackedLayer(
            pattern=packed.pattern,
            layout=packed.layout,
            value_dtype=names[packed.value_dtype],
            shape=packed.shape,
            view="transposed" if value.transposed else "linear",
            parameter_shape=tuple(value.shape),
            dtype=DTYPE_NAMES[value.dtype],
            planes=tuple(planes),
        )
        tensors = {plane: [DTYPE_NAMES[tensor.dtype], list(tensor.shape)] for plane, tensor in planes.items()}
        config.layers[layer] = {**record.to_data(), "tensors": tensors}


def _planes_of(value: SparseTensor) -> dict[str, Tensor]:
    packed = value.packed
    return {name: tensor.clone() for name, tensor in layouts.get(packed.layout).to_storage(packed).items()}


def _read_record(layer: str, data: Any) -> tuple[PackedLayer, dict[str, tuple[torch.dtype, tuple[int, ...]]]]:
    """A layer's record and the dtypes and shapes of its planes; the config is a file, so nothing in it is trusted."""
    if not isinstance(data, dict) or not isinstance(data.get("tensors"), dict):
        raise BundleError(f"The quantization_config of the folder says nothing of the planes of {layer!r}.")
    record = read_packed_layer(layer, {key: value for key, value in data.items() if key != "tensors"})
    planes = {name: _dtype_and_shape(layer, row) for name, row in data["tensors"].items()}
    if set(planes) != set(record.planes):
        raise BundleError(f"The quantization_config of the folder lists other planes of {layer!r} than it describes.")
    stored = sum(dtype.itemsize * _product(shape) for dtype, shape in planes.values())
    weights = record.shape[0] * record.shape[1]
    if weights > max(_FREE_WEIGHTS, _WEIGHTS_PER_BYTE * stored):
        raise BundleError(f"The layer {layer!r} of the folder claims {weights} weights in {stored} bytes.")
    return record, planes


def _dtype_and_shape(layer: str, row: Any) -> tuple[torch.dtype, tuple[int, ...]]:
    if (
        not isinstance(row, list)
        or len(row) != 2
        or row[0] not in DTYPES
        or not isinstance(row[1], list)
        or not all(type(size) is int and 0 <= size < 2**40 for size in row[1])
    ):
        raise BundleError(f"The quantization_config of the folder has a malformed plane of {layer!r}: {str(row)[:60]}.")
    return DTYPES[row[0]], tuple(row[1])


def _product(shape: Any) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _unpack(layer: str, record: PackedLayer, planes: dict[str, Tensor]) -> SparseTensor:
    device = next(iter(planes.values())).device
    try:
        on_cpu = {name: tensor.detach().cpu() for name, tensor in planes.items()}
        packed = layouts.get(record.layout).from_storage(
            on_cpu, record.pattern, record.shape, VALUE_TYPES[record.value_dtype]
        )
    except (SparsewrightError, RuntimeError, ValueError, IndexError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise BundleError(
            f"The planes of {layer!r} in the folder do not decode ({reason}). Fetch them again."
        ) from error
    # A copy: some layouts run on the planes themselves, which may lie in a mapped file.
    own = {name: tensor.clone().to(device) for name, tensor in packed.tensors.items()}
    held = type(packed)(packed.layout, packed.pattern, packed.shape, packed.value_dtype, own)
    return as_parameter(SparseTensor(held, record.view == "transposed", DTYPES[record.dtype]))


def _put_weight(module: nn.Module, weight: Any) -> None:
    """Make it the module's first parameter, where it stood: state dicts keep their order."""
    others = {name: value for name, value in module._parameters.items() if name != "weight"}
    module._parameters.clear()
    module._parameters["weight"] = weight
    module._parameters.update(others)


def _submodule(model: Any, layer: str) -> nn.Module:
    """A layer by the name it was saved under; the model may be the one inside, or one around, what was saved."""
    for name in _names(model, layer):
        try:
            found: nn.Module = model.get_submodule(name)
        except AttributeError:
            continue
        return found
    raise BundleError(
        f"The folder has a sparse layer {layer[:80]!r}, which {type(model).__name__} lacks. "
        "Load it into the model class it was saved from."
    )


def _names(model: Any, layer: str) -> Iterator[str]:
    prefix = getattr(model, "base_model_prefix", "")
    yield layer
    if prefix:
        yield f"{prefix}.{layer}"
        yield layer.removeprefix(f"{prefix}.")
