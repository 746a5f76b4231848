"""The judge of a model with LoRA is the untrained one."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch

from srum_ds.common.clock import Clock
from srum_ds.config import load_config
from srum_ds.models import load_model
from srum_ds.prompts.reader import PromptReader
from tests.support.paths import MODEL, RECIPE
from tests.support.runs import collector_of, short_run, write_prompts


def test_scores_are_those_of_the_untrained_model(tmp_path: Path) -> None:
    """What the collector hands to the loss, with an adapter that is far from zero on both experts."""
    # An adapter on both experts: then the judge is safe only because LoRA is off.
    lora = ["model.trains=lora", "lora.rank=4", 'lora.targets=["q_proj","mlp.up_proj","*_moe_gen"]']
    shards = write_prompts(tmp_path, 8)
    _, *words = short_run(shards, tmp_path, *lora)
    cfg = load_config(RECIPE, words)
    model, base = load_model(MODEL), load_model(MODEL)
    model.add_lora(4, 32.0, cfg.lora.targets, 0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.module.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    collector = collector_of(cfg, model)
    prompts = PromptReader(shards, "train").batch(0, 2, 0, 0, 1)
    with torch.no_grad():
        with ExitStack() as gathered:
            judged = collector.collect(prompts, 0, Clock(), gathered)[0]
        expected = collector.judging.scores(base, judged.samples, judged.regions)
        switched_on = collector.judging.scores(model, judged.samples, judged.regions)
    assert torch.equal(judged.scores.global_N, expected.global_N)
    assert torch.equal(judged.scores.local_R, expected.local_R)
    assert not torch.equal(judged.scores.global_N, switched_on.global_N)
