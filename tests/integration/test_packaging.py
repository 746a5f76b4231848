"""What is installed, shipped and promised fits together."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from srum_ds import __version__
from tests.support.paths import ROOT


def setup_keywords() -> dict[str, object]:
    """What setup.py passes to setuptools."""
    code = (
        "import json, setuptools\n"
        "setuptools.setup = lambda **words: print(json.dumps(words))\n"
        "exec(open('setup.py').read(), {'__file__': 'setup.py', '__name__': 'setup'})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


KEYWORDS = setup_keywords()


def words(name: str) -> list[str]:
    value = KEYWORDS[name]
    assert isinstance(value, list)
    return value


def pins() -> dict[str, Version]:
    found: dict[str, Version] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            found[canonicalize_name(name)] = Version(version)
    return found


def requirements() -> list[Requirement]:
    extras = KEYWORDS["extras_require"]
    assert isinstance(extras, dict)
    return [Requirement(text) for text in [*words("install_requires"), *extras["test"]]]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_pins_lie_in_the_promised_ranges(requirement: Requirement) -> None:
    pin = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pin)


def test_pins_fit_cpu_and_cuda_builds_alike() -> None:
    assert {name: pin.local for name, pin in pins().items() if pin.local} == {}


def test_pins_are_closed_under_dependencies() -> None:
    """Whatever a pinned package needs is pinned too, and to a version it accepts."""
    pinned = pins()
    problems = []
    for name in pinned:
        try:
            needs = requires(name) or []
        except PackageNotFoundError:
            continue
        for need in map(Requirement, needs):
            if need.marker is not None and not need.marker.evaluate({"extra": ""}):
                continue
            pin = pinned.get(canonicalize_name(need.name))
            if pin is None or not need.specifier.contains(pin, prereleases=True):
                problems.append(f"{name} needs {need}, pinned {pin}")
    assert problems == []


def test_every_import_of_the_package_is_declared() -> None:
    names = {"PIL": "pillow", "yaml": "pyyaml", "annotated_types": "annotated-types"}
    extras = KEYWORDS["extras_require"]
    assert isinstance(extras, dict)
    optional = [text for name in ("fused", "phrases") for text in extras[name]]
    declared = {canonicalize_name(Requirement(text).name) for text in [*words("install_requires"), *optional]}
    undeclared = {}
    for path in sorted((ROOT / "srum_ds").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found: list[str] = []
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found = [node.module or ""]
            for module in found:
                top = module.split(".")[0]
                if top == "srum_ds" or top in sys.stdlib_module_names:
                    continue
                if canonicalize_name(names.get(top, top)) not in declared:
                    undeclared[top] = path.name
    assert undeclared == {}


def test_version_and_python_promise() -> None:
    assert KEYWORDS["version"] == __version__
    assert KEYWORDS["python_requires"] == ">=3.11"
    assert KEYWORDS["license"] == "Apache-2.0"
    assert "TERMS AND CONDITIONS" in (ROOT / "LICENSE").read_text()


def test_built_wheel_ships_what_the_package_reads(tmp_path: Path) -> None:
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    # Built in a copy: setuptools leaves a build folder, and would ship what an older one holds.
    copy = tmp_path / "source"
    tracked = ["setup.py", "pyproject.toml", "LICENSE", "srum_ds"]
    copy.mkdir()
    subprocess.run(["cp", "-r", *(str(ROOT / name) for name in tracked), str(copy)], check=True)
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("srum_ds-*.whl"))) as wheel:
        shipped = set(wheel.namelist())
    sources = [path for path in (ROOT / "srum_ds").rglob("*.py")]
    data = [
        path
        for folder in ("assets", "rewards/questions", "evaluation/report_html/templates")
        for path in (ROOT / "srum_ds" / folder).rglob("*")
    ]
    expected = {str(path.relative_to(ROOT)) for path in [*sources, *data] if path.is_file()}
    expected = {name for name in expected if "__pycache__" not in name}
    assert len(expected) > 20
    assert expected - shipped == set()
    assert {name.split("/")[0] for name in shipped if ".dist-info" not in name} == {"srum_ds"}


def test_console_script_is_installed_beside_python() -> None:
    script = Path(sys.executable).with_name("srum-ds")
    done = subprocess.run([str(script), "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == __version__


def test_make_help_documents_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    shown = re.findall(r"^  make ([\w-]+) +\S", done.stdout, re.MULTILINE)
    assert sorted(shown) == sorted(phony.group(1).split())
    named = {
        "setup",
        "train",
        "eval",
        "test",
        "test-fast",
        "loss-compare",
        "lint",
        "gpu-check",
        "gpu-wheels",
        "bench",
        "pretrain",
        "clean",
        "help",
    }
    assert set(shown) == named


def test_setup_refuses_an_old_python(tmp_path: Path) -> None:
    old = tmp_path / "python2"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    for name in ("Makefile", "constraints.txt", "setup.py"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    done = subprocess.run(["make", "setup", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "srum-ds needs Python >= 3.11" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_make_train_evaluates_the_run_it_trained(tmp_path: Path) -> None:
    # In a folder that is set up already (make -o), so that only the two commands are left to show.
    (tmp_path / ".venv").mkdir()
    for name in ("Makefile", "constraints.txt", "setup.py"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    asked = ["RECIPE=a.yaml", "ARGS=run.dir=runs/x train.steps=2"]
    done = subprocess.run(
        ["make", "-n", "--no-print-directory", "-o", ".venv/.setup-done", "train", *asked],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[-2:] == [
        ".venv/bin/srum-ds train a.yaml run.dir=runs/x train.steps=2",
        ".venv/bin/srum-ds eval --recipe a.yaml run.dir=runs/x train.steps=2",
    ]
