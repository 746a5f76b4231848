"""Every design with a tiny folder of random weights, for the tests that all of them pass: one entry a design."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from srum_ds.models import load_model
from tests.support.tiny_blip3o import parts_redraw, write_tiny_blip3o
from tests.support.tiny_janus import janus_redraws, write_tiny_janus
from tests.support.tiny_models import write_tiny_bagel
from tests.support.tiny_qwen_image import pipeline_redraws, write_tiny_qwen_image
from tests.support.tiny_showo import showo_redraws, write_tiny_showo


@dataclass(frozen=True)
class TinyDesign:
    """A design as the common tests need it.

    write: makes a checkpoint folder. mode: the ``model.trains`` of the tests that take one. words: settings of a recipe
    that its sampler needs. redraws: (an exported folder) -> how far what the library's own class computes from it lies
    from what the adapter does, relative; it must be tiny.
    """

    write: Callable[[Path], Path]
    mode: str
    words: tuple[str, ...] = ()
    redraws: Callable[[Path], float] | None = None


DESIGNS: dict[str, TinyDesign] = {
    "bagel": TinyDesign(write_tiny_bagel, "generation", ("rollout.num_timesteps=3",)),
    "janus": TinyDesign(write_tiny_janus, "transformer", ("rollout.sampler.guidance=3.0",), janus_redraws),
    "showo": TinyDesign(
        write_tiny_showo, "transformer", ("rollout.sampler.steps=4", "rollout.sampler.guidance=2.0"), showo_redraws
    ),
    "blip3o": TinyDesign(
        write_tiny_blip3o,
        "generation",
        ("rollout.num_timesteps=4", "rollout.text_scale=3.0", "rollout.sampler.decoder_timesteps=3"),
        parts_redraw,
    ),
    "vlm_dit": TinyDesign(
        write_tiny_qwen_image,
        "generation",
        ("rollout.num_timesteps=4", "rollout.text_scale=3.0"),
        pipeline_redraws,
    ),
}


def run_words(name: str, model: Path, shards: Path, run_dir: Path, *more: str) -> list[str]:
    """A short run of a tiny design: four prompts a step, two images of each, five steps."""
    design = DESIGNS[name]
    rows, columns = load_model(model).default_size()
    recipe = run_dir.parent / f"{run_dir.name}.yaml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(
        yaml.safe_dump(
            {
                "run": {"dir": str(run_dir)},
                "model": {"path": str(model), "trains": design.mode},
                "data": {"shards": str(shards)},
                "rollout": {
                    "prompts_per_step": 4,
                    "micro_batch_prompts": 2,
                    "images_per_prompt": 2,
                    "image_size": [rows, columns],
                },
                "judge": {"answers": ["yes", "no"], "min_mass": 0.0},
                "regions": {"kind": "grid", "grid_side": 2},
                "train": {"steps": 5, "save_every": 1, "timesteps_per_image": 2, "lr": 1e-3, "precision": "fp32"},
                "deepspeed": {"config": "ds_configs/cpu.json"},
                "log": {"tensorboard": False},
            }
        )
    )
    return [str(recipe), *design.words, *more]
