"""Floor 10: recipes, the stage order, the run folder and resume. The owner of `run`."""

from .folder import Report, RunFolder
from .recipe import Recipe, load_recipe, read_yaml
from .run import STAGES, RunResult, dry_run, run, run_folder_of
from .streaming import sparsify_file

__all__ = [
    "STAGES",
    "Recipe",
    "Report",
    "RunFolder",
    "RunResult",
    "dry_run",
    "load_recipe",
    "read_yaml",
    "run",
    "run_folder_of",
    "sparsify_file",
]
