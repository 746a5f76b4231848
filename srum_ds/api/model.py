"""``load_model``: a checkpoint or a run's trained model, to draw with and to ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from srum_ds.api.pictures import Pictures, is_one, tensors_of
from srum_ds.common.errors import UserError
from srum_ds.common.seeds import derive
from srum_ds.common.texts import require_encodable
from srum_ds.config import Config, find_path, load_config
from srum_ds.models import default_dtype, family_of
from srum_ds.models import load_model as load_unified_model
from srum_ds.models.generation import Generation, generation_of, read_generation, usual_sampling
from srum_ds.models.protocol import ModelFamily, UnifiedModel
from srum_ds.monitoring.run_folder import CONFIG, EXPORT
from srum_ds.rollouts.collect import sampling_of
from srum_ds.types import Prompt


@dataclass(frozen=True)
class Model:
    """A model that draws and answers; ``load_model`` opens one.

    folder: its checkpoint. config: the settings of the run that it comes from, None for a bare checkpoint. unified:
    what the design offers beside (``srum_ds.models.protocol.UnifiedModel``).
    """

    folder: Path
    family: ModelFamily
    unified: UnifiedModel
    config: Config | None = None

    def draw(
        self,
        prompts: str | Sequence[str],
        seed: int = 0,
        count: int = 1,
        size: tuple[int, int] | None = None,
        **sampler: Any,
    ) -> Pictures:
        """Draws ``count`` pictures of each prompt, those of a prompt side by side.

        A picture depends on the model, the sampler, the size, the seed, its prompt and its number below ``count``
        alone, and is the one that `srum-ds generate` draws with the same. Of a run's model, size and sampler are those
        that the run is evaluated with; of an export, those that it says; of another, the largest square and its
        design's own.

        Args:
            prompts: one text or several.
            seed: any whole number.
            count: >= 1.
            size: (height, width) in pixels.
            sampler: settings of the design's sampler in place of those, such as ``num_timesteps=17, text_scale=1.25``
                (flow matching: one time point more than steps).

        Raises UserError for an empty or too long text, a size that the design cannot draw, a setting that its sampler
        does not have, and pictures that are not finite.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"prompts is {prompts!r}; expected a text, or some, none of them empty")
        if count < 1:
            raise UserError(f"count={count}: give at least 1")
        if size is not None and not _is_size(size):
            raise UserError(f"size={size!r}: give (height, width) in pixels, such as (512, 768)")
        for text in texts:
            require_encodable(text, f"prompt {ascii(text)}")
        known = [Prompt(id=text[:40], text=text) for text in texts]
        self.unified.check_prompts(known)
        own = self._own_drawing()
        grid = self.unified.grid(*(size or (own.image_size if own else self.unified.default_size())))
        sampling = usual_sampling(self.family, own, sampler)
        drawn = []
        for prompt in known:
            keys = [("generate", seed, prompt.text, number) for number in range(count)]
            with torch.no_grad():
                tokens, images_NCHW = self.unified.generate([prompt] * count, keys, grid, sampling)
            if not bool(tokens.isfinite().all() and images_NCHW.isfinite().all()):
                raise UserError(
                    f"the model in {self.folder} draws numbers that are not finite: its weights are damaged, or its "
                    "type is too narrow for them. Try dtype='float32', or copy the weights again."
                )
            drawn.append(images_NCHW.float().cpu())
        return Pictures(torch.cat(drawn), tuple(text for text in texts for _ in range(count)), seed)

    def ask(
        self,
        picture: Any,
        question: str,
        answers: Sequence[str] | None = None,
        *,
        max_new_tokens: int = 16,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Any:
        """Asks the model about a picture, as `srum-ds ask` does.

        Args:
            picture: a tensor [3, H, W] in [0, 1], a PIL image, a file; or several, then a list comes back.
            question: a text.
            answers: possible answers, at least two: the probability of each is read, by its first token.
            max_new_tokens: longest free answer, >= 1.
            temperature: 0 takes the likeliest tokens, above it the answer is sampled, seeded by ``seed`` and its place.

        Returns the answer's text; with ``answers`` a dict from each to its probability in [0, 1], which need not sum
        to 1.

        Raises UserError for an empty question, a single answer, what is no picture, and probabilities that are none.
        """
        choices = list(() if answers is None else answers)
        if not question.strip():
            raise UserError("the question is empty; give it a text")
        if answers is not None and len(choices) < 2:
            raise UserError(f"answers={choices}: give at least two to choose from")
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens={max_new_tokens}: give at least 1")
        for text in (question, *choices):
            require_encodable(text, f"the text {ascii(text)}")
        images = [image.to(self.unified.device) for image in tensors_of(picture)]
        questions = [question] * len(images)
        with torch.no_grad():
            logprobs_QA = self.unified.answer_logprobs(images, questions, choices or ["yes"])
            if bool(logprobs_QA.isnan().any()):
                raise UserError(
                    f"the model in {self.folder} answers with numbers that are not finite: its weights are damaged, or "
                    "its type is too narrow for them. Try dtype='float32', or copy the weights again."
                )
            if choices:
                found: list[Any] = [dict(zip(choices, row, strict=True)) for row in logprobs_QA.exp().tolist()]
            else:
                seeds = [derive("ask", seed, number) for number in range(len(images))]
                found = list(self.unified.answer(images, questions, max_new_tokens, None, temperature, seeds))
        return found[0] if is_one(picture) else found

    def _own_drawing(self) -> Generation | None:
        """How the run says that its model is drawn with, or the folder of an export; None where nobody does."""
        if self.config is None:
            return read_generation(self.folder, self.family)
        return generation_of(self.family, sampling_of(self.config, "eval"), self.config.rollout.image_size, {})

    def __repr__(self) -> str:
        return f"Model({str(self.folder)!r}, {self.family.kind}, on {self.unified.device})"


def load_model(path: str | Path, kind: str = "auto", device: str = "auto", dtype: str = "auto") -> Model:
    """Opens a model's checkpoint folder, or the trained model of a run's folder.

    Args:
        path: a checkpoint of any design, a run's folder, or its ``export``.
        kind: which design it is, as ``model.kind`` says (``file.py:NAME`` too); ``auto`` asks the folder.
        device: ``cpu``, ``cuda``, ``cuda:1``; ``auto`` is the GPU where there is one.
        dtype: ``float32``, ``bfloat16``, ``float16``; ``auto`` is bfloat16 on a GPU and float32 else.

    Raises UserError for a folder that is no model, a run that has not finished, and unknown devices and types.
    """
    folder = find_path(path)
    run = folder if (folder / CONFIG).is_file() else folder.parent if folder.name == EXPORT else None
    config = load_config(run / CONFIG) if run is not None and (run / CONFIG).is_file() else None
    if run == folder:
        folder = run / EXPORT
        if not folder.is_dir():
            raise UserError(f"{folder}: missing; the run has not finished: train it to its end first")
    if config is not None and kind == "auto":
        kind = config.model.kind
    place, width = _placed(device, dtype)
    return Model(folder, family_of(folder, kind), load_unified_model(folder, kind, width, place), config)


def _placed(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else str(device)
    try:
        place = torch.device(name)
    except RuntimeError:
        place = None
    if place is None or place.type not in ("cpu", "cuda"):
        raise UserError(f"device={device!r} is unknown; expected auto, cpu, cuda or cuda:1")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={device!r}: there are {torch.cuda.device_count()} GPUs here; take device='cpu'")
    widths = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype != "auto" and dtype not in widths:
        raise UserError(f"dtype={dtype!r} is unknown; expected auto, {', '.join(widths)}")
    return place, default_dtype(place) if dtype == "auto" else widths[dtype]


def _is_size(size: Any) -> bool:
    return isinstance(size, tuple | list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
