"""`register_transformers`: `save_pretrained` and `from_pretrained` keep packed and masked layers, bit for bit.

Through transformers' own doors for quantised models; nothing of it is replaced, and nothing is registered before a
user asks. The folder holds ordinary safetensors: a packed `fc.weight` stands there as `fc.weight.L1.values` and
`fc.weight.L1.index`, as in a bundle, and `config.json` says under `quantization_config` how to read them.
"""

from importlib.util import find_spec

from torch import nn

from ..core import MissingPackageError, ModelError
from ..models import ensure_torchvision_imports


def register_transformers(model: nn.Module | None = None) -> None:
    """Teach transformers in this process to read our folders, and one model to write them.

    Args:
        model: a transformers model with packed or masked layers: its `save_pretrained` writes them from then on. Call
            it after `pack_` or `sparsify_`; models that `from_pretrained` built need no second call. None: only
            `from_pretrained` is taught.

    Raises:
        MissingPackageError: transformers is not installed.
        ModelError: the model is none of transformers, or is quantised by another method.
    """
    if find_spec("transformers") is None:
        raise MissingPackageError("transformers is not installed. Install it with: pip install 'sparsewright[hf]'.")
    # Half of transformers' models import torchvision where it is installed, whether it works or not.
    ensure_torchvision_imports()
    from . import transformers_quantizer as door

    door.register()
    if model is None:
        return
    if not door.is_pretrained(model):
        raise ModelError(
            f"register_transformers takes a transformers model, got {type(model).__name__}. "
            "Save others with sparsewright.save."
        )
    door.attach(model)
