"""Code by name: built in, from an installed package, from a module or a file of the user's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from srum_ds.common.errors import UserError
from srum_ds.common.registry import Registry, load_attribute


@pytest.fixture
def registry() -> Registry[object]:
    return Registry("toy.name", "toy", "srum_ds.toys", {"pi": "math:pi", "sqrt": "math:sqrt"})


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package that adds `wheel`, and one whose entry point is broken."""
    (tmp_path / "toybox.py").write_text("WHEEL = 'round'\n")
    info = tmp_path / "toybox-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toybox\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[srum_ds.toys]\nwheel = toybox:WHEEL\nbroken = toybox:NOTHING\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert metadata.version("toybox") == "1.0"
    yield


def test_built_in_names_are_imported_when_asked_for(registry: Registry[object]) -> None:
    import math

    assert registry.get("pi") == math.pi
    assert registry.names() == ["pi", "sqrt"]


def test_an_installed_package_adds_names(registry: Registry[object], package: None) -> None:
    assert registry.names() == ["pi", "sqrt", "broken", "wheel"]
    assert registry.get("wheel") == "round"
    with pytest.raises(UserError, match=r"toy\.name=broken: the entry point toybox:NOTHING .*cannot be loaded"):
        registry.get("broken")


def test_modules_and_files_of_the_user(
    registry: Registry[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_toys.py").write_text("KITE = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"] + [p for p in __import__("sys").path if p])
    assert registry.get("own_toys:KITE") == 3
    assert registry.get(f"{tmp_path}/own_toys.py:KITE") == 3
    assert load_attribute("own_toys.py:KITE", "toy.name") == 3


def test_errors_name_the_setting_and_the_nearest_name(registry: Registry[object], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"toy\.name=sqr: no such toy.*did you mean 'sqrt'"):
        registry.get("sqr")
    (tmp_path / "bad.py").write_text("raise RuntimeError('boom')\n")
    for name, said in (
        ("no_such_module:x", "ModuleNotFoundError"),
        (f"{tmp_path}/none.py:x", "no file"),
        (f"{tmp_path}/bad.py:x", "RuntimeError: boom"),
        ("math:tau2", "math has no 'tau2'"),
    ):
        with pytest.raises(UserError, match=said) as error:
            registry.get(name)
        assert str(error.value).startswith(f"toy.name={name}")


def test_what_has_another_type_is_refused() -> None:
    numbers: Registry[int] = Registry("number", "number", "srum_ds.none", {"pi": "math:pi"}, kind=int)
    with pytest.raises(UserError, match="is float, expected int"):
        numbers.get("pi")


def test_a_file_that_changed_is_read_again(
    registry: Registry[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook, whose cells run twice, in one folder or in another; what it imports may lie beside it."""
    monkeypatch.setattr("sys.path", [p for p in sys.path if p])
    for folder, length in (("first", 3), ("second", 5)):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        Path(f"beside_{folder}.py").write_text(f"LENGTH = {length}\n")
        Path("toys.py").write_text(f"from beside_{folder} import LENGTH as KITE\n")
        assert registry.get("toys.py:KITE") == length
    Path("toys.py").write_text("KITE = 7\n")
    assert registry.get("toys.py:KITE") == 7


def test_what_lacks_the_parts_of_an_entry_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def load():\n    pass\n")
    toys: Registry[object] = Registry("toy.name", "toy", "srum_ds.toys", {}, parts=("play",), expected="a Toy")
    with pytest.raises(UserError, match=r"toy\.name=.*own\.py:load: is function, expected a Toy"):
        toys.get(f"{tmp_path}/own.py:load")
