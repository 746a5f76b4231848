"""What stands beside an export's weights: its settings of drawing, and a card with no figure that was not measured."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from rich.console import Console

from srum_ds.commands.main import main
from srum_ds.common.files import weights_sha256
from srum_ds.common.image_files import write_image
from srum_ds.config import Config, load_config, save_config
from srum_ds.evaluation.card_figures import refresh_card
from srum_ds.evaluation.draw_request import DrawOptions, PromptChoice
from srum_ds.evaluation.evaluate import evaluate_run
from srum_ds.evaluation.evaluate_benchmark import evaluate_benchmark
from srum_ds.evaluation.export_extras import write_export_extras
from srum_ds.evaluation.model_card import BEGIN, END, EXAMPLE, EXAMPLE_FILE, licence_of, public_name
from srum_ds.evaluation.score import compare_folders, score_folder
from srum_ds.evaluation.score_request import JudgeChoice
from srum_ds.models import family_of
from srum_ds.models.generation import read_generation
from tests.support.paths import MODEL, RECIPE

SETTINGS = ("eval.prompts=6", "eval.num_timesteps=3", "rollout.text_scale=1.5", "eval.batch=6")


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def run_of(folder: Path, *more: str) -> tuple[Path, Config]:
    """A finished run whose export are its base's weights, with all that an export has beside them."""
    run = folder / "drawer"
    cfg = load_config(RECIPE, [f"run.dir={run}", *SETTINGS, *more])
    save_config(cfg, run / "config.yaml")
    shutil.copytree(MODEL, run / "export")
    write_export_extras(run / "export", cfg, 120, "ema", run)
    return run, cfg


def card_of(run: Path) -> str:
    return (run / "export" / "README.md").read_text()


def measured_in(text: str) -> str:
    return text.partition(BEGIN)[2].partition(END)[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not evaluated; nobody writes there."""
    return run_of(tmp_path_factory.mktemp("runs"))[0]


def test_an_export_says_how_its_evaluation_draws(run: Path) -> None:
    found = read_generation(run / "export", family_of(run / "export"))
    assert found is not None and found.image_size == (64, 64)
    # As eval.* has it, and what that leaves open as rollout.* has it.
    assert (found.sampling["num_timesteps"], found.sampling["text_scale"]) == (3, 1.5)
    assert {name: found.about[name] for name in ("step", "weights", "trained", "base")} == {
        "step": 120,
        "weights": "ema",
        "trained": "generation",
        "base": "srum_ds/assets/tiny_bagel",
    }


def test_a_card_is_one_that_the_hub_reads_and_says_what_is_not_known(run: Path) -> None:
    text = card_of(run)
    data: Any = ModelCard(text).data
    assert (data.license, data.pipeline_tag, data.library_name) == ("unknown", "text-to-image", "srum-ds")
    assert "bagel" in data.tags and yaml.safe_load(text.split("---\n")[1])["license"] == "unknown"
    assert "# drawer" in text and "says nothing of a licence" in text and "srum_ds/assets/tiny_bagel" in text
    assert "120 of 8 prompts x 8 images" in text and "nft, held by reference x 0.3" in text
    assert "what the model says about images is what its base says" in text and "2510.12784" in text
    assert "Not measured yet" in measured_in(text) and "±" not in text
    assert not (run / "export" / "gallery.png").exists() and str(run.parent) not in text


def test_the_cards_command_draws(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(run / "export", tmp_path / "moved")
    monkeypatch.chdir(folder)
    line = f'srum-ds generate --model . --prompt "{EXAMPLE}" --out images'
    assert line in (folder / "README.md").read_text()
    assert main(["generate", "--model", ".", "--prompt", EXAMPLE, "--out", "images"]) == 0
    assert [path.name for path in (folder / "images").iterdir()] == [EXAMPLE_FILE]
    assert main(["ask", "--model", ".", "--image", f"images/{EXAMPLE_FILE}", "--question", "is it red?"]) == 0


def test_an_evaluation_writes_its_figures_and_pictures_into_the_card(tmp_path: Path) -> None:
    run, cfg = run_of(tmp_path)
    before = card_of(run)
    result = evaluate_run(run, (), 1, cache=False, console=quiet())
    text = card_of(run)
    shown = measured_in(text)
    assert text.replace(shown, "") == before.replace(measured_in(before), "")
    overall = result["base"]
    # The same weights on both sides: the same figures, and no difference.
    row = f"| **overall** | **6** | **{overall['overall']:.3f} ± {overall['stderr']:.3f}** |"
    assert row in shown and "+0.000" in shown and "split `test`, seed 1234" in shown
    with Image.open(run / "export" / "gallery.png") as picture:
        assert picture.format == "PNG" and 300 < picture.width <= 900
    assert "](gallery.png)" in shown
    assert "other settings" not in shown
    evaluate_run(run, ["eval.text_scale=2", "eval.prompts=2"], 1, cache=False, console=quiet())
    assert "other settings than generation.json has: text_scale 2.0." in measured_in(card_of(run))
    result = evaluate_run(run, (), 1, cache=False, console=quiet())
    # Exported again, the same weights keep them; others do not.
    write_export_extras(run / "export", cfg, 120, "ema", run)
    assert measured_in(card_of(run)).strip() == shown.strip()
    (run / "result.json").write_text(json.dumps({**result, "settings": {"trained_sha256": "0" * 64}}))
    write_export_extras(run / "export", cfg, 121, "ema", run)
    assert "Not measured yet" in measured_in(card_of(run)) and not (run / "export" / "gallery.png").exists()


def test_a_benchmarks_figures_stand_in_the_card_with_their_judge(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path)
    choice, judge = PromptChoice("shapes", limit=12), JudgeChoice("checker")
    evaluate_benchmark(run, choice, DrawOptions(), judge, score_folder, compare_folders, processes=1)
    compared = json.loads((run / "eval" / "shapes" / "compare.json").read_text())
    shown = measured_in(card_of(run))
    mean = compared["figures"]["overall"]["means"][1]
    assert f"| shapes (a part of it) | 12 | {mean['mean']:.3f} ± {mean['stderr']:.3f} |" in shown
    assert "| +0.000 ± 0.000 | checker" in shown and (run / "export" / "gallery.png").is_file()
    assert "canary" not in shown
    path = run / "eval" / "shapes" / "trained" / "results.json"
    results = json.loads(path.read_text())
    path.write_text(json.dumps({**results, "canary": {**results["canary"], "passed": False}}))
    assert refresh_card(run / "export", run, weights_sha256(run / "export"))
    assert "failed its canary: do not believe it" in measured_in(card_of(run))


def test_fixed_prompts_are_the_gallery_until_there_is_an_evaluation(tmp_path: Path) -> None:
    run = tmp_path / "drawer"
    for step in (0, 120):
        picture = run / "samples" / f"fixed_{step:06d}" / "00.png"
        picture.parent.mkdir(parents=True)
        write_image(picture, torch.full((3, 64, 64), step / 200), {})
        record = {
            "format": 1,
            "step": step,
            "weights": "ema",
            "images": [{"text": "a hat", "picture": f"fixed_{step:06d}/00.png"}],
        }
        (run / "samples" / f"fixed_{step:06d}.json").write_text(json.dumps(record))
    run, cfg = run_of(tmp_path)
    assert "before the first step, and after step 120" in card_of(run) and (run / "export" / "gallery.png").is_file()
    write_export_extras(run / "export", cfg, 120, "live", run)
    assert "gallery" not in card_of(run) and not (run / "export" / "gallery.png").exists()
    (run / "samples" / "fixed_000120" / "00.png").write_bytes(b"half")
    write_export_extras(run / "export", cfg, 120, "ema", run)
    assert "gallery" not in card_of(run)


def test_a_card_that_a_person_wrote_stays(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path)
    (run / "export" / "README.md").write_text("# mine\n")
    (run / "result.json").write_text("{")
    assert refresh_card(run / "export", run, weights_sha256(run / "export")) is False
    assert card_of(run) == "# mine\n"


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n# x\n", "apache-2.0"),
        ("---\nlicense: unknown\n---\n", None),
        ("---\nlicense: [a\n---\n", None),
        ("# no front matter\n", None),
        ("", None),
    ],
)
def test_a_bases_licence_is_what_its_card_says(tmp_path: Path, card: str, licence: str | None) -> None:
    (tmp_path / "README.md").write_text(card)
    assert licence_of(tmp_path) == licence
    assert licence_of(tmp_path / "none") is None


def test_a_path_of_this_machine_stays_here() -> None:
    assert public_name("/home/me/models/BAGEL-7B-MoT") == "BAGEL-7B-MoT"
    assert public_name("~/models/x") == "x" and public_name("models/x") == "models/x"


def test_a_card_says_who_judged(tmp_path: Path) -> None:
    own = card_of(run_of(tmp_path / "own")[0])
    assert "its understanding judged its own images" in own and "| judge | itself, by logprob |" in own
    assert "whole images and of regions" in own and "- self-rewarding" in own
    (tmp_path / "mine.py").write_text("def score(images, prompts):\n    return [0.0] * len(prompts)\n")
    by = f"judge.external={tmp_path}/mine.py:score"
    alone = card_of(run_of(tmp_path / "alone", by, "judge.external_weight=1", "reward.local_weight=0")[0])
    assert "understanding judged" not in alone and "own understanding half" not in alone and "self-rew" not in alone
    assert "| judge | 1 outside of it |" in alone and "1 judge(s) outside of it judged them" in alone
    assert "no regions |" in alone and "and of regions" not in alone
    beside = card_of(run_of(tmp_path / "beside", by)[0])
    assert "| judge | itself, by logprob; 1 outside of it |" in beside and "and 1 further judge(s)" in beside
    plain = card_of(run_of(tmp_path / "plain", "objective.name=sft", "objective.constraint=none")[0])
    assert "| reward | none |" in plain and "without a reward" in plain and "| objective | sft, not held |" in plain
    assert "It was rewarded by" not in plain
