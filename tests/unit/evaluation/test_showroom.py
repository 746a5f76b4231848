"""The work behind `srum-ds show`, without its page: drawing, judging, overlays, questions, and what is refused."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from srum_ds.commands.main import main
from srum_ds.commands.show_page import build, shown, table
from srum_ds.common.errors import UserError
from srum_ds.config import load_config, save_config
from srum_ds.evaluation.showroom import (
    MAP,
    NOTHING,
    OVERLAYS,
    REGIONS,
    Drawing,
    Showroom,
    compared,
    open_showroom,
    said_rows,
)
from srum_ds.rollouts.fixed_records import SeenBox, SeenImage
from tests.support.paths import MODEL
from tests.support.runs import short_run

SEEN = SeenImage(
    id="x",
    text="a red circle",
    score=0.25,
    reply="yes 0.6, no 0.4",
    missing=0.5,
    boxes=(SeenBox((0.0, 0.0, 0.5, 0.5), None, "a <b>", "?"), SeenBox((0.5, 0.5, 1.0, 1.0), -1.0)),
    map=((1.0, -1.0), (0.0, 0.0)),
)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Showroom:
    """A finished run whose trained model is the base: both sides must draw the same."""
    folder = tmp_path_factory.mktemp("room")
    recipe, *words = short_run(folder / "shards", folder / "run", "eval.num_timesteps=3")
    save_config(load_config(recipe, words), folder / "run" / "config.yaml")
    shutil.copytree(MODEL, folder / "run" / "export")
    return open_showroom(folder / "run")


def test_both_sides_draw_from_the_same_noise_and_are_judged(room: Showroom) -> None:
    base, trained = room.draw("a red  circle", seed=3, objects="a red circle")
    assert (base.side, trained.side) == ("base", "trained")
    assert torch.equal(base.image_CHW, trained.image_CHW) and base.image_CHW.shape == (3, 64, 64)
    assert base.seen == trained.seen and base.seen.text == "a red circle" and base.seen.phrases == ("a red circle",)
    assert base.seen.score is not None and base.seen.reply and base.seen.map
    assert compared([base, trained]) == f"The judge scores both {base.seen.score:+.2f}."
    (other, _) = room.draw("a red circle", seed=4)
    assert not torch.equal(other.image_CHW, base.image_CHW), "another seed draws another image"
    (coarser, _) = room.draw("a red circle", seed=3, changed={"num_timesteps": 2})
    assert not torch.equal(coarser.image_CHW, base.image_CHW)
    assert room.offered == {"num_timesteps": 3, "text_scale": 1.25}


def test_questions_are_answered_about_any_picture(room: Showroom) -> None:
    picture = Image.new("RGB", (80, 40), (255, 0, 0))
    ((said, share),) = room.ask("trained", picture, "is there a red circle?", tokens=4)
    assert said and share is None
    (first, second) = room.ask("base", picture, "is there a red circle?", "yes, no")
    assert {first[0], second[0]} == {"yes", "no"} and 1 >= first[1] > second[1] > 0  # type: ignore[operator]
    with pytest.raises(UserError, match="One answer is no choice"):
        room.ask("base", picture, "is there a red circle?", "yes,")
    with pytest.raises(UserError, match="question is empty"):
        room.ask("base", Image.new("RGB", (8, 8)), "  ")


def test_wrong_prompts_and_settings_are_told(room: Showroom) -> None:
    with pytest.raises(UserError, match="prompt is empty"):
        room.draw(" \n")
    with pytest.raises(UserError, match="num_timesteps"):
        room.draw("a circle", changed={"num_timesteps": "many"})
    with pytest.raises(UserError, match="no character"):
        room.draw("a \ud800 circle")


def test_a_bare_model_is_shown_alone(tmp_path: Path) -> None:
    room = open_showroom(MODEL)
    (only,) = replace(room, sampling=replace(room.sampling, num_timesteps=2)).draw("a blue square")
    assert only.side == "model" and only.seen.boxes == () and only.seen.score is not None
    assert compared([only]) == ""
    with pytest.raises(UserError, match="no such folder"):
        open_showroom(tmp_path / "nowhere")


def test_a_run_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    recipe, *words = short_run(tmp_path / "shards", tmp_path)
    save_config(load_config(recipe, words), tmp_path / "config.yaml")
    with pytest.raises(UserError, match="export: missing; the run has not finished"):
        open_showroom(tmp_path)


def test_overlays() -> None:
    drawing = Drawing("base", torch.full((3, 64, 64), 128, dtype=torch.uint8), SEEN)
    plain, boxes, tinted = (np.asarray(drawing.picture(kind)).astype(int) for kind in (NOTHING, REGIONS, MAP))
    assert plain.shape == boxes.shape == tinted.shape == (512, 512, 3) and (plain == 128).all()
    assert (boxes[0, 300] == 128).all() and (boxes[0, 200] != 128).any(), "the first region's edge"
    # Blue where it is 1, orange where it is -1, nothing at 0.
    assert tinted[10, 10, 2] > 180 > tinted[10, 10, 0] and tinted[10, 500, 0] > 180 > tinted[10, 500, 2]
    assert (tinted[400] == 128).all()
    assert OVERLAYS == (REGIONS, MAP, NOTHING)


def test_what_the_judge_said_in_rows() -> None:
    assert said_rows(SEEN) == [
        ("whole image", "+0.25", "yes 0.6, no 0.4"),
        ("a <b>", "no score", "?"),
        ("a region without a phrase", "-1.00", ""),
        ("asked for, but shown by no region", "50%", ""),
    ]
    better = [
        Drawing("base", torch.zeros(3, 8, 8), SEEN),
        Drawing("trained", torch.zeros(3, 8, 8), replace(SEEN, score=0.5)),
    ]
    near = [
        Drawing("base", torch.zeros(3, 8, 8), SEEN),
        Drawing("trained", torch.zeros(3, 8, 8), replace(SEEN, score=0.251)),
    ]
    assert compared(near) == "The judge scores both +0.25."
    assert compared(better).startswith("The judge prefers trained: +0.50 against +0.25.")


def test_what_is_said_on_the_page_is_text(room: Showroom) -> None:
    found = table(Drawing("base", torch.zeros(3, 8, 8), SEEN))
    assert "<td>a &lt;b&gt;</td><td>no score</td><td>?</td>" in found and found.count("<tr>") == 5
    pictures = shown([Drawing("base", torch.zeros(3, 8, 8, dtype=torch.uint8), SEEN)] * 2, NOTHING)
    assert [picture.size for picture in pictures] == [(512, 512)] * 2


def test_the_page_has_a_picture_for_each_side(room: Showroom) -> None:
    pytest.importorskip("gradio", reason="the extra `show` is not installed")
    parts = [part["props"].get("label") for part in build(room).get_config_file()["components"]]
    assert {"Prompt", "Seed", "base", "trained", "Sampler: num_timesteps", "Question", "Answered by"} <= set(parts)


def test_without_gradio_its_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("srum_ds.commands.show.find_spec", lambda name: None if name == "gradio" else find(name))
    assert main(["show", str(tmp_path)]) == 2
    assert "pip install 'srum-ds[show]'" in capsys.readouterr().err
    assert main(["show", str(tmp_path), "--port", "70000"]) == 2
    assert "--port 70000" in capsys.readouterr().err
