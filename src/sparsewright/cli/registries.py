"""Every registry of the package by its kind, for `list`."""

from typing import Any


def registries() -> dict[str, dict[str, Any]]:
    """Kind -> name -> what is registered under it; plug-ins are read now."""
    from ..hardware import targets
    from ..kernels import operators
    from ..kernels.sparse_linear.candidates import CANDIDATES
    from ..layouts import layouts
    from ..models import adapters
    from ..models.tasks import tasks
    from ..pipeline.streaming import engines
    from ..solvers import solvers
    from ..sparsifiers import sparsifiers
    from ..training import distillations, schedules

    found: dict[str, dict[str, Any]] = {
        registry.kind: dict(registry.items())
        for registry in (
            solvers,
            layouts,
            operators,
            sparsifiers,
            adapters,
            tasks,
            targets,
            distillations,
            schedules,
            engines,
        )
    }
    found["kernels"] = {candidate.name: candidate for candidate in CANDIDATES}
    return found


def about(item: Any) -> str:
    """One line on a registered thing: what its class says of itself, else the first line of its docstring."""
    told = getattr(type(item), "about", None)
    text = told if isinstance(told, str) else (type(item).__doc__ or "").strip()
    return text.splitlines()[0] if text else ""
