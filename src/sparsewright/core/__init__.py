"""Floor 1: the words every other floor speaks: patterns, plans, layer stats, registries, errors, whole files."""

from .dispatch_table import DispatchEntry, DispatchTable
from .errors import (
    BudgetError,
    BundleError,
    DataError,
    FileError,
    KernelError,
    LayoutError,
    MachineError,
    MissingPackageError,
    ModelError,
    NumericError,
    PatternError,
    PlanError,
    ProfileError,
    RecipeError,
    SparsewrightError,
    suggest,
)
from .files import atomic_write, file_error, flush_folder, read_json, write_json, write_text
from .machine import instruction_set, vector_lanes
from .modules import require_module
from .numeric import is_number, is_whole, require_finite
from .patterns import NM, NMG, AbstractPattern, Block, Dense, Edge, Transposable, Unstructured, parse_pattern
from .plan import VALUE_BITS, LayerPlan, Plan, ValueType, require_plan
from .prune_n import from_prune_n
from .registry import Registry, RegistryError
from .sharded import is_distributed, require_whole, require_whole_model
from .stats import LayerStats

__all__ = [
    "NM",
    "NMG",
    "VALUE_BITS",
    "AbstractPattern",
    "Block",
    "BudgetError",
    "BundleError",
    "DataError",
    "Dense",
    "DispatchEntry",
    "DispatchTable",
    "Edge",
    "FileError",
    "KernelError",
    "LayerPlan",
    "LayerStats",
    "LayoutError",
    "MachineError",
    "MissingPackageError",
    "ModelError",
    "NumericError",
    "PatternError",
    "Plan",
    "PlanError",
    "ProfileError",
    "RecipeError",
    "Registry",
    "RegistryError",
    "SparsewrightError",
    "Transposable",
    "Unstructured",
    "ValueType",
    "atomic_write",
    "file_error",
    "flush_folder",
    "from_prune_n",
    "instruction_set",
    "is_distributed",
    "parse_pattern",
    "read_json",
    "is_number",
    "is_whole",
    "require_finite",
    "require_module",
    "require_plan",
    "require_whole",
    "require_whole_model",
    "suggest",
    "vector_lanes",
    "write_json",
    "write_text",
]
