"""Every design under ZeRO-3 on two ranks: as without it, and a whole run that is killed, resumed and exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from srum_ds.engine.plain import PlainEngine
from srum_ds.models import family_of, load_model
from tests.integration.design_worker import SETTINGS, prepare, train_step
from tests.support.designs import DESIGNS, run_words
from tests.support.ranks import kill_after, run_ranks, start_ranks
from tests.support.runs import metrics, write_prompts

SAME_WEIGHTS = 1e-6
SAME_LOSS = 1e-4
ONE_LEVEL = 1.01 / 255
NAMES = tuple(DESIGNS)


def sampling_settings(words: tuple[str, ...]) -> dict[str, Any]:
    """The sampler's settings among a recipe's words."""
    pairs = [word.partition("=")[::2] for word in words if word.startswith("rollout.")]
    return {key.split(".")[-1]: yaml.safe_load(value) for key, value in pairs}


@pytest.fixture(scope="module", params=NAMES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks have trained a step of a design in each of its modes."""
    design = DESIGNS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    design.write(folder / "model")
    family = family_of(folder / "model")
    assert family.kind == request.param
    settings = {"sampling": sampling_settings(design.words), "modes": family.modes}
    (folder / "settings.json").write_text(json.dumps(settings))
    run_ranks(2, [str(folder)], "tests/integration/design_worker.py")
    return folder


def test_a_step_on_two_ranks_is_the_step_of_one_process(trained: Path) -> None:
    """Loaded into shards, drawn and judged gathered, trained sharded: images, answers, loss, norm and weights."""
    found = json.loads((trained / "found.json").read_text())
    settings = json.loads((trained / "settings.json").read_text())
    family = family_of(trained / "model")
    sampling = family.sampling_type(**settings["sampling"])
    assert found.keys() == set(family.modes)
    for mode in family.modes:
        model = load_model(trained / "model")
        engine = PlainEngine.create(model.module, prepare(model, mode), device="cpu", **SETTINGS)
        before = {name: value.clone() for name, value in engine.consolidate() if value is not None}
        seen = train_step(engine, model, sampling, 0, 1)
        there = load_file(trained / f"{mode}_seen.safetensors")
        for name in ("tokens", "images", "said"):
            near = ONE_LEVEL if name == "images" else SAME_LOSS
            torch.testing.assert_close(there[name], seen[name], rtol=SAME_LOSS, atol=near)
        assert found[mode]["loss"] == pytest.approx([seen["loss"]] * 2, rel=SAME_LOSS), mode
        assert found[mode]["norm"] == pytest.approx([seen["norm"]] * 2, rel=SAME_LOSS), mode
        assert found[mode]["in_layers"] == [1.0, 1.0], "drawn layer by layer, the tokens are others"
        weights = load_file(trained / f"{mode}.safetensors")
        after = {name: value for name, value in engine.consolidate() if value is not None}
        assert weights.keys() == after.keys()
        moved = max(float((after[name] - before[name]).abs().max()) for name in after)
        apart = max(float((after[name] - weights[name]).abs().max()) for name in after)
        assert moved > 1e-5 and apart < SAME_WEIGHTS, (mode, moved, apart)


# ---- whole runs


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts"), 12)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_killed_resumed_exported_and_opened_by_its_library(name: str, shards: Path, tmp_path: Path) -> None:
    """Shards, drawing, judging, map, ZeRO-3 step on two ranks, save, kill, resume, export; and one rank is the same."""
    model = DESIGNS[name].write(tmp_path / "model")
    whole, killed, alone = (tmp_path / run for run in ("whole", "killed", "alone"))
    run_ranks(2, run_words(name, model, shards, whole))
    kill_after(start_ranks(2, run_words(name, model, shards, killed)), killed, 2)
    run_ranks(2, run_words(name, model, shards, killed))
    run_ranks(1, run_words(name, model, shards, alone))

    expected = metrics(whole)
    assert len(expected) == 5
    for run_dir, tolerance in ((killed, 0.0), (alone, SAME_LOSS)):
        for line, other in zip(expected, metrics(run_dir), strict=True):
            for key in ("loss", "reward_global", "grad_norm"):
                assert other[key] == pytest.approx(line[key], rel=tolerance, abs=tolerance), (run_dir.name, key)

    def exported(run_dir: Path) -> dict[str, torch.Tensor]:
        folder = run_dir / "export"
        files = sorted(folder.rglob("*.safetensors"))
        assert files
        return {f"{path.relative_to(folder)}/{key}": t for path in files for key, t in load_file(path).items()}

    there, again = exported(whole), exported(killed)
    assert there.keys() == again.keys()
    assert all(torch.equal(there[key], again[key]) for key in there), "killed and resumed, other weights"
    before = load_model(model)
    after = load_model(whole / "export")
    names = before.trainable(DESIGNS[name].mode)
    old, new = dict(before.module.named_parameters()), dict(after.module.named_parameters())
    assert any(not torch.equal(old[key], new[key]) for key in names), "nothing was trained"
    redraws = DESIGNS[name].redraws
    assert redraws is None or redraws(whole / "export") < SAME_LOSS
