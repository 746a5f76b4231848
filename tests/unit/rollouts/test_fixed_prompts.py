"""The fixed prompts: what a showing keeps, that it changes no randomness, and that damaged records are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from srum_ds.common.errors import UserError
from srum_ds.config import Config, load_config
from srum_ds.engine.plain import PlainEngine
from srum_ds.models import load_model
from srum_ds.monitoring.writer import Monitor
from srum_ds.rollouts.fixed_prompts import show_fixed_prompts
from srum_ds.rollouts.fixed_records import (
    SeenBox,
    SeenImage,
    Showing,
    read_showing,
    read_showings,
    write_showing,
)
from tests.support.paths import MODEL
from tests.support.runs import collector_of, short_run, write_prompts
from tests.support.toy import settings

IMAGE = SeenImage(
    id="p0",
    text="a red circle <b>",
    category="color",
    phrases=("a red circle",),
    score=-0.25,
    reply="yes 0.375, no 0.625",
    missing=0.5,
    boxes=(SeenBox((0.25, 0.0, 0.5, 1.0), 0.5, "a red circle", "yes"), SeenBox((0.0, 0.0, 0.1, 0.1), None)),
    map=((0.5, -0.5), (1.25, 0.0)),
)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path, torch.Tensor, torch.Tensor]:
    """A run's folder after two showings by the untrained model, and torch's random state before and after them."""
    folder = tmp_path_factory.mktemp("shown")
    recipe, *words = short_run(write_prompts(folder / "shards", 3), folder / "run")
    cfg = load_config(recipe, words)
    model = load_model(MODEL)
    engine: Any = PlainEngine.create(model.module, set(model.trainable("generation")), **settings())
    engine.add_weights("ema")
    collector = collector_of(cfg, model)
    state = torch.get_rng_state()
    with Monitor(folder / "run", tensorboard=False, progress=False) as monitor:
        for step in (0, 20):
            show_fixed_prompts(collector, engine, monitor, step)
    return cfg, folder / "run", state, torch.get_rng_state()


def test_a_showing_keeps_what_was_drawn_and_said(shown: tuple[Config, Path, torch.Tensor, torch.Tensor]) -> None:
    cfg, run, before, after = shown
    assert torch.equal(before, after)
    first, second = read_showings(run)
    assert (first.number, second.number) == (0, 20)
    assert first.grid == run / "samples" / "fixed_000000.png" and first.grid.is_file()
    showing = first.showing
    assert showing is not None and showing.step == 0 and showing.seed == cfg.run.seed and showing.weights == "ema"
    assert [image.id for image in showing.images] == ["train-0", "train-1", "train-2"]
    for image in showing.images:
        assert image.text and image.phrases and image.score is not None and -1 <= image.score <= 1
        assert image.reply, "the judge's words about the whole image are kept"
        # 64 pixels are 8 x 12 or so tokens of this model; every row is as long.
        assert len(image.map) > 1 and len({len(row) for row in image.map}) == 1
        with Image.open(run / "samples" / image.picture) as picture:
            assert picture.size == (64, 64) and picture.format == "PNG"
    boxes = [box for image in showing.images for box in image.boxes]
    assert boxes and all(0 <= box.box[0] < box.box[2] <= 1 for box in boxes)
    assert {box.phrase for box in boxes} - {""} <= {phrase for image in showing.images for phrase in image.phrases}
    # The same weights draw the same images, whenever they are shown.
    assert second.showing == replace(
        showing,
        step=20,
        images=tuple(replace(i, picture=i.picture.replace("000000", "000020")) for i in showing.images),
    )


def test_the_map_is_the_reward_at_each_token(shown: tuple[Config, Path, torch.Tensor, torch.Tensor]) -> None:
    """Outside all boxes it is the whole image's score less what is missing; inside one its score is added."""
    cfg, run, _, _ = shown
    showing = read_showings(run)[0].showing
    assert showing is not None and showing.map_kind == "reward"
    for image in showing.images:
        assert image.score is not None and image.missing is not None
        whole = image.score - cfg.reward.missing_penalty * image.missing
        values = [value for row in image.map for value in row]
        scores = [box.score for box in image.boxes if box.score is not None]
        assert min(values) >= whole + min([0.0, *scores]) - 0.02
        assert max(values) <= whole + max([0.0, *scores]) + 0.02
        assert any(abs(value - whole) > 0.05 for value in values) == any(abs(score) > 0.5 for score in scores)


def test_large_pictures_are_kept_small(tmp_path: Path) -> None:
    showing = Showing(3, "ema", 0, "logprob", "reward", (IMAGE, IMAGE))
    path = write_showing(tmp_path, showing, [torch.zeros(3, 512, 1024), torch.ones(3, 32, 32)])
    found = read_showing(path)
    assert [image.picture for image in found.images] == ["fixed_000003/00.jpg", "fixed_000003/01.png"]
    with Image.open(tmp_path / "samples" / found.images[0].picture) as picture:
        assert picture.size == (384, 192)
    assert replace(found.images[0], picture="") == IMAGE


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"format": 1', '"format": 99'),
        lambda text: text.replace('"score": 0.5', '"score": "high"'),
        lambda text: text.replace("fixed_000003/00.png", "../../../etc/passwd"),
        lambda text: text.replace("[0.25, 0.0, 0.5, 1.0]", "[0.25]"),
        lambda text: text.replace("[0.5, -0.5]", "[0.5]"),
        lambda text: "\x00",
    ],
)
def test_a_damaged_record_is_named_and_its_grid_still_shown(tmp_path: Path, damage: Any) -> None:
    path = write_showing(tmp_path, Showing(3, "ema", 0, "logprob", "reward", (IMAGE,)), [torch.zeros(3, 32, 32)])
    grid = path.with_suffix(".png")
    Image.new("RGB", (4, 4)).save(grid)
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))
    with pytest.raises(UserError, match="fixed_000003.json"):
        read_showing(path)
    (shown,) = read_showings(tmp_path)
    assert shown.showing is None and shown.grid == grid and "fixed_000003.json" in shown.problem


def test_a_former_run_has_grids_alone(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    for name in ("fixed_000000.png", "fixed_000020.png", "eval_grid.png", "fixed_x.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / "samples" / name)
    assert [(s.number, s.showing, s.problem) for s in read_showings(tmp_path)] == [(0, None, ""), (20, None, "")]
    assert read_showings(tmp_path / "nowhere") == []


def test_a_record_is_json_of_one_line(tmp_path: Path) -> None:
    path = write_showing(tmp_path, Showing(0, "live", 1, "logprob", "weights", (IMAGE,)), [torch.zeros(3, 8, 8)])
    content = json.loads(path.read_text())
    assert content["format"] == 1 and content["images"][0]["boxes"][1]["score"] is None
    assert path.read_text().count("\n") == 1
