"""Registries: one decorator to join, one place to look up, the same door for third parties.

A package outside this one joins through an entry point of the group `sparsewright.<kind>` whose object is the class.
Entry points are read on the first look-up, never at import.
"""

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from .errors import SparsewrightError, suggest

T = TypeVar("T")
C = TypeVar("C", bound=type)


class RegistryError(SparsewrightError):
    """A name is unknown, or taken by another class."""


class Registry(Generic[T]):
    """Names of one kind of thing (solver, layout, sparsifier, ...) and one instance of each.

    Args:
        kind: plural word, also the end of the entry point group: `solvers` reads `sparsewright.solvers`.
        base: every registered class must derive from it.
    """

    def __init__(self, kind: str, base: type[Any]) -> None:
        self.kind = kind
        self.base = base
        self._classes: dict[str, Callable[[], T]] = {}
        self._instances: dict[str, T] = {}
        self._plugins_read = False

    def register(self, name: str) -> Callable[[C], C]:
        """Class decorator: make the class known under `name`; a name can be given once."""

        def join(cls: C) -> C:
            self._add(name, cls)
            return cls

        return join

    def _add(self, name: str, cls: Any) -> None:
        if not (isinstance(cls, type) and issubclass(cls, self.base)):
            raise RegistryError(f"{self.kind} must derive from {self.base.__name__}, got {cls!r} for {name!r}.")
        if name in self._classes and self._classes[name] is not cls:
            raise RegistryError(f"The name {name!r} is taken among the {self.kind}; choose another.")
        self._classes[name] = cls

    def _read_plugins(self) -> None:
        if self._plugins_read:
            return
        self._plugins_read = True
        for point in entry_points(group=f"sparsewright.{self.kind}"):
            self._add(point.name, point.load())

    def get(self, name: str) -> T:
        """The one instance registered under `name`.

        Raises:
            RegistryError: the name is unknown; the message suggests the nearest.
        """
        if name not in self._classes:
            self._read_plugins()
        if name not in self._classes:
            raise RegistryError(f"There is no {name!r} among the {self.kind}. {suggest(name, self._classes)}")
        if name not in self._instances:
            self._instances[name] = self._classes[name]()
        return self._instances[name]

    def names(self) -> list[str]:
        """All names, sorted, plug-ins included."""
        self._read_plugins()
        return sorted(self._classes)

    def items(self) -> Iterator[tuple[str, T]]:
        """All names with their instance, sorted by name."""
        for name in self.names():
            yield name, self.get(name)

    def remove(self, name: str) -> None:
        """Forget a name (tests and notebooks that try a class twice)."""
        self._classes.pop(name, None)
        self._instances.pop(name, None)
