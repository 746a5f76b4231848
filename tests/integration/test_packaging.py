"""What is installed, shipped and promised fits together."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from srum_ds import __version__
from tests.support.paths import ROOT

SHIPPED = ("launch", "ds_configs", "data_shards")


def setup_keywords() -> dict[str, object]:
    """What setup.py passes to setuptools."""
    code = (
        "import json, setuptools\n"
        "setuptools.setup = lambda **words: print(json.dumps(words, default=str))\n"
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
    names = {"PIL": "pillow", "yaml": "pyyaml", "annotated_types": "annotated-types", "mlflow": "mlflow-skinny"}
    extras = KEYWORDS["extras_require"]
    assert isinstance(extras, dict)
    names_of_extras = ("fused", "phrases", "prompts", "show", "wandb", "mlflow", "trackio")
    optional = [text for name in names_of_extras for text in extras[name]]
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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this tree, built in a copy: setuptools leaves a build folder, and would ship what an older one had."""
    folder = tmp_path_factory.mktemp("wheel")
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"
    copy = folder / "source"
    tracked = ["setup.py", "pyproject.toml", "LICENSE", "srum_ds", *SHIPPED]
    copy.mkdir()
    subprocess.run(["cp", "-r", *(str(ROOT / name) for name in tracked), str(copy)], check=True)
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    return next(folder.glob("srum_ds-*.whl"))


def test_built_wheel_ships_what_the_package_reads(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = set(archive.namelist())
    sources = [path for path in (ROOT / "srum_ds").rglob("*.py")]
    data = [
        path
        for folder in ("assets", "rewards/questions", "evaluation/report_html/templates")
        for path in (ROOT / "srum_ds" / folder).rglob("*")
    ]
    expected = {str(path.relative_to(ROOT)) for path in [*sources, *data] if path.is_file()}
    expected = {name for name in expected if "__pycache__" not in name}
    assert len(expected) > 20
    beside = [path for name in SHIPPED for path in (ROOT / name).rglob("*")]
    expected |= {f"srum_ds/shipped/{path.relative_to(ROOT)}" for path in beside if path.is_file()}
    assert expected - shipped == set()
    assert {name.split("/")[0] for name in shipped if ".dist-info" not in name} == {"srum_ds"}


def test_a_wheel_trains_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """Installed where this project's dependencies are, and no clone: recipes, shards and launch script come along."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    site = next(environment.glob("lib/python*/site-packages"))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, wheel], check=True
    )
    # The dependencies alone: what is installed here in editable mode would be found by its hooks.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    work = tmp_path / "work"
    work.mkdir()
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
    python = environment / "bin" / "python"

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        # -P: not the folder that it is called in, where a clone could be.
        command = [str(python), "-P", "-m", "srum_ds", *words]
        return subprocess.run(command, cwd=work, env=variables, capture_output=True, text=True)

    assert (
        str(site)
        in subprocess.run(
            [str(python), "-P", "-c", "import srum_ds; print(srum_ds.__file__)"],
            cwd=work,
            env=variables,
            capture_output=True,
            text=True,
        ).stdout
    )
    (environment / "bin" / "deepspeed").write_text(f"#!{python}\nfrom deepspeed.launcher.runner import main\nmain()\n")
    (environment / "bin" / "deepspeed").chmod(0o755)
    assert run("init", "my.yaml").returncode == 0
    done = run("train", "my.yaml", "--dry-run")
    assert f"{site}/srum_ds/shipped/launch/train.sh" in done.stdout, done.stderr
    small = (
        "deepspeed.ranks=1 train.steps=1 rollout.prompts_per_step=1 rollout.images_per_prompt=2 eval.prompts=2".split()
    )
    done = run("train", "my.yaml", *small, "rollout.micro_batch_prompts=1", "rollout.num_timesteps=3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (work / "runs/my/export/ema.safetensors").is_file()


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
        "fuzz",
        "loss-compare",
        "chaos",
        "lint",
        "docs",
        "gpu-check",
        "gpu-wheels",
        "lock",
        "audit",
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
        ".venv/bin/srum-ds eval --if-checkable --recipe a.yaml run.dir=runs/x train.steps=2",
    ]


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-cpu.lock"])
def test_the_locked_files_are_those_of_the_constraints(name: str) -> None:
    locked: dict[str, str] = {}
    for entry in (ROOT / name).read_text().replace("\\\n", " ").splitlines():
        if not entry or entry.lstrip().startswith("#"):
            continue
        requirement, *hashes = entry.split("--hash=")
        assert hashes, entry
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", text.strip()) for text in hashes), entry
        found = Requirement(requirement.strip())
        locked[canonicalize_name(found.name)] = str(found.specifier).removeprefix("==").removesuffix("+cpu")
    needed = {canonicalize_name(requirement.name) for requirement in requirements()}
    assert needed <= locked.keys()
    pinned = {package: str(version) for package, version in pins().items()}
    assert {package: locked[package] for package in locked.keys() & pinned.keys()} == {
        package: pinned[package] for package in locked.keys() & pinned.keys()
    }
    # What torch's CUDA build brings along, and packages for other systems, are pinned by the lock alone.
    assert pinned.keys() - locked.keys() == set()


def test_only_what_belongs_there_stands_at_the_top() -> None:
    """A run's folder that was added by mistake would travel with every clone."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this tree is no clone")
    folders = {name.partition("/")[0] for name in done.stdout.splitlines() if "/" in name}
    assert folders <= {".ci", ".github", "benchmarks", "docs", "srum_ds", "tests", *SHIPPED}
