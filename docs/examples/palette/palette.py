"""A design of one's own: it paints 4 x 4 cells, each in one of V colours, and answers by the colours that it sees."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from srum_ds.common import seeds
from srum_ds.common.errors import UserError
from srum_ds.common.seeds import SampleKeys
from srum_ds.models.library import FolderWeights, PlainModel, meta_module
from srum_ds.models.matching import CategoricalTokens, code_logprobs
from srum_ds.models.protocol import Forward, ModelFamily, ViewSettings
from srum_ds.types import Prompt, Samples, TokenSpec, TrainView

SIDE, CELL = 4, 8


@dataclass(frozen=True)
class PaletteSampling:
    """Its sampler has no settings."""


class Palette(nn.Module):
    def __init__(self, colours: int, width: int) -> None:
        super().__init__()
        self.prompt, self.paint = nn.Linear(256, width), nn.Linear(width, SIDE * SIDE * colours)
        self.text, self.look, self.say = nn.Linear(256, width), nn.Linear(3 * SIDE * SIDE, width), nn.Linear(width, 128)

    def logits(self, letters_B256: Tensor) -> Any:
        return self.paint(self.prompt(letters_B256).tanh()).view(len(letters_B256), SIDE * SIDE, -1)

    def forward(self, letters_B256: Tensor, code_BT: Tensor) -> Tensor:  # the pass that trains: log p of the codes
        return code_logprobs(self.logits(letters_B256), code_BT)

    def next_letter(self, image: Tensor, text: str) -> Any:  # log p [128] of what follows a text about an image
        cells = nn.functional.adaptive_avg_pool2d(image, SIDE).flatten()
        return self.say((self.look(8 * cells) + self.text(letters([text]))[0]).tanh()).log_softmax(-1)


def letters(texts: Sequence[str]) -> Tensor:  # [B, 256]: how often each byte stands in a text
    return torch.stack([torch.bincount(torch.tensor(list(t.encode() or b" ")), minlength=256) for t in texts]).float()


class PaletteModel(PlainModel):
    def __init__(self, folder: Path, dtype: torch.dtype, device: Any, materialise: Any, only_judges: bool) -> None:
        config = json.loads((folder / "palette.json").read_text())
        self.module = meta_module(lambda: Palette(config["colours"], config["width"]))
        self.token_spec, self.matching = TokenSpec("discrete", config["colours"]), CategoricalTokens()
        trained, judged_by = {"generation": ("prompt.", "paint.")}, ("text.", "look.", "say.")
        super().__init__(FolderWeights(folder), self.module, trained, judged_by, dtype, device, materialise)

    @torch.no_grad()
    def said(self, images: Any, texts: Sequence[str], at: Any) -> list[Tensor]:
        about = [images[place] for place in (at if at is not None else range(len(texts)))]
        return [self.module.next_letter(image, text) for image, text in zip(about, texts, strict=True)]

    def answer_logprobs(self, images: Any, questions: Any, answers: Any, image_index: Any = None) -> Tensor:
        said = self.said(images, questions, image_index)
        return torch.stack(said)[:, [ord(a[0]) for a in answers]] if said else torch.zeros(0, len(answers))

    def answer(self, images: Any, questions: Any, max_new_tokens: int, image_index: Any = None, *sampled: Any) -> Any:
        if sampled[:1] > (0.0,):
            raise UserError("palette says what is likeliest: it takes no temperature")
        texts = list(questions)
        for _ in range(max_new_tokens):
            said = self.said(images, texts, image_index)
            texts = [text + chr(int(next_L.argmax())) for text, next_L in zip(texts, said, strict=True)]
        return [text[len(question) :] for text, question in zip(texts, questions, strict=True)]

    def text_logprob(self, images: Any, texts: Any, questions: Any = None, image_index: Any = None) -> Tensor:
        first = self.said(images, list(questions or [""] * len(texts)), image_index)
        return torch.stack([letter[[ord(c) for c in text]].mean() for letter, text in zip(first, texts, strict=True)])

    def default_size(self, edit: Tensor | None = None) -> tuple[int, int]:
        return SIDE * CELL, SIDE * CELL

    def grid(self, height: int, width: int) -> tuple[int, int]:
        if (height, width) != self.default_size():
            raise UserError(f"palette draws {self.default_size()} pixels, not {(height, width)}")
        return SIDE, SIDE

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        if empty := [prompt.id for prompt in prompts if not prompt.text.strip()]:
            raise UserError(f"prompt {empty[0]} is empty")

    def generate(self, prompts: Any, keys: Any, grid: Any, sampling: Any, edits: Any = None, plans: Any = None) -> Any:
        if edits or plans:
            raise UserError("palette neither edits nor plans")
        logits_NTV = self.module.logits(letters([prompt.text for prompt in prompts]))
        u_NT1 = torch.stack([seeds.uniform((SIDE * SIDE, 1), *key, "code") for key in keys])
        code_NT = (logits_NTV.softmax(-1).cumsum(-1) <= u_NT1).sum(-1).clamp(max=self.token_spec.size - 1)
        colour_V3 = seeds.uniform((self.token_spec.size, 3), "palette").mul(255).round() / 255
        cells_N3hw = colour_V3[code_NT].unflatten(1, grid).permute(0, 3, 1, 2)
        return code_NT, nn.functional.interpolate(cells_N3hw, scale_factor=CELL)

    def views(self, samples: Samples, settings: ViewSettings, keys: SampleKeys) -> TrainView:
        code_NMT = samples.tokens[:, None].expand(-1, settings.copies, -1)
        return TrainView({"code": code_NMT}, code_NMT, torch.ones_like(code_NMT, dtype=torch.bool))

    def predict(self, forward: Forward, prompts: Sequence[Prompt], view: TrainView, grid: Any) -> Any:
        letters_B256 = letters([prompt.text for prompt in prompts]).repeat_interleave(view.target.shape[1], 0)
        return forward(letters_B256, view.inputs["code"].flatten(0, 1)).view(view.target.shape)


FAMILY = ModelFamily(
    kind="palette",
    modes=("generation",),
    sampling_type=PaletteSampling,
    matches=lambda folder: (folder / "palette.json").is_file(),
    contains="palette.json and model.safetensors",
    load=cast(Any, PaletteModel),
    inspect=lambda folder: ({"kind": "palette"}, (folder / "palette.json").read_text()),
)
