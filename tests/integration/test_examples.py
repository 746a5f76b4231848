"""The code of docs/own_code.md in a run of ranks, and docs/examples/palette as a package that others install."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from srum_ds.config import load_config
from tests.support.launching import environment
from tests.support.pages import OWN_CODE, write_files
from tests.support.paths import ROOT
from tests.support.ranks import srum_ds

SETTINGS = (
    "objective.name=objective.py:PROXIMAL",
    "objective.options.strength=3",
    "judge.readout=readout.py:margin",
    "regions.kind=proposer.py:strips",
    "regions.options.count=4",
    "judge.external=judge.py:fullness",
    "watch.checker=checker.py:not_blank",
    "model.kind=model.py:FAMILY",
)
SHORT = (
    "run.dir=run",
    "train.steps=2",
    "train.timesteps_per_image=1",
    "rollout.prompts_per_step=2",
    "rollout.micro_batch_prompts=2",
    "rollout.images_per_prompt=2",
    "rollout.num_timesteps=3",
    "watch.prompts=2",
    "deepspeed.ranks=1",
    "log.tensorboard=false",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder outside the package with the page's files, as the working directory."""
    write_files(OWN_CODE, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_uses_all_of_them(folder: Path) -> None:
    status, printed = srum_ds("train", *SETTINGS, *SHORT, cwd=folder)
    assert status == 0, printed[-6000:]
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    # Four strips of each of the 2 x 2 images.
    assert [line["regions"] for line in lines] == [16, 16]
    assert lines[-1]["judge"].startswith("readout.py:margin")
    assert 0.0 <= lines[-1]["checker_exact"] <= 1.0
    saved = load_config(folder / "run" / "config.yaml")
    assert saved.objective.options == {"strength": 3}
    assert (folder / "run" / "export").is_dir()

    # Two batches of each model, in processes of their own, which must find the readout's file too.
    words = ["eval.prompts=4", "eval.batch=2", "eval.num_timesteps=3", "--processes", "2"]
    command = [sys.executable, "-P", "-m", "srum_ds.evaluation.evaluate", "run", *words]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    result = json.loads((folder / "run" / "result.json").read_text())
    assert result["base"]["n"] == 4 and result["settings"]["judge"]["readout"] == "readout.py:margin"


# ---- a whole design, installed as a package of its own


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip has put the example package, beside a folder of random weights of its design."""
    folder = tmp_path_factory.mktemp("palette")
    source = shutil.copytree(ROOT / "docs" / "examples" / "palette", folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder / "site"), str(source)], check=True)
    shape = {"prompt": (12, 256), "paint": (96, 12), "text": (12, 256), "look": (12, 48), "say": (128, 12)}
    generator = torch.Generator().manual_seed(0)
    weights = {f"{name}.weight": 0.3 * torch.randn(size, generator=generator) for name, size in shape.items()}
    weights |= {f"{name}.bias": 0.3 * torch.randn(size[0], generator=generator) for name, size in shape.items()}
    (folder / "model").mkdir()
    save_file(weights, folder / "model" / "model.safetensors")
    (folder / "model" / "palette.json").write_text('{"colours": 6, "width": 12}')
    return folder


def test_a_design_of_ones_own_is_installed_found_and_keeps_the_contract(installed: Path) -> None:
    """Its entry point is all that the package says of itself: ``auto`` finds the design by its folder."""
    assert len((ROOT / "docs/examples/palette/palette.py").read_text().splitlines()) <= 120
    variables = {**os.environ, "PYTHONPATH": f"{installed / 'site'}:{ROOT}", "COLUMNS": "200"}
    run = "import sys; from srum_ds.commands.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", run, "check-adapter", "auto", str(installed / "model")]
    done = subprocess.run(command, cwd=installed, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kind palette, modes generation" in done.stdout and "bit for bit" in done.stdout
    bare = variables | {"PYTHONPATH": str(ROOT)}
    without = subprocess.run(command, cwd=installed, env=bare, capture_output=True, text=True)
    assert without.returncode == 2 and "of no known design" in without.stderr
