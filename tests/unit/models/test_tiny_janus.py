"""The embedded Janus: the library opens it, and it draws what the checker of its world recognises."""

from __future__ import annotations

from transformers import JanusForConditionalGeneration, JanusProcessor

from srum_ds.models import load_model
from srum_ds.models.janus.sampling import CodeSampling
from srum_ds.prompts.reader import PromptReader
from srum_ds.worlds.shapes.checker import check
from tests.support.paths import ROOT

FOLDER = ROOT / "srum_ds/assets/tiny_janus"


def test_the_library_opens_it() -> None:
    model = JanusForConditionalGeneration.from_pretrained(FOLDER)
    assert model.model.vqmodel.quantize.embedding.weight.shape[0] == 193
    assert JanusProcessor.from_pretrained(FOLDER).num_image_tokens == 64


def test_it_draws_objects_that_were_asked_for() -> None:
    """Of validation prompts it draws about 4 in 10 exactly; of these forty at least a quarter."""
    model = load_model(FOLDER)
    reader = PromptReader(ROOT / "data_shards/shapes", "validation")
    prompts = [reader[number] for number in range(0, 320, 8)]
    keys = [("test", prompt.name) for prompt in prompts]
    codes, images = model.generate(prompts, keys, model.grid(64, 64), CodeSampling(guidance=1.5))
    assert codes.shape == (40, 64) and images.shape == (40, 3, 64, 64)
    exact = [check(prompt, image).exact for prompt, image in zip(prompts, images, strict=True)]
    assert sum(exact) >= 10
