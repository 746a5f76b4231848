"""Loads a design into ZeRO-3 shards and trains a step, for tests/integration/test_designs.py, under the launcher.

    deepspeed --num_gpus 2 tests/integration/design_worker.py FOLDER

FOLDER holds ``model`` and ``settings.json`` ({"kind": ..., "words": [...], "modes": [...]}). Rank 0 writes what was
found to FOLDER/found.json and the weights after a step in each mode to FOLDER/<mode>.safetensors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from srum_ds.common.seeds import Key, SampleKeys
from srum_ds.models.protocol import UnifiedModel, ViewSettings
from srum_ds.types import Prompt, Samples
from tests.support.paths import ROOT

PROMPTS = tuple(Prompt(f"p{number}", text) for number, text in enumerate(("a red circle", "a star", "two dogs", "a")))
VIEWS = ViewSettings(copies=2, time_distribution="logit_normal", time_shift=1.0, prompt_dropout=0.3)
QUESTIONS = ("Is it red?", "Is there a dog?", "yes or no?", "What is it?")
SETTINGS: dict[str, Any] = {
    "lr": 1e-3,
    "betas": (0.9, 0.99),
    "eps": 1e-3,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "warmup_steps": 0,
    "precision": "fp32",
    "seed": 1,
}
"""Adam's eps is large, so that a weight moves with its gradient: with a small one rounding decides its sign."""


def keys(prompts: tuple[Prompt, ...]) -> list[Key]:
    return [("rollout", prompt.name, 0) for prompt in prompts]


def prepare(model: UnifiedModel, mode: str) -> set[str]:
    """The names that ``mode`` trains, with the adapter where it is one."""
    if mode == "lora":
        model.add_lora(4, 8.0, (), 0)
    return set(model.trainable(mode))


def train_step(engine: Any, model: UnifiedModel, sampling: Any, rank: int, ranks: int) -> dict[str, Tensor | float]:
    """One step of the mean energy on this rank's share of the prompts; what was drawn, said and measured."""
    mine = PROMPTS[rank * len(PROMPTS) // ranks : (rank + 1) * len(PROMPTS) // ranks]
    questions = QUESTIONS[rank * len(PROMPTS) // ranks : (rank + 1) * len(PROMPTS) // ranks]
    grid = model.grid(*model.default_size())
    with engine.gathered():
        tokens, images = model.generate(mine, keys(mine), grid, sampling)
        said = model.answer_logprobs(list(images), questions, ("yes", "no"))
    with engine.layer_by_layer():
        # Where no rank can hold the module whole, its parts are fetched as they run.
        in_layers, _ = model.generate(mine, keys(mine), grid, sampling)
    number = torch.arange(len(mine))
    samples = Samples(mine, number, torch.zeros_like(number), images, tokens, grid)
    view = model.views(samples, VIEWS, SampleKeys(0, 0, tuple((prompt.name, 0) for prompt in mine)))
    count = view.counts_NMT.double().sum()
    engine.all_reduce(count)
    prediction = model.predict(engine, mine, view, grid)
    energy_BT = model.matching.energy(prediction.flatten(0, 1), view.target.flatten(0, 1))
    loss = torch.where(view.counts_NMT.flatten(0, 1), energy_BT, 0.0).sum()
    engine.backward(loss, float(count), 1)
    total = loss.detach().double() / count
    engine.all_reduce(total)
    same = torch.equal(in_layers, tokens)
    seen = {"loss": float(total), "norm": engine.step(), "in_layers": float(same)}
    return {**seen, "tokens": tokens, "images": images, "said": said}


def main(folder: Path) -> None:
    import torch.distributed as dist

    from srum_ds.engine import Engine, leave_distributed, read_ds_config, shard_loader, start_distributed
    from srum_ds.models import family_of, load_model

    torch.set_num_threads(1)
    start_distributed(3)
    settings = json.loads((folder / "settings.json").read_text())
    sampling = family_of(folder / "model").sampling_type(**settings["sampling"])
    ds_config = read_ds_config(ROOT / "ds_configs/cpu.json")
    found: dict[str, Any] = {}
    for mode in settings["modes"]:
        model = load_model(folder / "model", materialise=shard_loader(ds_config, "fp32"))
        trained = prepare(model, mode)
        stored = model.stored()
        engine = Engine.create(
            model.module, trained, ds_config, leaf_modules=model.shard_units(), stored=stored, **SETTINGS
        )
        seen = train_step(engine, model, sampling, engine.rank, engine.world_size)
        parts: list[Any] = [None] * engine.world_size
        dist.all_gather_object(parts, seen)
        weights = {name: value.clone() for name, value in engine.consolidate() if value is not None}
        if engine.rank == 0:
            save_file(weights, folder / f"{mode}.safetensors")
            joined = {name: torch.cat([part[name] for part in parts]) for name in ("tokens", "images", "said")}
            save_file(
                {name: tensor.contiguous() for name, tensor in joined.items()}, folder / f"{mode}_seen.safetensors"
            )
            found[mode] = {name: [part[name] for part in parts] for name in ("loss", "norm", "in_layers")}
        del engine, model
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
    leave_distributed()


if __name__ == "__main__":
    main(Path([a for a in sys.argv[1:] if not a.startswith("--local_rank")][0]))
