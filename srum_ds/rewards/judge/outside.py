"""Who is asked beside the model's own judge: functions, servers, further checkpoints. ``pipeline`` asks them.

Nothing here communicates between ranks; each rank asks about its own images.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.foreign import Thread
from srum_ds.common.given import is_given
from srum_ds.config import Config, ExternalJudge, externals_of
from srum_ds.config.external import own_share
from srum_ds.judges import Ask, JudgeSettings, PictureJudge, Question, Reply, load_judge
from srum_ds.judges.pictures import encode_png
from srum_ds.models import default_dtype, load_model
from srum_ds.models.protocol import Judge
from srum_ds.rewards.judge.crops import judge_crops
from srum_ds.rewards.judge.external import (
    Opinion,
    Scorer,
    function_scores,
    given_scores,
    load_function,
    opinion_of_all,
    opinion_of_wholes,
    with_regions,
)
from srum_ds.rewards.judge.judge import Asking, judge_together
from srum_ds.rewards.judge.parsing import parse_reply
from srum_ds.rewards.templates import Template, load_template
from srum_ds.types import Failure, Prompt, Regions, Samples, Scores, Status


@runtime_checkable
class Asked(Protocol):
    """A judge outside that is asked in a thread, as soon as a micro-batch is drawn."""

    @property
    def spec(self) -> ExternalJudge:
        """What the recipe says of it."""
        ...

    def opinion(self, samples: Samples) -> Opinion:
        """What it says of the whole images."""
        ...


class FunctionJudge:
    """A Python function of images and prompts, and perhaps one of crops and phrases. UserError where there is none.

    One that a Python program has to hand over (``common.given``) is looked for when it is first called, or by
    ``ready``: an evaluation of its run does without.
    """

    def __init__(self, spec: ExternalJudge) -> None:
        self.spec = spec
        self.function: Scorer | None = None if is_given(spec.function) else load_function(spec.function)
        self.crops = load_function(spec.crops) if spec.crops and not is_given(spec.crops) else None

    def ready(self) -> None:
        """Looks for the functions. UserError for one that is not there."""
        self.function = self.function or load_function(self.spec.function)
        if self.spec.crops:
            self.crops = self.crops or load_function(self.spec.crops)

    def opinion(self, samples: Samples) -> Opinion:
        """See ``Asked``."""
        self.ready()
        assert self.function is not None
        scored = function_scores(self.function, self.spec.function, samples)
        return opinion_of_wholes(self.spec.name, self.spec.weight, *scored)

    def about_crops(self, samples: Samples, regions: Regions, asking: Asking) -> Scores:
        """What its function of crops says of the regions; see ``judge_crops``."""
        self.ready()
        crops = self.crops
        assert crops is not None

        def score(crop_QCHW: Tensor, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
            return given_scores(crops, self.spec.crops, crop_QCHW, prompts)

        with torch.no_grad():
            return judge_crops(samples, regions, asking, score, self.spec.crops)


class ServerJudge:
    """An OpenAI-compatible server, asked about each whole image by a template; its reply is parsed as written ones are.

    A reply that never comes or holds no score is FAILED, with the reason in ``failures``. UserError for a template that
    does not mention the prompt, and, where no reply has come yet, for what no ask can succeed with: a wrong address, a
    refused key, an unknown model. After the first reply that too only fails images.
    """

    def __init__(self, spec: ExternalJudge, cfg: Config) -> None:
        self.spec = spec
        self.seed = cfg.run.seed
        self.answers = cfg.judge.answers
        self.think = cfg.judge.think
        self.template = _template(spec, cfg)
        settings = JudgeSettings(spec.url, spec.model, (), spec.concurrency, spec.timeout, spec.retries)
        try:
            self.judge: PictureJudge = load_judge("http", settings)
        except UserError as error:
            raise _about(spec, error) from error
        self._replied = False

    def opinion(self, samples: Samples) -> Opinion:
        """See ``Asked``."""
        questions = [self.template.render(prompt=p.text, think=self.think) for p in samples.prompt_of_each()]
        pictures = [encode_png(image) for image in samples.images_NCHW]
        asks = [
            Ask(Question(self.spec.name, (question,), max_tokens=self.spec.max_tokens), picture, self.seed)
            for question, picture in zip(questions, pictures, strict=True)
        ]
        replies = self._replies(asks)
        found = [(float("nan"), Status.FAILED) if r.error else parse_reply(r.text, self.answers) for r in replies]
        score_N = torch.tensor([score for score, _ in found], dtype=torch.float32)
        status_N = torch.tensor([int(status) for _, status in found], dtype=torch.int64)
        said = tuple(reply.error or reply.text for reply in replies)
        failed = [n for n, (_, status) in enumerate(found) if status == Status.FAILED]
        label = f"{self.template.label} ({self.spec.name})"
        failures = tuple(Failure(n, -1, questions[n], said[n], label) for n in failed)
        return Opinion(self.spec.name, self.spec.weight, score_N, status_N, said, status_N, failures)

    def _replies(self, asks: Sequence[Ask]) -> list[Reply]:
        found: dict[int, Reply] = {}
        try:
            for position, reply in self.judge.ask(asks):
                found[position] = reply
                self._replied = self._replied or not reply.error
        except UserError as error:
            if not self._replied:
                raise _about(self.spec, error) from error
            # One rank that stopped here would leave the others waiting; judge.max_failed_share stops all of them.
            why = Reply(error=str(error))
            return [found.get(n, why) for n in range(len(asks))]
        return [found[n] for n in range(len(asks))]


class CheckpointJudge:
    """A further checkpoint, asked what the model's own judge is, loaded when first asked. UserError for none."""

    def __init__(self, spec: ExternalJudge, written: str) -> None:
        self.spec = spec
        self._model: Judge | None = None
        if not Path(spec.path).is_dir():
            raise UserError(f"judge.external={written}: is no checkpoint folder; give one, or module:function")

    def opinions(self, batches: Sequence[tuple[Samples, Regions]], asking: Asking) -> list[Opinion]:
        """What it says of each micro-batch: of images and regions. Each rank has the whole model."""
        if not batches:
            return []
        if self._model is None:
            device = batches[0][0].images_NCHW.device
            self._model = load_model(self.spec.path, dtype=default_dtype(device), device=device, only_judges=True)
        found = judge_together(self._model, batches, asking)
        return [opinion_of_all(self.spec.name, self.spec.weight, scores) for scores in found]


def opinion_of_finite(judge: Asked, samples: Samples) -> Opinion:
    """What a judge says, FAILED for images that are not finite, which it never sees."""
    opinion = judge.opinion(samples.finite())
    lost_N = ~samples.finite_N
    if not bool(lost_N.any()):
        return opinion
    status_N = opinion.status_N.masked_fill(lost_N, int(Status.FAILED))
    status_Q = status_N if opinion.status_Q is opinion.status_N else opinion.status_Q
    return replace(
        opinion, score_N=opinion.score_N.masked_fill(lost_N, torch.nan), status_N=status_N, status_Q=status_Q
    )


Sent = tuple[Future[Opinion], ...]
"""What the judges outside that are asked in threads will say of a micro-batch, in the recipe's order."""


class Externals:
    """The judges that ``judge.external`` lists. UserError for one that is not there.

    own_share: what the model's own judge has of every score beside them; at 0 it is not asked.
    """

    def __init__(self, cfg: Config) -> None:
        written = str(cfg.written("judge.external"))
        self.judges: list[FunctionJudge | ServerJudge | CheckpointJudge] = []
        for spec in externals_of(cfg.judge, cfg.reads_environment("judge.external")):
            if spec.kind == "function":
                self.judges.append(FunctionJudge(spec))
            elif spec.kind == "http":
                self.judges.append(ServerJudge(spec, cfg))
            else:
                self.judges.append(CheckpointJudge(spec, written if isinstance(cfg.judge.external, str) else spec.path))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the judges as in ``Scores.by_judge``, ``own`` first if it is asked; empty without others."""
        own = ("own",) if self.own_share > 0 else ()
        return (*own, *(judge.spec.name for judge in self.judges)) if self.judges else ()

    @property
    def own_share(self) -> float:
        """What the model's own judge has of every score, in [0, 1]."""
        return own_share([judge.spec for judge in self.judges])

    @property
    def judge_regions(self) -> bool:
        """Whether any of them judges regions."""
        return any(judge.spec.judges_regions for judge in self.judges)

    def ready(self) -> None:
        """UserError for a function that a Python program has to hand over and has not."""
        for judge in self.judges:
            if isinstance(judge, FunctionJudge):
                judge.ready()

    def send(self, samples: Samples) -> Sent:
        """Has those asked that are asked in threads."""
        return tuple(
            self._threads[k].submit(torch.no_grad()(opinion_of_finite), judge, samples)
            for k, judge in enumerate(self._asked)
        )

    def opinions(self, batches: Sequence[tuple[Samples, Regions]], asking: Asking) -> list[list[Opinion]]:
        """What the checkpoints say: of each micro-batch, one opinion of each checkpoint."""
        found = [judge.opinions(batches, asking) for judge in self.judges if isinstance(judge, CheckpointJudge)]
        return [[of_one[k] for of_one in found] for k in range(len(batches))]

    def about_regions(
        self, answers: Sequence[Opinion], samples: Samples, regions: Regions, asking: Asking
    ) -> list[Opinion]:
        """The answers to ``send``, with what those functions that judge crops say of the regions."""
        return [
            with_regions(answer, judge.about_crops(samples, regions, asking))
            if isinstance(judge, FunctionJudge) and judge.spec.crops
            else answer
            for judge, answer in zip(self._asked, answers, strict=True)
        ]

    @property
    def _asked(self) -> list[Asked]:
        return [judge for judge in self.judges if isinstance(judge, Asked)]

    @cached_property
    def _threads(self) -> list[Thread]:
        # One each: nobody said that a function may run beside itself, and a server has its own.
        return [Thread(f"judge-{judge.spec.name}") for judge in self._asked]


def _template(spec: ExternalJudge, cfg: Config) -> Template:
    name = spec.template or cfg.judge.global_template
    template = load_template(name)
    if "prompt" not in template.variables:
        raise UserError(
            f"judge.external ({spec.name}): template {template.name} never mentions {{{{ prompt }}}}: every question "
            f"would be the same; choose another, such as global_layout_score"
        )
    return template


def _about(spec: ExternalJudge, error: UserError) -> UserError:
    """The message of a judge on the command line, in the words of a recipe."""
    said = str(error).replace("--judge-url", "its url").replace("--judge-model", "its model")
    return UserError(f"judge.external ({spec.name}): {said.replace('--judge http', 'it')}")
