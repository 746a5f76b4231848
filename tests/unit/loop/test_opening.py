"""What becomes of a run that cannot be opened, in a program that goes on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from srum_ds import job
from srum_ds.common.errors import UserError
from srum_ds.config import Config


@pytest.mark.parametrize("closes", [True, False])
def test_what_shows_a_run_is_closed_where_it_cannot_be_opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, closes: bool
) -> None:
    closed: list[bool] = []

    def close() -> None:
        closed.append(True)
        if not closes:
            raise OSError("the disk is gone")

    def refuse(cfg: Config) -> Any:
        raise UserError("no such prompts")

    monkeypatch.setattr(job, "open_monitor", lambda cfg, run_dir: SimpleNamespace(close=close))
    monkeypatch.setattr(job, "open_data", refuse)
    with pytest.raises(UserError, match="no such prompts"):
        job.open_job(Config(), tmp_path)
    assert closed == [True]
