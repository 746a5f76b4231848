"""The embedded Janus: the library opens it, and it draws what the checker of its world recognises."""

from __future__ import annotations

from typing import Any

import torch
from transformers import JanusForConditionalGeneration, JanusProcessor

from srum_ds.config import load_config
from srum_ds.models import load_model
from srum_ds.models.janus.sampling import CodeSampling
from srum_ds.prompts.reader import PromptReader
from srum_ds.types import Prompt
from srum_ds.worlds.shapes.checker import check
from srum_ds.worlds.shapes.pretrain.reward import measure
from tests.support.paths import ROOT
from tests.support.tiny_janus import drawing

FOLDER = ROOT / "srum_ds/assets/tiny_janus"


def _validation(step: int) -> list[Prompt]:
    reader = PromptReader(ROOT / "data_shards/shapes", "validation")
    return [reader[number] for number in range(0, 320, step)]


def test_the_library_draws_with_it() -> None:
    """The library's own ``generate``, greedy, then its own decoder: of twelve prompts at least three exactly."""
    model = drawing(JanusForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32))
    processor = JanusProcessor.from_pretrained(FOLDER)
    exact = []
    for prompt in _validation(27):
        turn: Any = [{"role": "user", "content": [{"type": "text", "text": prompt.text}]}]
        text = processor.apply_chat_template(turn, add_generation_prompt=True)
        inputs = processor(text=[text], generation_mode="image", return_tensors="pt")
        with torch.no_grad():
            codes = model.generate(**inputs, generation_mode="image", do_sample=False)
            pixels_NHW3 = model.decode_image_tokens(codes)
        assert codes.shape == (1, processor.num_image_tokens)
        exact.append(check(prompt, ((pixels_NHW3[0].permute(2, 0, 1) + 1) / 2).clamp(0, 1)).exact)
    assert sum(exact) >= 3


def test_it_draws_objects_that_were_asked_for() -> None:
    """Of validation prompts it draws about 4 in 10 exactly; of these forty at least a quarter."""
    model = load_model(FOLDER)
    prompts = _validation(8)
    keys = [("test", prompt.name) for prompt in prompts]
    codes, images = model.generate(prompts, keys, model.grid(64, 64), CodeSampling(guidance=1.5))
    assert codes.shape == (40, 16) and images.shape == (40, 3, 64, 64)
    exact = [check(prompt, image).exact for prompt, image in zip(prompts, images, strict=True)]
    assert sum(exact) >= 10


def test_what_its_recipe_rewards_is_what_the_checker_calls_exact() -> None:
    """AUC of the image's reward on its own pictures; the answer about the whole picture alone has less."""
    found = measure(load_config(ROOT / "launch/recipes/tiny_janus.yaml"), prompts=40, samples=2, split="validation")
    assert found["pictures"] == 80 and found["auc"]["reward"] >= 0.85
