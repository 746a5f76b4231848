"""The work behind ``srum-ds show``: draw a prompt with base and trained, have both judged, ask about a picture.

Nothing here knows of the page: what is drawn and said comes back as pictures and plain records.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.seeds import derive
from srum_ds.common.texts import require_encodable
from srum_ds.config import Config, load_config
from srum_ds.config.schema import JudgeConfig, ModelConfig, RegionsConfig
from srum_ds.evaluation.run_report.pictures import map_picture
from srum_ds.models import family_of, load_model, make_sampling
from srum_ds.models.protocol import UnifiedModel
from srum_ds.monitoring.images import Shown, annotated, to_pil
from srum_ds.monitoring.run_folder import CONFIG, EXPORT
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.rollouts.collect import sampling_of
from srum_ds.rollouts.draw import roll_out
from srum_ds.rollouts.fixed_prompts import seen_images
from srum_ds.rollouts.fixed_records import SeenImage
from srum_ds.types import Prompt

BASE, TRAINED, MODEL = "base", "trained", "model"
REGIONS, MAP, NOTHING = "Regions", "Reward map", "Nothing"
OVERLAYS = (REGIONS, MAP, NOTHING)

# The sampler's settings that the page offers, where a design has them.
OFFERED = ("num_timesteps", "steps", "text_scale", "guidance")

VIEW = 512
"""Small images are enlarged to about so many pixels, sharp, to be looked at."""


@dataclass(frozen=True)
class Drawing:
    """One image of one side (``base``, ``trained`` or ``model``), uint8 [3, H, W], and what the judge said of it."""

    side: str
    image_CHW: Tensor
    seen: SeenImage

    def picture(self, over: str = NOTHING) -> Image.Image:
        """The image, enlarged where it is small, with its regions or its map over it (``OVERLAYS``)."""
        if over == REGIONS:
            scores = [float("nan") if box.score is None else box.score for box in self.seen.boxes]
            return annotated(Shown(self.image_CHW, [box.box for box in self.seen.boxes], scores), VIEW)
        plain = to_pil(self.image_CHW, max(1, VIEW // self.image_CHW.shape[-1]))
        if over != MAP or not self.seen.map:
            return plain
        largest = max(1.0, *(abs(value) for row in self.seen.map for value in row))
        layer = map_picture(self.seen.map, 0.0, largest).resize(plain.size, Image.Resampling.NEAREST)
        return Image.alpha_composite(plain.convert("RGBA"), layer).convert("RGB")


@dataclass
class Showroom:
    """Models side by side, and who judges them: for a run the model that it started from, as in its training.

    sides: the models by name. sampling: the sampler's settings that images are drawn with. One thing is done at a time.
    """

    title: str
    cfg: Config
    sides: Mapping[str, UnifiedModel]
    judge: UnifiedModel
    judging: JudgePipeline
    sampling: Any
    image_size: tuple[int, int]
    _lock: Lock = field(default_factory=Lock)

    @property
    def offered(self) -> dict[str, int | float]:
        """The sampler's settings that may be changed, and their values."""
        known = {each.name for each in fields(self.sampling)}
        return {name: getattr(self.sampling, name) for name in OFFERED if name in known}

    @property
    def sampler(self) -> str:
        """The sampler's settings in a line."""
        return ", ".join(f"{name} {value}" for name, value in asdict(self.sampling).items())

    def draw(
        self, text: str, seed: int = 0, objects: str = "", changed: Mapping[str, Any] | None = None
    ) -> list[Drawing]:
        """Draws a prompt with every side and has the images judged.

        The same text, seed and sampler give the same images. objects: the object phrases, with commas between; where
        there are none they are found as the run says. changed: settings of the sampler in place of its own. Raises
        UserError for a prompt that no model takes, for wrong settings, and for a judge that cannot be asked.
        """
        prompt = self._prompt(text, objects)
        sampling = self.sampling
        if changed:
            family = family_of(self.cfg.model.path, self.cfg.model.kind)
            sampling = make_sampling(family, {**asdict(sampling), **changed}, "{}")
        found = []
        with self._lock, torch.no_grad():
            for side, model in self.sides.items():
                model.check_prompts([prompt])
                drawn = roll_out(model, [prompt], 1, self.image_size, sampling, seed, 0)
                with self.judge.judging():
                    judged = self.judging.judged(self.judge, drawn)
                (image_CHW, seen), *_ = seen_images(judged, self.cfg)
                found.append(Drawing(side, image_CHW, seen))
        return found

    def _prompt(self, text: str, objects: str) -> Prompt:
        text = " ".join(text.split())
        if not text:
            raise UserError("The prompt is empty; type what is to be drawn.")
        phrases = _parts(objects)
        for each in (text, *phrases):
            require_encodable(each, f"the prompt {ascii(each)}")
        return Prompt(id=text, text=text, phrases=phrases)

    def ask(
        self, side: str, picture: Image.Image, question: str, answers: str = "", tokens: int = 32
    ) -> list[tuple[str, float | None]]:
        """What a side's model answers about a picture: (answer, its probability), the likeliest first.

        answers: those to choose from, with commas between; without any it answers in its own words, the likeliest ones,
        ``tokens`` at most, and there is no probability. Raises UserError for an empty question and for one answer.
        """
        if not question.strip():
            raise UserError("The question is empty; type what is to be asked about the picture.")
        choices = _parts(answers)
        if len(choices) == 1:
            raise UserError("One answer is no choice; give several with commas between, or none.")
        for text in (question, *choices):
            require_encodable(text, f"the text {ascii(text)}")
        pixels = torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255).permute(2, 0, 1)
        model = self.sides[side]
        with self._lock, torch.no_grad():
            if choices:
                (shares,) = model.answer_logprobs([pixels], [question], choices).exp().tolist()
                return sorted(zip(choices, shares, strict=True), key=lambda pair: -pair[1])
            (answer,) = model.answer([pixels], [question], tokens, None, 0.0, [derive("ask", self.cfg.run.seed, 0)])
        return [(answer or "(it answered nothing)", None)]


def _parts(text: str) -> tuple[str, ...]:
    """Texts with commas or line ends between them, without empty ones."""
    return tuple(part for part in (part.strip() for part in re.split(r"[,\n]", text)) if part)


def open_showroom(source: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Showroom:
    """Opens a run (base and trained side by side) or the folder of a model (alone, judged by itself).

    A run's images are drawn with the sampler of its evaluation. A bare model has its design's sampler; its judge is
    asked one question about the whole image. Raises UserError for what is neither, and for a run without an export.
    """
    if (source / CONFIG).is_file():
        return _of_run(source, device, dtype)
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; give a run's (run.dir) or a model's, such as runs/tiny/export.")
    base = Config()
    cfg = replace(
        base,
        model=ModelConfig(path=str(source)),
        judge=JudgeConfig(readout="logprob", global_template="global_layout", local_template="local_crop"),
        regions=RegionsConfig(kind="none"),
    )
    sampling = make_sampling(family_of(source), {}, "{}")
    model = load_model(source, dtype=dtype, device=device)
    return Showroom(str(source), cfg, {MODEL: model}, model, JudgePipeline(cfg), sampling, model.default_size(None))


def _of_run(run: Path, device: torch.device | str, dtype: torch.dtype) -> Showroom:
    cfg = load_config(run / CONFIG)
    export = run / EXPORT
    if not export.is_dir():
        raise UserError(f"{export}: missing; the run has not finished. Repeat its `srum-ds train`, or show its model.")
    judging = JudgePipeline(cfg).ready()
    sampling = sampling_of(cfg, "eval")
    sides = {
        BASE: load_model(cfg.model.path, cfg.model.kind, dtype=dtype, device=device),
        TRAINED: load_model(export, cfg.model.kind, dtype=dtype, device=device),
    }
    return Showroom(str(run), cfg, sides, sides[BASE], judging, sampling, cfg.rollout.image_size)


def said_rows(seen: SeenImage) -> list[tuple[str, str, str]]:
    """(what, score, the judge's answer) of an image: the whole, then each region."""
    rows = [("whole image", _score(seen.score), seen.reply)]
    rows += [(box.phrase or "a region without a phrase", _score(box.score), box.reply) for box in seen.boxes]
    if seen.missing:
        rows.append(("asked for, but shown by no region", f"{seen.missing:.0%}", ""))
    return rows


def _score(value: float | None) -> str:
    return "no score" if value is None else f"{value:+.2f}"


def compared(drawings: Sequence[Drawing]) -> str:
    """Which side the judge prefers, in a sentence; empty for one side alone or where a score is missing."""
    scores = {drawing.side: drawing.seen.score for drawing in drawings}
    before, after = scores.get(BASE), scores.get(TRAINED)
    if before is None or after is None:
        return ""
    if _score(before) == _score(after):
        return f"The judge scores both {_score(before)}."
    better, worse = (TRAINED, BASE) if after > before else (BASE, TRAINED)
    figures = f"{_score(scores[better])} against {_score(scores[worse])}"
    return f"The judge prefers {better}: {figures}. One image says little."
