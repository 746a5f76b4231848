"""A model of this project as the judge, such as the one whose pictures are judged: ``--judge self``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.files import weights_sha256
from srum_ds.config import find_path
from srum_ds.judges.inprocess import Talk, ask_in_batches
from srum_ds.judges.protocol import Ask, JudgeSettings, Reply
from srum_ds.models import default_dtype, load_model
from srum_ds.models.protocol import Judge


class OwnJudge:
    """Asks a model's understanding half, greedily. Its figures are marked: it judges what it drew.

    The model's ``answer`` takes one question about one picture, so the system's words, earlier turns and its replies
    to them are put before the question (``joined``), the picture stands where the model's design has it, and a schema
    is not enforced. Probabilities are those of the answers' first tokens, each spelled as the question spells it.
    """

    kind = "self"
    under_test = True

    def __init__(self, folder: Path, model: Judge, sha256: str, batch: int) -> None:
        self.model = f"{folder.resolve().name} {sha256[:16]}"
        self._model = model
        self._batch = batch

    def ask(self, asks: Iterable[Ask]) -> Iterator[tuple[int, Reply]]:
        """See ``PictureJudge``."""
        return ask_in_batches(self, asks, self._batch)

    def write(self, talks: Sequence[Talk], max_tokens: int) -> Sequence[str]:
        """See ``Speaker``."""
        images, index = _images(talks)
        return self._model.answer(images, [joined(talk) for talk in talks], max_tokens, index)

    def weigh(self, talks: Sequence[Talk], answers: Sequence[str]) -> Sequence[Sequence[float]]:
        """See ``Speaker``."""
        images, index = _images(talks)
        logprobs_QA = self._model.answer_logprobs(images, [joined(talk) for talk in talks], answers, index)
        rows: list[list[float]] = logprobs_QA.detach().float().cpu().exp().tolist()
        return rows

    def close(self) -> None:
        """Frees the model."""
        del self._model


def joined(talk: Talk) -> str:
    """A conversation as one question: the system's words, what was asked and replied before, then what is asked now."""
    question = talk.ask.question
    parts = [question.system] if question.system else []
    for turn, reply in zip(question.turns, talk.replies, strict=False):
        parts += [f"You were asked: {turn}", f"You replied: {reply}"]
    return "\n\n".join([*parts, question.turns[len(talk.replies)]])


def _images(talks: Sequence[Talk]) -> tuple[list[Tensor], list[int]]:
    """The distinct pictures as float32 [3, H, W] in [0, 1], and which of them each conversation is about."""
    place: dict[bytes, int] = {}
    images: list[Tensor] = []
    for talk in talks:
        if talk.ask.picture not in place:
            place[talk.ask.picture] = len(images)
            pixels_HWC = torch.from_numpy(np.asarray(talk.picture, dtype=np.float32) / 255.0)
            images.append(pixels_HWC.permute(2, 0, 1).contiguous())
    return images, [place[talk.ask.picture] for talk in talks]


def own_judge(settings: JudgeSettings) -> OwnJudge:
    """The entry of the registry: ``model`` is a folder, ``kind`` its design, ``device`` where it computes.

    UserError without a folder, and for one that holds no model.
    """
    if not settings.model:
        raise UserError("--judge self needs the folder of the model under test: --judge-model FOLDER")
    folder = find_path(settings.model)
    device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    sha256 = weights_sha256(folder)
    model = load_model(folder, settings.kind, default_dtype(device), device, only_judges=True)
    return OwnJudge(folder, model, sha256, settings.batch)
