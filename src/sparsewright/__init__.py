"""Make PyTorch models sparse so that they really get smaller and faster, and prove it."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from .bundle import export_onnx, inspect, load, register_transformers, save, verify
from .core import (
    BudgetError,
    BundleError,
    DataError,
    FileError,
    KernelError,
    LayerPlan,
    LayoutError,
    MissingPackageError,
    ModelError,
    NumericError,
    PatternError,
    Plan,
    PlanError,
    ProfileError,
    RecipeError,
    SparsewrightError,
    from_prune_n,
    parse_pattern,
)
from .hardware import doctor, measure, pack_, profile
from .kernels import linear, on_missing, why_not
from .layouts import PackedWeight, pack
from .models import Data, adopt_masks_, load_model, sparsify_
from .nn import SparseFormat, SparseTensor, dispatch_report, mark_, masks, train_packed_
from .search import Budget, SearchResult, search
from .solvers import solve_mask
from .training import keep_masks_, recover

if TYPE_CHECKING:
    from .pipeline import load_recipe as load_recipe
    from .pipeline.run import run as run
    from .pipeline.streaming import sparsify_file as sparsify_file

try:
    __version__ = version("sparsewright")
except PackageNotFoundError:
    # Run from a source tree that was never installed.
    __version__ = "0+unknown"

__all__ = [
    "Budget",
    "BudgetError",
    "BundleError",
    "Data",
    "DataError",
    "FileError",
    "KernelError",
    "LayerPlan",
    "LayoutError",
    "MissingPackageError",
    "ModelError",
    "NumericError",
    "PackedWeight",
    "PatternError",
    "Plan",
    "PlanError",
    "ProfileError",
    "RecipeError",
    "SearchResult",
    "SparseFormat",
    "SparseTensor",
    "SparsewrightError",
    "__version__",
    "adopt_masks_",
    "dispatch_report",
    "doctor",
    "export_onnx",
    "from_prune_n",
    "inspect",
    "keep_masks_",
    "linear",
    "load",
    "load_model",
    "load_recipe",
    "mark_",
    "masks",
    "measure",
    "on_missing",
    "pack",
    "pack_",
    "parse_pattern",
    "profile",
    "recover",
    "register_transformers",
    "run",
    "save",
    "search",
    "solve_mask",
    "sparsify_",
    "sparsify_file",
    "train_packed_",
    "verify",
    "why_not",
]

# The pipeline brings pydantic, YAML and the report with it; a loader of bundles needs none of them.
_LAZY = frozenset({"load_recipe", "run", "sparsify_file"})


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from . import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
