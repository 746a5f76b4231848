"""How conformance sets of BAGEL are opened, and what of them a runner may see."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srum_ds.models.bagel import FAMILY
from srum_ds.models.bagel.adapter import BagelAdapter, load_bagel
from srum_ds.models.bagel.config import ImageTransform
from tests.numerics.bagel_cases import RUNNERS
from tests.numerics.conformance_set import ConformanceDesign


def load_set(checkpoint: Path, settings: Mapping[str, Any]) -> BagelAdapter:
    """The set's checkpoint with the image transforms that the set was made with."""
    model = load_bagel(checkpoint)
    given = settings.get("_global", {})
    transforms: dict[str, Any] = {
        name: ImageTransform(**given[f"{part}_image_transform"])
        for part, name in (("vae", "vae_transform"), ("vit", "vit_transform"))
        if f"{part}_image_transform" in given
    }
    model.reader.config = dataclasses.replace(model.reader.config, **transforms)
    return model


def tokenizer_problems(model: BagelAdapter, settings: Mapping[str, Any]) -> list[str]:
    """What the tokenizer turns into other ids than the set says, in words."""
    problems = []
    for text, ids in settings.get("tokenizer", {}).get("pairs", []):
        found = model.reader.tokenizer.encode(text)
        if found != ids:
            problems.append(f"{text!r} becomes {found}, expected {ids}")
    special = model.module.special
    names = {"bos": "bos_token_id", "eos": "eos_token_id"}
    names |= {"image_start": "start_of_image", "image_end": "end_of_image"}
    expected = settings.get("_global", {}).get("new_token_ids", {})
    for ours, theirs in names.items():
        if expected.get(theirs, getattr(special, ours)) != getattr(special, ours):
            problems.append(f"{theirs} is {getattr(special, ours)}, expected {expected[theirs]}")
    return problems


DESIGN = ConformanceDesign(
    name="bagel",
    matches=FAMILY.matches,
    load=load_set,
    inputs={
        "vae": r"image|eps|z",
        "train": r"noise|timestep_logits|latent_\d+|text_ids|text_indexes|position_ids|vae_token_indexes"
        r"|mse_loss_indexes|vit_token_indexes|vit_token_seqlens|ce_loss_indexes|ce_loss_weights|label_ids",
        "und": r"image_uint8|image_rope_ids|text_ids|text_rope_ids",
        "t2i": r"init_noise|cfg_rope_ids|packed_rope_ids|text_ids|vae_position_ids",
        "edit_text": r"(?!)",
        "edit_image": r"init_noise",
        "srum": r"bad_latents|good_latents|noise|text_ids|position_ids|timestep_logits",
        "position_ids": r"(?!)",
    },
    runners=RUNNERS,
    problems=tokenizer_problems,
    exact=r"vit_patches|resized_uint8|tokens",
    loose={"edit_image/image_uint8": 1.0},
    settings=("_global", "tokenizer"),
)
