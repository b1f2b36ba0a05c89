"""Which architecture a model has, and how to build it again without weights, remote code or imports by name.

Only two doors exist: transformers' own classes through an auto class on our list and a config whose keys its config
class knows; timm's own models by registered name and four settings. Anything else is loaded with `model=`.
"""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..core import BundleError, MissingPackageError
from ..models import ensure_torchvision_imports, family_of
from ..models.layer_ref import PATTERN
from .manifest import ModelSource, require_plain

# Auto class -> the mapping in which transformers keeps its own classes for it.
AUTO_CLASSES: Mapping[str, str] = {
    "AutoModel": "MODEL_MAPPING",
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "AutoModelForTokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
    "AutoModelForQuestionAnswering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING",
    "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "AutoModelForImageClassification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
}
TIMM_SETTINGS = frozenset({"num_classes", "in_chans", "img_size", "global_pool"})
# Settings that make a library fetch or run something while it builds a model.
_FETCHING = frozenset(
    {"auto_map", "quantization_config", "use_pretrained_backbone", "backbone", "trust_remote_code", "custom_pipelines"}
)
# Plain attributes that decide on training, first weights or speed, never on answers; `weight_pattern` is our own.
_NO_ANSWER = frozenset(
    {
        "training",
        "grad_checkpointing",
        "fused_attn",
        "fix_init",
        "weight_init_mode",
        "head_init_scale",
        "init_values",
        PATTERN,
    }
)
_COUNT = re.compile(r"(layer|layers|blocks?|depths?|stages?|experts|labels)$")
_MAX_BUFFER_BYTES = 256 * 1024 * 1024


def describe(model: nn.Module, source: str | None, config: Mapping[str, Any] | None) -> ModelSource:
    """What the manifest says of the architecture.

    Args:
        model: any module; transformers and timm models are recognised without importing either.
        source: as in the recipe, or None.
        config: settings for `timm.create_model` (`num_classes`, `in_chans`, `img_size`, `global_pool`) that cannot be
            read off the model; ignored for all others. A model that was made with further ones is loaded with
            `model=`.
    """
    found = _describe_transformers(model) or _describe_timm(model, config or {})
    if found is None:
        return ModelSource(source, family_of(model), "torch", type(model).__qualname__, {})
    library, architecture, settings = found
    return ModelSource(source, family_of(model), library, architecture, settings)


def _describe_transformers(model: nn.Module) -> tuple[str, str, dict[str, Any]] | None:
    if "transformers.modeling_utils" not in sys.modules:
        return None
    import transformers

    if not isinstance(model, transformers.PreTrainedModel):
        return None
    kind = type(model.config)
    for auto, mapping_name in AUTO_CLASSES.items():
        mapping = getattr(transformers, mapping_name)
        if kind not in mapping:
            continue
        known = mapping[kind]
        if type(model) not in (known if isinstance(known, tuple | list) else (known,)):
            continue
        settings = _plain_config(model.config.to_dict(), set(kind().to_dict()))
        return None if settings is None else ("transformers", auto, settings)
    return None


def _plain_config(config: Mapping[str, Any], known: set[str]) -> dict[str, Any] | None:
    """Settings that may stand in a file; None where one of them would fetch something."""
    plain: dict[str, Any] = {}
    for key, value in config.items():
        if key in _FETCHING and value and not _is_ours(value):
            return None
        if key.startswith("_") or key in _FETCHING or key not in known or "implementation" in key:
            continue
        if isinstance(value, torch.dtype):
            value = str(value).removeprefix("torch.")
        plain[key] = require_plain(_text_keys(value), f"config.{key}")
    return plain


def _is_ours(value: Any) -> bool:
    """What `register_transformers` puts into a config: the bundle says all of it in its own words."""
    return isinstance(value, Mapping) and value.get("quant_method") == "sparsewright"


def _text_keys(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _text_keys(item) for key, item in value.items() if not str(key).startswith("_")}
    return [_text_keys(item) for item in value] if isinstance(value, list | tuple) else value


def _describe_timm(model: nn.Module, config: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]] | None:
    """Name and settings that give the same modules again; None where no settings on the list do."""
    if "timm.models" not in sys.modules or not type(model).__module__.startswith("timm."):
        return None
    import timm

    made_from = getattr(model, "default_cfg", None) or {}
    name = made_from.get("architecture") if isinstance(made_from, Mapping) else None
    if not isinstance(name, str) or not timm.is_model(name):
        return None
    settings = {key: require_plain(value, f"config.{key}") for key, value in config.items() if key in TIMM_SETTINGS}
    for key, value in _timm_settings(model, made_from).items():
        settings.setdefault(key, value)
    wanted = _structure(model)
    for tried in ({key: value for key, value in settings.items() if key != "global_pool"}, settings):
        try:
            with torch.device("meta"):
                sketch = timm.create_model(name, pretrained=False, **tried)
        except Exception:
            # Whatever a constructor says to settings that it does not take: then they do not build the model.
            continue
        if _structure(sketch) == wanted:
            return "timm", name, tried
    return None


def _timm_settings(model: Any, made_from: Mapping[str, Any]) -> dict[str, Any]:
    """What can be read off a timm model of the settings on the list, where it is not timm's default."""
    found: dict[str, Any] = {}
    if isinstance(getattr(model, "num_classes", None), int):
        found["num_classes"] = model.num_classes
    channels, *size = made_from.get("input_size") or (3,)
    first = made_from.get("first_conv")
    stem = dict(model.named_modules()).get(first[0] if isinstance(first, tuple | list) else first)
    if isinstance(stem, nn.Conv2d) and stem.in_channels != channels:
        found["in_chans"] = stem.in_channels
    images = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if images is not None and list(images) != list(size):
        found["img_size"] = list(images)
    pool = getattr(model, "global_pool", None)
    pool = getattr(pool, "pool_type", pool)
    if isinstance(pool, str):
        found["global_pool"] = pool
    return found


def _structure(model: nn.Module) -> tuple[Any, ...]:
    """What decides on a model's answers beside its weights; what acts in training only is left out."""
    modules = [
        (
            name,
            type(module).__name__,
            module.extra_repr() if list(module.children()) else repr(module),
            _plain_attributes(module),
        )
        for name, module in model.named_modules()
        if not type(module).__name__.startswith(("Identity", "Drop"))
    ]
    pool = getattr(model, "global_pool", None)
    shapes = [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
    return modules, shapes, pool if isinstance(pool, str) else ""


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Settings that no repr and no shape tells, such as a number of heads."""
    return {
        name: value
        for name, value in vars(module).items()
        if not (name.startswith("_") or name in _NO_ANSWER or "drop" in name) and _is_plain(value)
    }


def _is_plain(value: object) -> bool:
    return isinstance(value, int | float | str) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def build(source: ModelSource, shapes: Mapping[str, tuple[int, ...]], file_bytes: int) -> nn.Module:
    """Build the architecture with uninitialised weights, after its shapes were compared with the file.

    Args:
        source: from a manifest; not trusted.
        shapes: every state tensor that the file holds, tied names included.
        file_bytes: bounds what buffers outside the file may take.

    Raises:
        BundleError: not one of the two doors, a config that is not allowed, or one that does not match the tensors.
        MissingPackageError: transformers or timm is not installed.
    """
    if source.library == "transformers":
        make = _transformers_maker(source, len(shapes))
    elif source.library == "timm":
        make = _timm_maker(source)
    else:
        raise BundleError(
            f"The bundle holds a {source.architecture or 'model'} that only its own code can build. "
            "Build it and pass it: sparsewright.load(path, model=...)."
        )
    try:
        # First on the meta device: a config that asks for more than the file holds costs nothing there.
        with torch.device("meta"):
            sketch = make()
        _compare(sketch, source, shapes, file_bytes)
        with _without_initialisation():
            return make().eval()
    except (BundleError, MissingPackageError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise BundleError(
            f"The {source.library} config of the bundle builds no model here ({type(error).__name__}: {reason}). "
            "Build the model yourself and pass it: sparsewright.load(path, model=...)."
        ) from error


def _transformers_maker(source: ModelSource, tensor_count: int) -> Callable[[], nn.Module]:
    if source.architecture not in AUTO_CLASSES:
        raise BundleError(f"The bundle asks for the auto class {source.architecture[:60]!r}, which is not on the list.")
    settings = dict(source.config)
    _refuse_settings(settings, tensor_count)
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError(
            "This bundle holds a transformers model. Install it with: pip install 'sparsewright[hf]', or pass model=."
        ) from error
    ensure_torchvision_imports()
    kind = settings.pop("model_type", None)
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        raise BundleError(
            f"The installed transformers knows no model type {str(kind)[:60]!r}. Upgrade, or pass model=."
        )
    strange = sorted(set(settings) - set(transformers.CONFIG_MAPPING[kind]().to_dict()))
    if strange:
        raise BundleError(
            f"The config of the bundle has the key {strange[0][:60]!r}, which {kind} models do not have here. "
            "Upgrade transformers, or pass model=."
        )
    auto = getattr(transformers, source.architecture)

    def make() -> nn.Module:
        model: nn.Module = auto.from_config(transformers.AutoConfig.for_model(kind, **settings))
        return model

    return make


def _timm_maker(source: ModelSource) -> Callable[[], nn.Module]:
    strange = sorted(set(source.config) - TIMM_SETTINGS)
    if strange:
        raise BundleError(f"The config of the bundle has the key {strange[0][:60]!r}, which is not on the list.")
    ensure_torchvision_imports()
    try:
        import timm
    except ImportError as error:
        raise MissingPackageError(
            "This bundle holds a timm model. Install it with: pip install 'sparsewright[timm]', or pass model=."
        ) from error
    if not timm.is_model(source.architecture):
        raise BundleError(f"The installed timm knows no model {source.architecture[:60]!r}. Upgrade, or pass model=.")
    settings = dict(source.config)

    def make() -> nn.Module:
        model: nn.Module = timm.create_model(source.architecture, pretrained=False, **settings)
        return model

    return make


def _refuse_settings(config: Any, tensor_count: int, key: str = "") -> None:
    """Refuse, at any depth, settings that fetch something and counts that the file's tensors cannot fill."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            if name.startswith("_") or name in _FETCHING or "implementation" in name:
                raise BundleError(
                    f"The config of the bundle has the key {name[:60]!r}, which is not allowed in a file."
                )
            _refuse_settings(value, tensor_count, name)
    elif isinstance(config, list):
        for value in config:
            _refuse_settings(value, tensor_count, key)
    elif isinstance(config, int) and not isinstance(config, bool):
        limit = max(64, tensor_count) if _COUNT.search(key) else 2**31
        if abs(config) > limit:
            raise BundleError(f"The config of the bundle sets {key[:60]!r} to {str(config)[:20]}, beyond {limit}.")


def _compare(sketch: nn.Module, source: ModelSource, shapes: Mapping[str, tuple[int, ...]], file_bytes: int) -> None:
    state = sketch.state_dict()
    against = _difference(shapes, {name: tuple(tensor.shape) for name, tensor in state.items()})
    if against:
        raise BundleError(
            f"The bundle does not fit the model that its {source.library} config alone builds ({source.architecture}, "
            f"{type(sketch).__name__}): {against}. It was saved from one made with further arguments, for instance "
            "BertModel(config, add_pooling_layer=False), or changed after it was made. Build it as you did then and "
            "pass it: sparsewright.load(path, model=...)."
        )
    beside = sum(b.numel() * b.element_size() for name, b in sketch.named_buffers() if name not in state)
    if beside > max(_MAX_BUFFER_BYTES, 4 * file_bytes):
        raise BundleError(f"The config of the bundle asks for {beside} bytes of buffers beside its weights.")


def require_same(held: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raise unless the bundle holds exactly the tensors that the model wants, in their shapes.

    Args:
        held: name -> shape in the bundle.
        wanted: name -> shape in the model.

    Raises:
        BundleError: naming the first difference.
    """
    against = _difference(held, wanted)
    if against:
        raise BundleError(f"The bundle does not fit the model: {against}. Load it into the model it was saved from.")


def _difference(held: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str:
    """The first difference in words, or nothing."""
    missing = [name for name in wanted if name not in held]
    extra = [name for name in held if name not in wanted]
    if missing or extra:
        what = f"it lacks {missing[0]!r}" if missing else f"it has {extra[0][:80]!r}, which the model does not know"
        count = f" ({len(missing) + len(extra)} such tensors)" if len(missing) + len(extra) > 1 else ""
        return f"{what}{count}"
    for name, shape in wanted.items():
        if held[name] != shape:
            return f"{name!r} has the shape {held[name]} in the file, {shape} in the model"
    return ""


_RANDOM = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.erfinv_, Tensor.bernoulli_, Tensor.exponential_})
# While transformers builds a model, its own functions stand in torch.nn.init. Constants are left alone: buffers that no
# file holds are filled by them.
_INIT_MODULES = frozenset({"torch.nn.init", "transformers.initialization"})
_RANDOM_INIT = frozenset(
    {
        "normal_",
        "uniform_",
        "trunc_normal_",
        "xavier_normal_",
        "xavier_uniform_",
        "kaiming_normal_",
        "kaiming_uniform_",
        "orthogonal_",
        "sparse_",
    }
)


@final
class _SkipInitialisation(TorchFunctionMode):
    """Leaves parameters as they were allocated: the file fills every one of them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _RANDOM or (
            getattr(func, "__name__", "") in _RANDOM_INIT and getattr(func, "__module__", "") in _INIT_MODULES
        ):
            return args[0] if args else (kwargs or {}).get("tensor")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _without_initialisation() -> Iterator[None]:
    with _SkipInitialisation():
        yield
