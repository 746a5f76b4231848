"""Checkpoints: the newest that is whole is loaded, whatever was cut off, damaged or foreign."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from srum_ds.common.errors import UserError
from srum_ds.engine import checkpoint_files as checkpoint
from srum_ds.engine.plain import PlainEngine
from tests.support.toy import Toy, plain, same, train, train_step, weights


def saved(folder: Path, steps: int = 2) -> PlainEngine:
    """An engine with ``steps`` checkpoints behind it, one a step."""
    engine = plain()
    for step in range(1, steps + 1):
        train_step(engine, step)
        engine.save(folder, step, {"at": step})
    return engine


def loaded(folder: Path) -> tuple[int, dict[str, Any]] | None:
    return plain().load(folder)


def test_load_finds_nothing(tmp_path: Path) -> None:
    assert loaded(tmp_path / "absent") is None
    assert loaded(tmp_path) is None


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, steps=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000003", "step_000004"]
    assert json.loads((tmp_path / "step_000004" / "state.json").read_text())["optimizer_steps"] == 4


def test_load_goes_back_to_an_asked_step_or_the_oldest_that_is_left(tmp_path: Path) -> None:
    engine = plain()
    for step in (1, 2, 3):
        train(engine, range(step - 1, step))
        engine.save(tmp_path, step, {"at": step}, keep=2)
    for newest, expected in ((None, 3), (9, 3), (2, 2), (1, 2), (0, 2)):
        fresh = plain()
        assert fresh.load(tmp_path, newest=newest) == (expected, {"at": expected})
        assert fresh.steps == expected


class Killed(BaseException):
    """A kill -9: nothing catches it, nothing is cleaned up."""


def test_killed_at_any_moment_of_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dies before every single thing a save does to the disk; what is loaded is whole, old or new."""
    calls = 0
    deadly = 0

    def dying(function: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == deadly:
                raise Killed
            return function(*args, **kwargs)

        return wrapper

    engine = saved(tmp_path, steps=2)
    train_step(engine, 3)
    new = weights(engine)
    found = []
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", dying(checkpoint.save_file))
        patch.setattr(checkpoint.os, "fsync", dying(os.fsync))
        patch.setattr(checkpoint.os, "rename", dying(os.rename))
        patch.setattr(checkpoint.shutil, "rmtree", dying(shutil.rmtree))
        patch.setattr(Path, "write_text", dying(Path.write_text))
        patch.setattr(Path, "mkdir", dying(Path.mkdir))
        for deadly in range(1, 100):
            here = tmp_path.with_name(f"{tmp_path.name}_{deadly}")
            calls = -(10**9)
            shutil.copytree(tmp_path, here)
            calls = 0
            try:
                engine.save(here, 3, {"at": 3})
            except Killed:
                pass
            else:
                break
            finally:
                calls = -(10**9)
            again = plain()
            step, extra = again.load(here) or (0, {})
            assert extra == {"at": step}
            assert step == 2 or (step == 3 and same(weights(again), new))
            assert not [path for path in here.iterdir() if path.name.endswith(".partial")]
            found.append(step)
    assert found == sorted(found) and set(found) == {2, 3}, found


def damage(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    else:
        contents = bytearray(path.read_bytes())
        contents[-3] ^= 0x40
        path.write_bytes(contents)


@pytest.mark.parametrize("how", ["missing", "truncated", "flipped"])
@pytest.mark.parametrize("name", ["rank_00000.safetensors", "state.json"])
def test_damaged_checkpoint_falls_back(tmp_path: Path, how: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path)
    damage(tmp_path / "step_000002" / name, how)
    engine = plain()
    assert engine.load(tmp_path) == (1, {"at": 1})
    assert "step_000002 IS DAMAGED" in caplog.text and name in caplog.text
    expected = plain()
    train_step(expected, 1)
    assert same(weights(engine), weights(expected))
    # The run goes on past the damaged one, which is kept aside.
    train_step(engine, 2)
    engine.save(tmp_path, 2, {"at": 2})
    assert loaded(tmp_path) == (2, {"at": 2})
    assert (tmp_path / "step_000002.corrupt").is_dir()


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path)
    for step in (1, 2):
        damage(tmp_path / f"step_{step:06d}" / "rank_00000.safetensors", "truncated")
    with pytest.raises(UserError, match="no usable checkpoint in .*all of them are damaged"):
        loaded(tmp_path)


def test_checkpoint_of_another_model_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(UserError, match=r"belongs to another model: .* parameters differ, e.g. blocks"):
        plain(Toy(width=5)).load(tmp_path)
    with pytest.raises(UserError, match="has no ema weights"):
        engine = plain()
        engine.add_weights("ema")
        engine.load(tmp_path)


def test_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = saved(tmp_path)
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        patch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(UserError, match=f"no room for a checkpoint in {tmp_path}: it needs [0-9,]+ bytes"):
            engine.save(tmp_path, 3, {"at": 3})
    with monkeypatch.context() as patch:

        def full(contents: Any, path: Path, metadata: Any) -> None:
            path.write_bytes(b"half of it")
            raise SafetensorError("I/O error: No space left on device (os error 28)")

        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(UserError, match="No space left on device"):
            engine.save(tmp_path, 3, {"at": 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000001", "step_000002"]
    assert loaded(tmp_path) == (2, {"at": 2})


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

    def waits(*arguments: Any) -> checkpoint.FileRecord:
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

    def full(*arguments: Any) -> checkpoint.FileRecord:
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "write_rank", full)
    engine.save(tmp_path, 3, {"at": 3}, background=True)
    with pytest.raises(UserError, match=r"no room for a checkpoint .*No space left"):
        engine.finish_save()
    assert checkpoint.committed_steps(tmp_path) == [1, 2]
    assert loaded(tmp_path) == (2, {"at": 2})
