"""`srum-ds check-adapter`: a table of what holds, and the exit status."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from srum_ds.commands.main import main


@dataclass
class Check:
    name: str
    ok: bool
    detail: str


@pytest.mark.parametrize(("ok", "status"), [(True, 0), (False, 1)])
def test_the_status_says_whether_all_holds(
    ok: bool, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def check_adapter(name: str, folder: Path) -> list[Check]:
        asked.append((name, folder))
        return [Check("shapes", True, "[2, 3] tokens"), Check("gradients", ok, "only where they should be")]

    contract = ModuleType("srum_ds.models.contract")
    monkeypatch.setattr(contract, "check_adapter", check_adapter, raising=False)
    monkeypatch.setitem(sys.modules, "srum_ds.models.contract", contract)
    assert main(["check-adapter", "auto", "some/folder"]) == status
    assert asked == [("auto", Path("some/folder"))]
    shown = capsys.readouterr().out
    assert "[2, 3] tokens" in shown and "gradients" in shown
    assert ("no" in [word.strip() for line in shown.splitlines() for word in line.split("│")]) == (not ok)
