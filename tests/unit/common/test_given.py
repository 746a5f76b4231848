"""Functions that a Python program hands over: what settings call them, and what a run is bound to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srum_ds.common.errors import UserError
from srum_ds.common.given import digest_of, give, given
from srum_ds.config import load_config
from srum_ds.monitoring.run_inputs import check_inputs, inputs_of
from tests.support.paths import RECIPE

NOT_GIVEN = "judge.external=python:nobody"


def importable(images: Any, prompts: Any) -> list[float]:
    return [0.0] * len(prompts)


def nested(score: float) -> Callable[..., list[float]]:
    def bright(images: Any, prompts: Any) -> list[float]:
        return [score] * len(prompts)

    return bright


def test_a_function_that_can_be_imported_is_named_by_its_module() -> None:
    assert give(importable) == f"{__name__}:importable"
    first = nested(0.5)
    assert give(first) == "python:bright" and given("python:bright", "judge.external") is first
    assert give(lambda images, prompts: [0.0]) == "python:lambda"
    with pytest.raises(UserError, match="expected a function"):
        give("importable")  # type: ignore[arg-type]


def test_a_digest_is_of_the_source_or_of_a_lambda_s_own_code() -> None:
    first, second = {}, {}  # type: dict[str, Any], dict[str, Any]
    exec("def f(x):\n    return x + 1\ng = lambda x: x + 1\nh = lambda x: x + 1", first)
    exec("# elsewhere\ndef f(x):\n    return x + 2\ng = lambda x: x + 2", second)
    assert digest_of(first["f"]) != digest_of(second["f"]) and digest_of(first["g"]) != digest_of(second["g"])
    assert digest_of(first["g"]) == digest_of(first["h"])
    assert digest_of(nested(0.5)) == digest_of(nested(0.7)), "what a function refers to is not part of it"
    assert digest_of(nested(0.5)) != digest_of(importable)


def test_a_run_is_bound_to_the_function_it_began_with(tmp_path: Path) -> None:
    cfg = load_config(RECIPE, [f"judge.external={give(nested(0.5))}", f"run.dir={tmp_path}"])
    before = inputs_of(cfg)["judge.external.bright"]
    check_inputs(tmp_path, cfg, begun=False)

    def bright(images: Any, prompts: Any) -> list[float]:
        return [1.0] * len(prompts)

    give(bright)
    assert inputs_of(cfg)["judge.external.bright"] != before
    with pytest.raises(UserError, match=r"begun with other contents of .*judge\.external\.bright"):
        check_inputs(tmp_path, cfg, begun=True)


def test_who_was_given_none_is_told() -> None:
    with pytest.raises(UserError, match=r"judge\.external\.nobody=python:nobody is a function that a Python program"):
        inputs_of(load_config(RECIPE, [NOT_GIVEN]))
