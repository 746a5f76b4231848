"""`load_model`, `judge` and `evaluate`: what they give is what the commands give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from srum_ds import Model, Pictures, evaluate, judge, load_model
from srum_ds.commands.ask import choose_answers, write_answers
from srum_ds.commands.generate import generate
from srum_ds.commands.placement import Placement
from srum_ds.common.errors import UserError
from srum_ds.common.image_files import read_image
from srum_ds.config import load_config, save_config
from srum_ds.rewards.judge.pipeline import JudgePipeline
from tests.support.judges import one_scene_twice
from tests.support.paths import MODEL, RECIPE

DRAWN = {"size": (32, 32), "num_timesteps": 3}


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(MODEL)


def test_pictures_are_those_of_the_command(model: Model, tmp_path: Path) -> None:
    pictures = model.draw(["a red circle", "a blue square"], seed=4, count=2, **DRAWN)  # type: ignore[arg-type]
    prompts = ["a red circle", "a blue square"]
    generate(model=MODEL, prompt=prompts, out=tmp_path, seed=4, count=2, size=["32x32"], steps=2)
    files = [tmp_path / f"{text.replace(' ', '-')}-seed4-{number}.png" for text in prompts for number in range(2)]
    assert pictures.prompts == ("a red circle",) * 2 + ("a blue square",) * 2
    for picture, file in zip(pictures, files, strict=True):
        torch.testing.assert_close(picture, read_image(file), rtol=0, atol=1e-6)
    assert [image.size for image in pictures.pil()] == [(32, 32)] * 4 and len(pictures) == 4
    assert pictures._repr_png_().startswith(b"\x89PNG") and "4 of 32x32" in repr(pictures)


def test_a_run_s_model_is_drawn_with_as_the_run_is_evaluated(model: Model, tmp_path: Path) -> None:
    words = ["eval.num_timesteps=3", "eval.text_scale=1.5", "rollout.image_size=[32,32]"]
    save_config(load_config(RECIPE, words), tmp_path / "config.yaml")
    with pytest.raises(UserError, match="the run has not finished"):
        load_model(tmp_path)
    (tmp_path / "export").symlink_to(MODEL)
    expected = model.draw(
        "a red circle", size=(32, 32), num_timesteps=3, text_scale=1.5, timestep_shift=2.0, interval=(0.0, 1.0)
    ).images_NCHW
    for path in (tmp_path, tmp_path / "export"):
        own = load_model(path)
        assert torch.equal(own.draw("a red circle").images_NCHW, expected)
        assert own.config is not None and own.folder == tmp_path / "export"


def test_answers_are_those_of_the_command(model: Model, tmp_path: Path) -> None:
    image = model.draw("a red circle", **DRAWN)[0]  # type: ignore[arg-type]
    file = tmp_path / "image.png"
    Pictures(image[None], ("x",)).pil()[0].save(file)
    question, answers = "is there a red circle?", ["yes", "no"]
    (chosen,) = choose_answers(MODEL, [file], question, answers, Placement())
    assert model.ask(image, question, answers=answers) == pytest.approx(chosen.probabilities)
    (written,) = write_answers(MODEL, [file], question, 1, 0.0, 0, Placement())
    assert model.ask([file, Image.open(file)], question, max_new_tokens=1) == [written.answer] * 2
    for arguments, said in (
        ((image, " "), "the question is empty"),
        ((image, question, ["yes"]), "at least two to choose from"),
        ((torch.zeros(2, 8, 8), question), r"Tensor \[2, 8, 8\]; expected a tensor \[3, H, W\]"),
        ((torch.full((3, 8, 8), 7.0), question), "numbers from 7 to 7; expected them in"),
        ((3, question), "int is no picture"),
        (([file, 3], question), r"pictures\[1\] is int"),
    ):
        with pytest.raises(UserError, match=said):
            model.ask(*arguments)


def test_a_judgement_is_what_a_run_s_judge_says(model: Model) -> None:
    samples, _ = one_scene_twice()
    prompts = list(samples.prompts)
    said = JudgePipeline(load_config(RECIPE)).judged(model.unified, samples)
    found = judge(model, samples.images_NCHW, prompts, overrides={"train.lr": 0.1})
    assert [one.score for one in found] == pytest.approx(said.scores.global_N.tolist())
    boxes = [list(box) for one in found for box in one.regions]
    torch.testing.assert_close(torch.tensor(boxes), said.regions.boxes_R4)
    assert [score for one in found for score in one.local_scores] == pytest.approx(said.scores.local_R.tolist())
    assert [phrase for one in found for phrase in one.phrases if phrase][0] in prompts[0].phrases
    assert len(found[1].said) == 1 + len(found[1].regions)
    # Pictures of other sizes beside each other; one alone; a text has its phrases split off.
    small = torch.nn.functional.interpolate(samples.images_NCHW[:1], (32, 32))[0]
    mixed = judge(model, [small, samples.images_NCHW[0]], prompts[0].text)
    assert mixed[1].score == pytest.approx(found[0].score) and mixed[0].score != mixed[1].score
    alone = judge(model, small, prompts[0].text, overrides=["regions.kind=grid"])
    assert len(alone.regions) == 4 and alone.prompt == prompts[0].text
    with pytest.raises(UserError, match="2 prompts for 1 pictures"):
        judge(model, small, prompts)
    with pytest.raises(UserError, match=r"prompts\[0\] is int"):
        judge(model, small, [3])


def test_what_cannot_be_drawn_or_loaded_is_refused(model: Model, tmp_path: Path) -> None:
    for arguments, given, said in (
        ((" ",), {}, "expected a text, or some, none of them empty"),
        (("x",), {"count": 0}, "count=0: give at least 1"),
        (("x",), {"steps": 3}, "steps: the sampler of bagel has no such setting"),
        (("x",), {"size": (33, 32)}, "33"),
    ):
        with pytest.raises(UserError, match=said):
            model.draw(*arguments, **given)
    for path, options, said in (
        (tmp_path / "none", {}, "is not a folder"),
        (MODEL, {"device": "tpu"}, "device='tpu' is unknown"),
        (MODEL, {"dtype": "int8"}, "dtype='int8' is unknown"),
    ):
        with pytest.raises(UserError, match=said):
            load_model(path, **options)


def test_evaluating_returns_what_is_written(model: Model, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\n")
    out = tmp_path / "pictures"
    settings = ["num_timesteps=2"]
    found: dict[str, Any] = evaluate(
        model, benchmark="own", prompts=prompts, judge="self", settings=settings, samples=1, size=(32, 32), out=out
    )
    assert found == json.loads((out / "results.json").read_text()) and found["n"] == 2
    with pytest.raises(UserError, match="samples belongs to a benchmark"):
        evaluate(tmp_path, samples=2)
    with pytest.raises(UserError, match="benchmark='own' asks a judge"):
        evaluate(model, benchmark="own", prompts=prompts, out=out)
    with pytest.raises(UserError, match="holds no run"):
        evaluate(tmp_path)


def test_uint8_and_pil_pictures_are_the_same(model: Model) -> None:
    image: Tensor = (torch.arange(3 * 16 * 16).reshape(3, 16, 16) % 256).to(torch.uint8)
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    asked = [model.ask(one, "yes?", answers=["yes", "no"]) for one in (image, picture, image.float() / 255)]
    assert asked[0] == asked[1] == pytest.approx(asked[2])


def test_sizes_and_answers_are_what_they_must_be(model: Model) -> None:
    for size in (64, (64,), "64x64", (64.0, 64.0), (0, 64)):
        with pytest.raises(UserError, match=r"size=.*give \(height, width\)"):
            model.draw("a red circle", size=size)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"answers=\[\]: give at least two"):
        model.ask(torch.zeros(3, 64, 64), "is there a red circle?", answers=[])
