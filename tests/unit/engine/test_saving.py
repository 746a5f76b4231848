"""Checkpoints: what is left out of them, and what is written while training goes on."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from srum_ds.common.errors import UserError
from srum_ds.engine import checkpoint_files as checkpoint
from srum_ds.engine.checkpoint_state import FileRecord
from srum_ds.engine.plain import PlainEngine
from tests.support.toy import loaded, plain, same, saved, train, weights


def test_fixed_weights_are_not_stored_but_known_again(tmp_path: Path) -> None:
    """The untrained weights: each run makes them anew, and a checkpoint knows whether they are the same."""
    engine = plain()
    engine.add_weights("reference", fixed=True)
    engine.add_weights("ema")
    before = weights(engine, "reference")
    train(engine, range(2))
    engine.save(tmp_path, 2, {})
    state = json.loads((tmp_path / "step_000002" / "state.json").read_text())
    assert "weights.ema" in state["kinds"]
    assert "weights.reference" not in state["kinds"]

    again = plain()
    again.add_weights("reference", fixed=True)
    again.add_weights("ema")
    assert again.load(tmp_path) == (2, {})
    assert same(weights(again, "reference"), before)
    assert same(weights(again), weights(engine))

    other = plain()
    with torch.no_grad():
        next(iter(other._flats)).view(-1)[3] += 1e-3
    other.add_weights("reference", fixed=True)
    other.add_weights("ema")
    with pytest.raises(UserError, match=r"reference weights are not those .* model\.path"):
        other.load(tmp_path)


def test_a_checkpoint_that_has_its_fixed_weights_gives_them_back(tmp_path: Path) -> None:
    """As runs wrote them before fixed weights were left out; what no setting asks for is passed over."""
    engine = plain()
    engine.add_weights("reference")
    engine.add_weights("old")
    before = weights(engine, "reference")
    train(engine, range(2))
    engine.save(tmp_path, 2, {})

    again = plain()
    with torch.no_grad():
        next(iter(again._flats)).mul_(2)
    again.add_weights("reference", fixed=True)
    assert again.load(tmp_path) == (2, {})
    assert same(weights(again, "reference"), before)
    assert not again.has_weights("old")


def test_fixed_weights_do_not_change(tmp_path: Path) -> None:
    engine = plain()
    engine.add_weights("reference", fixed=True)
    with pytest.raises(ValueError, match="fixed"):
        engine.update_weights("reference", 0.5)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved is the state at the call, and it is a checkpoint once it is whole on the disk, not before."""
    slow, write = threading.Event(), checkpoint.write_rank

    def waits(*arguments: Any) -> FileRecord:
        assert slow.wait(30)
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "write_rank", waits)
    engine = plain()
    train(engine, range(2))
    then = {key: value.clone() for key, value in weights(engine).items()}
    engine.save(tmp_path, 2, {"at": 2}, background=True)
    train(engine, range(2, 4))
    engine.finish_save(wait=False)
    assert checkpoint.committed_steps(tmp_path) == []
    slow.set()
    engine.finish_save()
    assert checkpoint.committed_steps(tmp_path) == [2]
    again = plain()
    assert again.load(tmp_path) == (2, {"at": 2})
    assert same(weights(again), then)
    assert train(again, range(2, 4)) == train(plain_after(2), range(2, 4))


def plain_after(steps: int) -> PlainEngine:
    engine = plain()
    train(engine, range(steps))
    return engine


def test_a_save_that_failed_in_the_background_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = saved(tmp_path)

    def full(*arguments: Any) -> FileRecord:
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "write_rank", full)
    engine.save(tmp_path, 3, {"at": 3}, background=True)
    with pytest.raises(UserError, match=r"no room for a checkpoint .*No space left"):
        engine.finish_save()
    assert checkpoint.committed_steps(tmp_path) == [1, 2]
    assert loaded(tmp_path) == (2, {"at": 2})
