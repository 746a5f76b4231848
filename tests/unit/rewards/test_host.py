"""Who judges: the live model where training leaves its judgement alone, else a frozen copy."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.models import load_model
from srum_ds.rewards.judge.host import choose_judge
from tests.support.paths import MODEL, RECIPE


def test_a_shared_judge_that_training_would_change_is_refused() -> None:
    model = load_model(MODEL)
    cfg = load_config(RECIPE, ["model.judge=shared", "model.trains=transformer"])
    with pytest.raises(UserError, match=r"model\.trains=transformer changes the understanding half.*frozen_copy"):
        choose_judge(cfg, model)


def test_the_live_model_judges_where_its_judgement_does_not_change() -> None:
    model = load_model(MODEL)
    host = choose_judge(load_config(RECIPE), model)
    assert host.judge is model and host.engine is None
    with ExitStack() as gathered:
        assert host.take(gathered) is model
