"""`sparsewright targets`: machines that plans can be made for."""

from .console import JsonFlag, print_json, print_table


def targets(json: JsonFlag = False) -> None:
    """List the registered targets; any profile file (.json) is a target too."""
    from ..hardware import targets as registry

    rows = [(name, target.about) for name, target in registry.items()]
    if json:
        print_json([{"name": name, "about": about} for name, about in rows])
        return
    print_table(("target", "about"), rows)
