"""Let a torchvision that was built for another torch be imported.

Such a build dies at import with `operator torchvision::nms does not exist`, and takes timm and a good part of
transformers with it although neither calls that operator. Declaring the two schemas it looks for is enough. Nothing is
declared where torchvision imports by itself or is absent.
"""

import importlib
import sys
from importlib.util import find_spec

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# Libraries unregister their operators when they are collected; these must live as long as the process.
_declared: list[torch.library.Library] = []


def ensure_torchvision_imports() -> bool:
    """Import torchvision if it is installed, declaring its missing operators first where it needs that.

    Returns:
        Whether torchvision can be imported now.
    """
    if "torchvision" in sys.modules:
        return True
    if find_spec("torchvision") is None:
        return False
    try:
        importlib.import_module("torchvision")
    except (RuntimeError, OSError) as error:
        if "torchvision::nms" not in str(error) or _declared:
            return False
    else:
        return True
    library = torch.library.Library("torchvision", "FRAGMENT")
    _declared.append(library)
    for schema in _SCHEMAS:
        library.define(schema)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    try:
        importlib.import_module("torchvision")
    except (RuntimeError, OSError, ImportError):
        return False
    return True
