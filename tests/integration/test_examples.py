"""The files of docs/examples as a user has them: copied to a folder of their own and named in a recipe."""

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

from srum_ds.config import Config, load_config
from srum_ds.config.schema import ObjectiveConfig
from srum_ds.evaluation.checkers import load_checker
from srum_ds.models.matching import CategoricalTokens, FlowMatching
from srum_ds.objectives import Terms, get_objective
from srum_ds.rewards.judge.external import function_scores, load_function
from srum_ds.rewards.judge.readouts import Request, readout_of
from srum_ds.rewards.regions.boxes import select
from srum_ds.rewards.regions.pipeline import proposer_of
from srum_ds.types import Prompt
from tests.support.batches import samples_of
from tests.support.judges import MuteJudge, ScoringJudge
from tests.support.launching import environment
from tests.support.paths import RECIPE, ROOT
from tests.support.ranks import srum_ds

SETTINGS = (
    "objective.name=objective.py:PROXIMAL",
    "objective.options.strength=3",
    "judge.readout=readout.py:margin",
    "regions.kind=region_proposer.py:strips",
    "regions.options.count=4",
    "judge.external=external_judge.py:fullness",
    "watch.checker=checker.py:not_blank",
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
    """A folder outside the package with copies of the examples, as the working directory."""
    for example in (ROOT / "docs" / "examples").glob("*.py"):
        shutil.copy(example, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cfg(folder: Path) -> Config:
    return load_config(RECIPE, SETTINGS)


@pytest.mark.parametrize("discrete", [False, True])
def test_objective(cfg: Config, discrete: bool) -> None:
    """w E + s D for velocities and for codes, its gradient w dE where nothing has moved yet."""
    torch.manual_seed(0)
    matching = CategoricalTokens() if discrete else FlowMatching()
    shape = (2, 3) if discrete else (2, 3, 5)
    prediction = torch.randn(shape, requires_grad=True)
    target = torch.randint(0, 5, shape) if discrete else torch.randn(shape)
    weights_BT = torch.tensor([[0.5, -1.0, 0.0], [1.0, 0.0, -0.5]])
    old = torch.randn(shape)
    objective = get_objective(cfg.objective.name)
    losses_BT = objective.losses(Terms(matching, prediction, target, weights_BT, old), cfg.objective)
    energy_BT, divergence_BT = matching.energy(prediction, target), matching.divergence(prediction, old)
    torch.testing.assert_close(losses_BT, weights_BT * energy_BT + 3 * divergence_BT)

    at_old = Terms(matching, prediction, target, weights_BT, prediction.detach().clone())
    (gradient,) = torch.autograd.grad(objective.losses(at_old, ObjectiveConfig()).sum(), prediction, retain_graph=True)
    (expected,) = torch.autograd.grad((weights_BT * matching.energy(prediction, target)).sum(), prediction)
    torch.testing.assert_close(gradient, expected)


def test_readout(cfg: Config) -> None:
    judge = ScoringJudge(lambda question, image: (0.7, 0.1))
    requests = [Request(0, "is this a circle?", "a circle")] * 3
    replies = readout_of(cfg).read(judge, [torch.zeros(3, 8, 8)], requests)
    torch.testing.assert_close(replies.score_Q, torch.tensor([0.6] * 3))
    assert replies.status_Q.tolist() == [0, 0, 0] and len(replies.raw) == 3


def test_region_proposer(cfg: Config) -> None:
    proposer = proposer_of(cfg)
    found = proposer(torch.zeros(2, 3, 8, 8), [Prompt("a", "a circle")] * 2, MuteJudge())
    regions = select(found, max_count=cfg.regions.max_count)
    assert regions.owner_R.tolist() == [0] * 4 + [1] * 4
    assert regions.boxes_R4[1].tolist() == [0.25, 0.0, 0.5, 1.0]


def test_external_judge(cfg: Config) -> None:
    samples = samples_of(torch.zeros(2, 4, 3), (2, 2), [0, 1])
    samples.images_NCHW[1, :, :32] = 1.0
    score_N, status_N, failures = function_scores(load_function(str(cfg.judge.external)), "fullness", samples)
    assert score_N.tolist() == [-1.0, 1.0] and status_N.tolist() == [0, 0] and failures == ()


def test_checker(cfg: Config) -> None:
    images_NCHW = torch.zeros(2, 3, 8, 8)
    images_NCHW[1, 0, 3, 3] = 1.0
    assert load_checker(cfg.watch.checker)([Prompt("a", "a circle")] * 2, images_NCHW) == [False, True]


def test_a_run_uses_all_of_them(folder: Path) -> None:
    status, printed = srum_ds("train", *SETTINGS, *SHORT, cwd=folder)
    assert status == 0, printed[-6000:]
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1]
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
