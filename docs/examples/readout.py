"""A readout: P(yes) - P(no), so that a judge that puts little on either word says little.

judge.readout=readout.py:margin
"""

from collections.abc import Sequence

import torch

from srum_ds.config import Config
from srum_ds.models.protocol import Judge
from srum_ds.rewards.judge.readouts import Replies, Request
from srum_ds.types import Status


class Margin:
    needs_question, think, cure = True, False, "look at judge.answers"

    def __init__(self, answers: tuple[str, str]) -> None:
        self.answers = answers

    def read(self, judge: Judge, pictures: Sequence[torch.Tensor], requests: Sequence[Request]) -> Replies:
        questions, images = [r.question for r in requests], [r.picture for r in requests]
        probability_QA = judge.answer_logprobs(pictures, questions, self.answers, images).float().cpu().exp()
        score_Q = probability_QA[:, 0] - probability_QA[:, 1]
        return Replies(score_Q, torch.full(score_Q.shape, int(Status.PARSED)), ("",) * len(requests))


def margin(cfg: Config) -> Margin:
    return Margin(cfg.judge.answers)
