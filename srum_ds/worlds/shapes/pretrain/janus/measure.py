"""Measures a tiny Janus against the checker: how well it draws, how well it judges its own pictures.

    python -m srum_ds.worlds.shapes.pretrain.janus.measure --model srum_ds/assets/tiny_janus --split validation

For each guidance and temperature: exact success by category, the spread of it over samples of a prompt, AUC of the
whole-picture score against exact success by category, accuracy of crop questions, best of K by the model's own score
and by the checker. The model is read by the library's own loader, in float32.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import JanusForConditionalGeneration, PreTrainedTokenizerFast

from srum_ds.common import seeds
from srum_ds.evaluation.statistics import auc
from srum_ds.prompts.reader import PromptReader
from srum_ds.rewards.regions import select
from srum_ds.rewards.regions.components import component_candidates
from srum_ds.types import Prompt, Samples
from srum_ds.worlds.shapes.checker import check
from srum_ds.worlds.shapes.pretrain.janus.draw import draw_codes
from srum_ds.worlds.shapes.pretrain.janus.model import Janus, answer_logits
from srum_ds.worlds.shapes.pretrain.janus.prompting import Wording, pixel_values
from srum_ds.worlds.shapes.pretrain.janus.vq import decode
from srum_ds.worlds.shapes.pretrain.measure import by_kind, crop_answers, whole_scores
from srum_ds.worlds.shapes.vocabulary import KINDS

BATCH = 240


class Bare:
    """The model as the measurements use it, without an adapter: it draws, and it answers."""

    def __init__(self, model: Janus, wording: Wording) -> None:
        self.model, self.wording = model, wording

    @classmethod
    def load(cls, folder: Path) -> Bare:
        """A checkpoint folder in the library's layout, in float32."""
        model: Janus = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        return cls(model.eval(), Wording(PreTrainedTokenizerFast.from_pretrained(folder)))

    def draw(
        self, prompts: Sequence[Prompt], guidance: float, temperature: float, seed: int, sample: int
    ) -> tuple[Tensor, Tensor]:
        """(codes [N, T], pictures [N, 3, H, W] in [0, 1]), one a prompt, by the prompts' names."""
        count = self.model.config.vq_config.num_patches**2
        codes, images = [], []
        for start in range(0, len(prompts), BATCH):
            part = prompts[start : start + BATCH]
            uniform = torch.stack([seeds.uniform((count,), "measure", seed, p.id, sample) for p in part]).double()
            drawn = draw_codes(self.model, self.wording, [p.text for p in part], guidance, temperature, uniform)
            codes.append(drawn)
            images += [decode(self.model.model.vqmodel, some, autocast=False) for some in drawn.split(60)]
        return torch.cat(codes), torch.cat(images)

    @torch.no_grad()
    def answer_logprobs(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        answers: Sequence[str],
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        """As the models' protocol says: log-probabilities [Q, A] of each answer's first token."""
        shown = pixel_values(torch.stack(list(images)))
        of_question = torch.tensor(image_index if image_index is not None else range(len(questions)))
        rows = self.wording.questions(questions)
        logits = answer_logits(
            self.model, self.wording, shown[of_question], rows.ids_SL[:, None], rows.length_S[:, None]
        )
        return F.log_softmax(logits[:, 0].float(), dim=-1)[:, self.wording.answers(answers)]


def measure(
    bare: Bare, prompts: Sequence[Prompt], guidance: float, temperature: float, seed: int, best_of: int
) -> dict[str, Any]:
    """All figures for one setting of the sampler."""
    begun = time.time()
    kinds = np.array([p.category for p in prompts])
    n = len(prompts)
    exact_KN, score_KN, code_rows = [], [], []
    for sample in range(best_of):
        codes, images = bare.draw(prompts, guidance, temperature, seed, sample)
        samples = Samples(
            tuple(prompts), torch.arange(n), torch.zeros(n), images, codes[..., None].float(), bare_grid(codes)
        )
        checks = [check(p, i) for p, i in zip(prompts, images, strict=True)]
        exact_KN.append([c.exact for c in checks])
        score_KN.append(whole_scores(bare, samples))  # type: ignore[arg-type]
        code_rows.append(codes)
        if sample == 0:
            first, objects = samples, np.array([c.objects_exact for c in checks])
    exact, score = np.array(exact_KN), np.array(score_KN)
    regions = select(component_candidates(first.images_NCHW), max_count=6, min_area=0.003, pad=0.03)
    crop_score, crop_truth = crop_answers(bare, first, regions, seed)  # type: ignore[arg-type]
    spatial = np.isin(kinds, ("spatial", "complex"))
    picked = exact[score.argmax(0), np.arange(n)]
    flat_kinds = np.tile(kinds, best_of)
    share = exact.mean(0)
    figures: dict[str, Any] = {
        "guidance": guidance,
        "temperature": temperature,
        "n": n,
        "samples": best_of,
        "exact": round(float(exact.mean()), 4),
        "exact_by_category": by_kind(share, kinds),
        "objects_exact": by_kind(objects, kinds),
        "relation_given_objects": round(float(exact[0][spatial & objects].mean()), 4),
        "judge_auc": round(auc(score.ravel(), exact.ravel()), 4),
        "judge_auc_by_category": {
            k: round(auc(score.ravel()[flat_kinds == k], exact.ravel()[flat_kinds == k]), 4) for k in KINDS
        },
        "judge_accuracy": round(float(((score > 0) == exact).mean()), 4),
        "crop_accuracy": round(float(((crop_score > 0) == crop_truth).mean()), 4),
        "crop_auc": round(auc(crop_score, crop_truth), 4),
        "crop_questions": len(crop_truth),
        "mixed_prompts": round(float(((share > 0) & (share < 1)).mean()), 4),
        f"best_of_{best_of}": round(float(picked.mean()), 4),
        f"best_of_{best_of}_by_category": by_kind(picked, kinds),
        "oracle": round(float(exact.any(0).mean()), 4),
        "seconds": round(time.time() - begun, 1),
    }
    if best_of > 1:
        figures["codes_that_differ"] = round(float((code_rows[0] != code_rows[1]).float().mean()), 4)
        centred = np.concatenate([_within(score[:, kinds == k], exact[:, kinds == k]) for k in KINDS])
        figures["auc_within_prompts"] = round(float(np.nanmean(centred)), 4)
    return figures


def bare_grid(codes_NT: Tensor) -> tuple[int, int]:
    """Rows and columns of codes."""
    side = round(codes_NT.shape[1] ** 0.5)
    return side, side


def _within(score_KN: np.ndarray, exact_KN: np.ndarray) -> np.ndarray:
    """AUC among the samples of each prompt; NaN where all are right, or all wrong."""
    return np.array([auc(score_KN[:, n], exact_KN[:, n]) for n in range(score_KN.shape[1])])


def save_grid(bare: Bare, prompts: Sequence[Prompt], guidance: float, temperature: float, path: Path) -> None:
    """A PNG with 8 samples in a row, a prompt a row, three times enlarged."""
    rows = []
    for sample in range(8):
        _, images = bare.draw(prompts, guidance, temperature, 0, sample)
        rows.append(F.pad(images, (1, 1, 1, 1), value=0.4))
    sheet = torch.cat(rows, dim=3)
    sheet = torch.cat(list(sheet), dim=1)
    pixels = (sheet * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(path)


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("srum_ds/assets/tiny_janus"))
    parser.add_argument("--shards", type=Path, default=Path("data_shards/shapes"))
    parser.add_argument("--split", default="validation")
    parser.add_argument("--prompts", type=int, default=480)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0])
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0])
    parser.add_argument("--best-of", type=int, default=1)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--grid", type=Path, help="also a PNG of 12 prompts x 8 samples at the first setting")
    args = parser.parse_args()
    bare = Bare.load(args.model)
    reader = PromptReader(args.shards, args.split)
    prompts = [reader[i] for i in range(min(args.prompts, len(reader)))]
    rows = []
    for guidance in args.guidance:
        for temperature in args.temperature:
            rows.append(measure(bare, prompts, guidance, temperature, args.seed, args.best_of))
            print(json.dumps(rows[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"split": args.split, "seed": args.seed, "rows": rows}, indent=2) + "\n")
    if args.grid:
        save_grid(bare, prompts[:12], args.guidance[0], args.temperature[0], args.grid)


if __name__ == "__main__":
    main()
