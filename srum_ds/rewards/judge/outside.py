"""Who is asked beside the model's own judge: functions, servers, further checkpoints. ``pipeline`` asks them.

Nothing here communicates between ranks; each rank asks about its own images.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from srum_ds.common.errors import UserError
from srum_ds.config import Config, ExternalJudge, externals_of
from srum_ds.judges import Ask, JudgeSettings, PictureJudge, Question, Reply, load_judge
from srum_ds.judges.pictures import encode_png
from srum_ds.models import default_dtype, load_model
from srum_ds.models.protocol import Judge
from srum_ds.rewards.judge.external import (
    Opinion,
    function_scores,
    load_function,
    opinion_of_all,
    opinion_of_wholes,
)
from srum_ds.rewards.judge.judge import Asking, judge_together
from srum_ds.rewards.judge.parsing import parse_reply
from srum_ds.rewards.templates import Template, load_template
from srum_ds.types import Failure, Regions, Samples, Status


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
    """A Python function of images and prompts. UserError where there is none."""

    def __init__(self, spec: ExternalJudge) -> None:
        self.spec = spec
        self.function = load_function(spec.function)

    def opinion(self, samples: Samples) -> Opinion:
        """See ``Asked``."""
        scored = function_scores(self.function, self.spec.function, samples)
        return opinion_of_wholes(self.spec.name, self.spec.weight, *scored)


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


Sent = tuple[Future[Opinion], ...]
"""What the judges outside that are asked in threads will say of a micro-batch, in the recipe's order."""


class Externals:
    """The judges that ``judge.external`` lists. UserError for one that is not there."""

    def __init__(self, cfg: Config) -> None:
        written = str(cfg.written("judge.external"))
        self.judges: list[FunctionJudge | ServerJudge | CheckpointJudge] = []
        for spec in externals_of(cfg.judge):
            if spec.kind == "function":
                self.judges.append(FunctionJudge(spec))
            elif spec.kind == "http":
                self.judges.append(ServerJudge(spec, cfg))
            else:
                self.judges.append(CheckpointJudge(spec, written if isinstance(cfg.judge.external, str) else spec.path))

    @property
    def names(self) -> tuple[str, ...]:
        """``own`` and the names of the judges, as in ``Scores.by_judge``; empty where there is none beside the own."""
        return ("own", *(judge.spec.name for judge in self.judges)) if self.judges else ()

    def send(self, samples: Samples) -> Sent:
        """Has those asked that are asked in threads."""
        return tuple(
            self._threads[k].submit(torch.no_grad()(judge.opinion), samples) for k, judge in enumerate(self._asked)
        )

    def opinions(self, batches: Sequence[tuple[Samples, Regions]], asking: Asking) -> list[list[Opinion]]:
        """What the checkpoints say: of each micro-batch, one opinion of each checkpoint."""
        found = [judge.opinions(batches, asking) for judge in self.judges if isinstance(judge, CheckpointJudge)]
        return [[of_one[k] for of_one in found] for k in range(len(batches))]

    @property
    def _asked(self) -> list[Asked]:
        return [judge for judge in self.judges if isinstance(judge, Asked)]

    @cached_property
    def _threads(self) -> list[ThreadPoolExecutor]:
        # One each: nobody said that a function may run beside itself, and a server has its own.
        return [ThreadPoolExecutor(1, f"judge-{judge.spec.name}") for judge in self._asked]


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
