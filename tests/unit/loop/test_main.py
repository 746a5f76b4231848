"""What the loop refuses before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from srum_ds.common.errors import UserError
from srum_ds.train import main
from tests.support.runs import short_run, write_prompts


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("shards"), 10)


def test_bad_input_is_named_before_anything_runs(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        main(short_run(shards, tmp_path / "a", "model.path=/nowhere"))
    with pytest.raises(UserError, match="index.json"):
        main(short_run(tmp_path / "empty", tmp_path / "b"))
    with pytest.raises(UserError, match="prompts_per_step"):
        main(short_run(shards, tmp_path / "c", "rollout.prompts_per_step=3"))
    with pytest.raises(UserError, match=r"rollout\.prompts_per_step"):
        main(short_run(shards, tmp_path / "d", "rollout.prompt_per_step=3"))
