"""One door for our classes and for those of other packages."""

from importlib.metadata import EntryPoint

import pytest

from sparsewright.core import Registry, RegistryError
from sparsewright.core import registry as registry_module


class Animal:
    pass


class Dog(Animal):
    pass


def test_a_decorated_class_is_found_and_made_once() -> None:
    animals: Registry[Animal] = Registry("animals", Animal)
    animals.register("dog")(Dog)
    assert animals.names() == ["dog"]
    assert isinstance(animals.get("dog"), Dog)
    assert animals.get("dog") is animals.get("dog")
    assert dict(animals.items()) == {"dog": animals.get("dog")}


def test_an_unknown_name_suggests_the_nearest() -> None:
    animals: Registry[Animal] = Registry("animals", Animal)
    animals.register("dog")(Dog)
    with pytest.raises(RegistryError, match="Did you mean 'dog'"):
        animals.get("dogg")


def test_a_name_is_given_once_and_classes_must_derive_from_the_base() -> None:
    animals: Registry[Animal] = Registry("animals", Animal)
    animals.register("dog")(Dog)
    animals.register("dog")(Dog)
    with pytest.raises(RegistryError, match="taken"):
        animals.register("dog")(Animal)
    with pytest.raises(RegistryError, match="derive"):
        animals.register("stone")(int)
    animals.remove("dog")
    assert animals.names() == []


def test_other_packages_join_through_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("dog", f"{__name__}:Dog", "sparsewright.animals")
    asked = []

    def entry_points(group: str) -> list[EntryPoint]:
        asked.append(group)
        return [point]

    monkeypatch.setattr(registry_module, "entry_points", entry_points)
    monkeypatch.setattr(EntryPoint, "load", lambda self: Dog)
    animals: Registry[Animal] = Registry("animals", Animal)
    assert asked == [], "entry points are read on the first look-up, not before"
    assert isinstance(animals.get("dog"), Dog)
    assert asked == ["sparsewright.animals"]
