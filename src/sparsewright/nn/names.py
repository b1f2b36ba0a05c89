"""Rules by name: exact, glob, or `re:EXPRESSION`."""

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from ..core import ModelError, suggest

T = TypeVar("T")


def by_name(rules: Mapping[str, T], names: Sequence[str], what: str, weight: bool = False) -> dict[str, T]:
    """What the rules say of each name that they match.

    Args:
        rules: exact name, glob or `re:EXPRESSION` -> what it says. An exact name goes before the others, of which the
            first that matches holds.
        names: the full names there are.
        what: how messages call the rules.
        weight: `encoder.fc1` means `encoder.fc1.weight` too.

    Returns:
        Name -> what the rule says, in the order of `names`.

    Raises:
        ModelError: a rule matches nothing, or is no valid expression.
    """
    if not isinstance(rules, Mapping) or not all(isinstance(rule, str) for rule in rules):
        raise ModelError(f"The {what} are a mapping from names to what they get, got {rules!r}.")
    found: dict[str, T] = {}
    matched: set[str] = set()
    in_order = sorted(rules, key=lambda rule: rule not in names and f"{rule}.weight" not in names)
    tests = {rule: _test(rule, what) for rule in in_order}
    for name in names:
        forms = [name, name.removesuffix(".weight")] if weight and name.endswith(".weight") else [name]
        for rule, test in tests.items():
            if any(test(form) for form in forms):
                matched.add(rule)
                found.setdefault(name, rules[rule])
    for rule in rules:
        if rule not in matched:
            raise ModelError(f"{rule!r} among the {what} matches nothing in this model. {suggest(rule, names)}")
    return found


def _test(rule: str, what: str) -> Callable[[str], bool]:
    if not rule.startswith("re:"):
        return lambda name: fnmatchcase(name, rule)
    try:
        expression = re.compile(rule[3:])
    except re.error as error:
        raise ModelError(f"{rule!r} among the {what} is not a valid regular expression: {error}.") from error
    return lambda name: expression.fullmatch(name) is not None
