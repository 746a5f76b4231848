"""The shipped model: small, whole, and at home in its world."""

from __future__ import annotations

from pathlib import Path

from srum_ds.models.bagel.adapter import load_bagel
from srum_ds.models.flow import FlowSampling
from srum_ds.prompts.reader import PromptReader
from srum_ds.worlds.shapes.checker import check
from srum_ds.worlds.shapes.pretrain.tokenizer import write_tokenizer
from srum_ds.worlds.shapes.questions import crop_question, match_question
from srum_ds.worlds.shapes.render import render_scenes
from srum_ds.worlds.shapes.variation import alter_prompt
from srum_ds.worlds.shapes.vocabulary import WORDS
from srum_ds.worlds.shapes.world import ShapePrompt, random_scene
from tests.support.paths import ROOT

MODEL = ROOT / "srum_ds/assets/tiny_bagel"


def test_the_folder_is_small_and_its_tokenizer_can_be_made_again(tmp_path: Path) -> None:
    assert sum(path.stat().st_size for path in MODEL.glob("*.safetensors")) <= 16_000_000
    write_tokenizer(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / name).read_bytes() == (MODEL / name).read_bytes()


def test_every_word_of_the_world_is_one_token() -> None:
    tokenizer = load_bagel(MODEL).reader.tokenizer
    assert all(len(tokenizer.encode(" " + word)) == 1 for word in WORDS if word != "?")


def test_it_draws_held_out_prompts_better_than_chance_and_judges_rendered_truth() -> None:
    import random

    model = load_bagel(MODEL)
    reader = PromptReader(ROOT / "data_shards/shapes", "validation")
    prompts = [reader[i] for i in range(60)]
    sampling = FlowSampling(11, 2.0, 1.5, 1.0, (0.0, 1.0), "global", 0.0)
    _, images = model.generate(prompts, [("test", p.id) for p in prompts], (4, 4), sampling)
    exact = [check(p, i).exact for p, i in zip(prompts, images, strict=True)]
    assert sum(exact) >= 18

    rng = random.Random(0)
    # The split knows one shape prompt only: nothing to alter it into.
    shapes = [ShapePrompt.from_meta(p.meta) for p in prompts if p.category != "shape"]
    pictures = list(render_scenes([random_scene(rng, s, train=False) for s in shapes]))
    true = [match_question(s.text()) for s in shapes]
    false = [match_question(alter_prompt(rng, s, split="validation").text()) for s in shapes]
    yes_no = ("yes", "no")
    right = model.answer_logprobs(pictures, true, yes_no)[:, 0] > model.answer_logprobs(pictures, false, yes_no)[:, 0]
    assert float(right.float().mean()) >= 0.8


def test_it_knows_a_crop_from_another(tmp_path: Path) -> None:
    import random

    model = load_bagel(MODEL)
    rng = random.Random(1)
    reader = PromptReader(ROOT / "data_shards/shapes", "validation")
    shapes = [ShapePrompt.from_meta(p.meta) for p in (reader[i] for i in range(60))]
    scenes = [random_scene(rng, s, train=False) for s in shapes]
    pictures = render_scenes(scenes)
    crops, truths, falses = [], [], []
    for picture, scene in zip(pictures, scenes, strict=True):
        thing = scene[0]
        x, y = int(thing.x) - 8, int(thing.y) - 8
        crops.append(picture[:, max(0, y) : y + 16, max(0, x) : x + 16])
        truths.append(crop_question(thing.slot().phrase()))
        other = next(c for c in ("red", "green", "blue") if c != thing.color)
        falses.append(crop_question(f"a {thing.texture} {other} {thing.shape}"))
    yes_no = ("yes", "no")
    right = model.answer_logprobs(crops, truths, yes_no)[:, 0] > model.answer_logprobs(crops, falses, yes_no)[:, 0]
    assert float(right.float().mean()) >= 0.9
