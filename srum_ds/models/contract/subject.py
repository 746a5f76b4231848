"""What the checks share: a family, its folder, and a few images, views and answers of its model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.seeds import Key, SampleKeys
from srum_ds.models.protocol import ModelFamily, UnifiedModel, ViewSettings
from srum_ds.types import Prompt, Samples, TrainView

TEXTS = ("a red circle", "two blue squares and a green triangle", "a dog")
QUESTIONS = ("Is it red?", "What is to be seen in this image?", "Is there a dog?")
ANSWERS = ("yes", "no")
PROMPTS = tuple(Prompt(str(number), text) for number, text in enumerate(TEXTS))
KEYS: tuple[Key, ...] = tuple(("contract", number) for number in range(len(TEXTS)))
LORA_RANK = 4

STEP = 1e-2
"""How far the training step of the checks moves every number of a trained parameter."""


class Broken(Exception):
    """A promise that is not kept; the message says what was found."""


def expect(kept: bool, found: str) -> None:
    """``Broken`` unless ``kept``."""
    if not kept:
        raise Broken(found)


def refused(what: str, work: Callable[[], object]) -> None:
    """``Broken`` unless ``work`` raises a UserError."""
    try:
        work()
    except UserError:
        return
    raise Broken(f"{what} is accepted; expected a UserError")


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference of two tensors, relative to the largest number in either; 1 for another shape."""
    if one.shape != other.shape:
        return 1.0
    one, other = one.detach().double(), other.detach().double()
    largest = max(float(one.abs().max()), float(other.abs().max()), 1e-12)
    difference = float((one - other).abs().max()) / largest
    return difference if difference == difference else 1.0


@dataclass
class Subject:
    """What the checks share: the family, its folder, and a few images that its model has drawn."""

    family: ModelFamily
    folder: Path
    given_sampling: Any
    scratch: Path

    def load(self, folder: Path | None = None) -> UnifiedModel:
        return self.family.load(folder or self.folder, torch.float32, "cpu", None, False)

    @cached_property
    def model(self) -> UnifiedModel:
        """For checks that change nothing."""
        return self.load()

    @cached_property
    def sampling(self) -> Any:
        return self.family.sampling_type() if self.given_sampling is None else self.given_sampling

    @cached_property
    def grid(self) -> tuple[int, int]:
        return self.model.grid(*self.model.default_size())

    @cached_property
    def drawn(self) -> tuple[Tensor, Tensor]:
        return self.draw(self.model)

    def draw(self, model: UnifiedModel, some: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Tokens and images of the prompts, or of some of them."""
        return model.generate(PROMPTS[some], KEYS[some], self.grid, self.sampling)

    def views(self, some: slice = slice(None)) -> TrainView:
        """Two training views of each image, about a third of them without their prompts."""
        tokens, images = self.drawn
        names = tuple((prompt.name, 0) for prompt in PROMPTS[some])
        number = torch.arange(len(names))
        samples = Samples(PROMPTS[some], number, torch.zeros_like(number), images[some], tokens[some], self.grid)
        return self.model.views(samples, ViewSettings(2, "logit_normal", 1.0, 0.3), SampleKeys(0, 0, names))

    def predict(self, model: UnifiedModel, some: slice = slice(None)) -> Tensor:
        return model.predict(model.module, PROMPTS[some], self.views(some), self.grid)

    def energy(self, model: UnifiedModel) -> Tensor:
        """The mean energy of the tokens that count, a scalar with a gradient."""
        view = self.views()
        energy_BT = model.matching.energy(self.predict(model).flatten(0, 1), view.target.flatten(0, 1))
        return energy_BT[view.counts_NMT.flatten(0, 1)].mean()

    def judged(self, model: UnifiedModel, some: slice = slice(None)) -> tuple[Tensor, Tensor, list[str]]:
        """What the model says of its images: probabilities of answers and of texts, and answers in words."""
        images = list(self.drawn[1][some])
        questions = QUESTIONS[some]
        return (
            model.answer_logprobs(images, questions, ANSWERS),
            model.text_logprob(images, TEXTS[some]),
            model.answer(images, questions, 4),
        )

    def trained(self, mode: str) -> tuple[UnifiedModel, dict[str, Tensor]]:
        """A fresh model ready to train in ``mode``, and its trained parameters by name."""
        model = self.load()
        if mode == "lora":
            model.add_lora(LORA_RANK, 2.0 * LORA_RANK, (), 0)
        parameters = dict(model.module.named_parameters())
        names = model.trainable(mode)
        unknown = [name for name in names if name not in parameters]
        if unknown or not names:
            raise Broken(f"trainable({mode!r}) names {unknown or 'nothing'}, which the module does not have")
        model.module.requires_grad_(False)
        for name in names:
            parameters[name].requires_grad_(True)
        return model, {name: parameters[name] for name in names}

    def stepped(self, mode: str) -> tuple[UnifiedModel, dict[str, Tensor]]:
        """The same after one training step."""
        model, trained = self.trained(mode)
        self.energy(model).backward()
        with torch.no_grad():
            for parameter in trained.values():
                if parameter.grad is not None:
                    parameter.sub_(STEP * parameter.grad.sign())
                    parameter.grad = None
        return model, trained
