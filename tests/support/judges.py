"""Judges for tests: one that sees colours, one that writes what it is told, and images for them to look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from srum_ds.rewards.regions import select
from srum_ds.rewards.regions.components import component_candidates
from srum_ds.types import Prompt, Regions, Samples
from srum_ds.worlds.shapes.render import render_scenes
from srum_ds.worlds.shapes.world import SceneObject

COLOURS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.9, 0.1), "blue": (0.1, 0.1, 0.9)}
ANSWERS = ("yes", "no")

RIGHT = Prompt(id="right", text="a red circle and a blue square", phrases=("a red circle", "a blue square"))
WRONG = Prompt(id="wrong", text="a green triangle and a yellow cross", phrases=("a green triangle", "a yellow cross"))
THREE = Prompt(id="three", text="three green circles", phrases=("a green circle",), meta={"counts": [3]})


class MuteJudge:
    """A judge that nobody asks: every way of asking fails. Doubles allow the one that they are about."""

    def answer_logprobs(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        answers: Sequence[str],
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        raise AssertionError("no answer's probability should be read")

    def answer(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        max_new_tokens: int,
        image_index: Sequence[int] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        raise AssertionError("nothing should be written")

    def text_logprob(
        self,
        images: Sequence[Tensor],
        texts: Sequence[str],
        questions: Sequence[str] | None = None,
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        raise AssertionError("no text's probability should be read")


class ScoringJudge(MuteJudge):
    """Answers with the probabilities of yes and no that ``yes_and_no(question, image)`` gives.

    ``calls`` and ``questions`` note what it was asked: (images, questions) of each call, and all questions in order.
    """

    def __init__(self, yes_and_no: Callable[[str, Tensor], tuple[float, float]]) -> None:
        self.yes_and_no = yes_and_no
        self.calls: list[tuple[int, int]] = []
        self.questions: list[str] = []

    def answer_logprobs(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        answers: Sequence[str],
        image_index: Sequence[int] | None = None,
    ) -> Tensor:
        assert tuple(answers) == ANSWERS
        index = list(image_index) if image_index is not None else list(range(len(questions)))
        self.calls.append((len(images), len(questions)))
        self.questions.extend(questions)
        pairs = zip(index, questions, strict=True)
        rows = [self.yes_and_no(question, images[place]) for place, question in pairs]
        return torch.tensor([[math.log(yes), math.log(no)] for yes, no in rows])


class ColourJudge(ScoringJudge):
    """Says yes when the image's mean colour leans to a colour that the question names, and so is always right.

    spoil: of which (question, image) its answer is no number.
    """

    def __init__(self, spoil: Callable[[str, Tensor], bool] = lambda question, image: False) -> None:
        super().__init__(self._share_of_the_named)
        self.spoil = spoil

    def _share_of_the_named(self, question: str, image: Tensor) -> tuple[float, float]:
        if self.spoil(question, image):
            return math.nan, math.nan
        mean = image.mean(dim=(1, 2))
        named = [number for number, name in enumerate(COLOURS) if name in question]
        share = sum(float(mean[number]) for number in named) / max(float(mean.sum()), 1e-6)
        yes = 0.02 + 0.9 * min(share, 1.0)
        return yes, 0.96 - yes


class WritingJudge(MuteJudge):
    """Replies as ``say(question, attempt)`` tells, where attempt counts how often it was asked that before.

    Of each call ``calls`` notes the questions and the temperature, and ``images``, ``seeds`` (none: empty) and
    ``max_new_tokens`` what else it was given.
    """

    def __init__(self, say: Callable[[str, int], str]) -> None:
        self.say = say
        self.calls: list[tuple[list[str], float]] = []
        self.images: list[list[Tensor]] = []
        self.seeds: list[list[int]] = []
        self.max_new_tokens: list[int] = []
        self.attempts: dict[str, int] = {}

    def answer(
        self,
        images: Sequence[Tensor],
        questions: Sequence[str],
        max_new_tokens: int,
        image_index: Sequence[int] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        index = range(len(questions)) if image_index is None else image_index
        assert len(index) == len(questions) and max(index) < len(images)
        assert seeds is None or len(seeds) == len(questions)
        self.calls.append((list(questions), temperature))
        self.images.append(list(images))
        self.seeds.append(list(seeds or []))
        self.max_new_tokens.append(max_new_tokens)
        texts = []
        for question in questions:
            texts.append(self.say(question, self.attempts.get(question, 0)))
            self.attempts[question] = self.attempts.get(question, 0) + 1
        return texts

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(images, questions) of each call."""
        return [(len(images), len(asked)) for images, (asked, _) in zip(self.images, self.calls, strict=True)]


def picture(*objects: tuple[str, int, int]) -> Tensor:
    """A black image [3, 64, 64] with squares of 12 pixels: (colour, column, row) on a grid of four by four."""
    image = torch.zeros(3, 64, 64)
    for colour, column, row in objects:
        x, y = 16 * column + 2, 16 * row + 2
        image[:, y : y + 12, x : x + 12] = torch.tensor(COLOURS[colour])[:, None, None]
    return image


def samples_showing(prompts: Sequence[Prompt], pictures: Sequence[Sequence[Tensor]]) -> Samples:
    """Samples with these images of each prompt, and tokens of zeros on a grid of four by four."""
    flat = [image for group in pictures for image in group]
    return Samples(
        prompts=tuple(prompts),
        group_N=torch.tensor([g for g, images in enumerate(pictures) for _ in images]),
        sample_N=torch.tensor([s for images in pictures for s in range(len(images))]),
        images_NCHW=torch.stack(flat),
        tokens=torch.zeros(len(flat), 16, 64),
        grid=(4, 4),
    )


def proposed(
    images_NCHW: Tensor, max_count: int = 10, min_area: float = 0.004, pad: float = 0.03, threshold: float = 0.2
) -> Regions:
    """Components as the tiny recipe proposes them: objects of 12 pixels get boxes of 16."""
    found = component_candidates(images_NCHW, threshold)
    return select(found, max_count=max_count, min_area=min_area, pad=pad)


def one_scene_twice() -> tuple[Samples, Regions]:
    """A red circle and a blue square, for the prompt that they show (RIGHT) and for another (WRONG), with boxes."""
    scene = (SceneObject("solid", "red", "circle", 5), SceneObject("solid", "blue", "square", 10))
    image = render_scenes([scene])[0]
    boxes = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.5, 0.5, 0.75, 0.75]])
    return samples_showing((RIGHT, WRONG), ((image,), (image,))), Regions(
        torch.tensor([0, 0, 1, 1]), torch.cat([boxes, boxes])
    )
