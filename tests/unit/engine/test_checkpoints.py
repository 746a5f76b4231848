"""Checkpoints: the newest that is whole is loaded, whatever was cut off, damaged or foreign."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from srum_ds.common.errors import UserError
from srum_ds.engine import checkpoint_files as checkpoint
from srum_ds.engine.base import finite
from srum_ds.engine.plain import PlainEngine
from tests.support.toy import Toy, loaded, plain, same, saved, train, train_step, weights


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


def test_all_damaged_stays_an_error(tmp_path: Path) -> None:
    """The same call again finds nothing that could be loaded, and begins at no step 0 either."""
    saved(tmp_path)
    for step in (1, 2):
        damage(tmp_path / f"step_{step:06d}" / "rank_00000.safetensors", "flipped")
    for _ in range(2):
        with pytest.raises(UserError, match="step_000001.corrupt, step_000002.corrupt.*choose another run.dir"):
            loaded(tmp_path)


@pytest.mark.parametrize(
    "name", ["step_2", "step_000002.bak", "step_0000002", "step_\u0660\u0660\u0660\u0660\u0660\u0662"]
)
def test_a_run_whose_checkpoints_were_renamed_does_not_begin_anew(name: str, tmp_path: Path) -> None:
    saved(tmp_path)
    shutil.rmtree(tmp_path / "step_000001")
    (tmp_path / "step_000002").rename(tmp_path / name)
    with pytest.raises(UserError, match=f"of other names: {name}. Give one its step's name back"):
        loaded(tmp_path)
    (tmp_path / name).rename(tmp_path / "step_000002")
    assert loaded(tmp_path) == (2, {"at": 2})


def test_a_checkpoint_that_was_about_to_be_replaced_is_not_lost(tmp_path: Path) -> None:
    """A kill between the two renames of saving a step again."""
    saved(tmp_path)
    shutil.rmtree(tmp_path / "step_000001")
    (tmp_path / "step_000002").rename(tmp_path / "step_000002.replaced.partial")
    assert loaded(tmp_path) == (2, {"at": 2})


@pytest.mark.parametrize("name", ["state.json", "rank_00000.safetensors"])
def test_a_pipe_in_a_files_place_is_refused_and_not_waited_for(name: str, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "step_000002" / name).unlink()
    os.mkfifo(tmp_path / "step_000002" / name)
    with pytest.raises(UserError, match=f"{name} could not be read .it is a pipe"):
        loaded(tmp_path)
    assert (tmp_path / "step_000002").is_dir()


def test_what_was_set_aside_is_kept(tmp_path: Path) -> None:
    saved(tmp_path)
    for expected in ("step_000002.corrupt", "step_000002.2.corrupt", "step_000002.3.corrupt"):
        damage(tmp_path / "step_000002" / "rank_00000.safetensors", "flipped")
        engine = plain()
        assert engine.load(tmp_path) == (1, {"at": 1})
        assert (tmp_path / expected).is_dir()
        train_step(engine, 2)
        engine.save(tmp_path, 2, {"at": 2})


def test_a_read_error_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that does not answer proves no damage, whatever it was asked for."""
    saved(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def fails(*arguments: Any, **named: Any) -> Any:
        raise OSError(5, "Input/output error")

    asked = [(Path, "read_text"), (checkpoint, "_sha256"), (os, "scandir"), (os, "listdir"), (checkpoint, "safe_open")]
    for owner, name in asked:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fails)
            with pytest.raises(UserError, match="Input/output error.*no checkpoint was touched"):
                loaded(tmp_path)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert loaded(tmp_path) == (2, {"at": 2})


def altered(folder: Path, change: Any) -> None:
    path = folder / "state.json"
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))


def unsealed(folder: Path, change: Any = lambda state: None) -> None:
    """Makes a state of format 1, which had no hash of itself."""

    def change_all(state: dict[str, Any]) -> None:
        del state["sha256"]
        state["format"] = 1
        change(state)

    altered(folder, change_all)


def test_a_newer_format_is_refused_untouched(tmp_path: Path) -> None:
    saved(tmp_path)
    altered(tmp_path / "step_000002", lambda state: state.update(format=99, files="elsewhere"))
    with pytest.raises(UserError, match=r"step_000002/state\.json has format 99, which a newer version"):
        loaded(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000001", "step_000002"]


@pytest.mark.parametrize("key", ["step", "optimizer_steps", "adam_steps", "parameters", "extra", "files", "sha256"])
def test_a_state_that_was_altered_is_damage(tmp_path: Path, key: str, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path, steps=3)
    altered(tmp_path / "step_000003", lambda state: state.pop(key))
    other = {"step": 1, "optimizer_steps": 9, "adam_steps": 1, "extra": {"at": 7}, "sha256": "0" * 64}
    altered(tmp_path / "step_000002", lambda state: state.update({key: other.get(key)}))
    with pytest.raises(UserError, match="all of them are damaged"):
        loaded(tmp_path)
    assert "step_000003 IS DAMAGED" in caplog.text and "step_000002 IS DAMAGED" in caplog.text


def test_a_state_of_format_1_is_loaded(tmp_path: Path) -> None:
    engine = saved(tmp_path)
    unsealed(tmp_path / "step_000002")
    again = plain()
    assert again.load(tmp_path) == (2, {"at": 2})
    assert same(weights(again), weights(engine))


WRONG: list[dict[str, Any]] = [
    {"step": 5},
    {"step": True},
    {"step": "2"},
    {"adam_steps": 3},
    {"optimizer_steps": -1},
    {"files": []},
    {"files": [{"name": "../x", "bytes": 1, "sha256": "0" * 64}]},
    {"kinds": "live"},
    {"parameters": {"head.weight": [3, None]}},
    {"extra": None},
    {"fixed": []},
    {"world_size": 2},
    {"format": 0},
]


@pytest.mark.parametrize("change", WRONG)
def test_fields_of_format_1_that_are_wrong_are_damage(tmp_path: Path, change: dict[str, Any]) -> None:
    saved(tmp_path)
    unsealed(tmp_path / "step_000002", lambda state: state.update(change))
    assert loaded(tmp_path) == (1, {"at": 1})
    assert (tmp_path / "step_000002.corrupt").is_dir()


def test_checkpoint_of_another_model_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(UserError, match=r"belongs to another model: .* parameters differ, e.g. blocks"):
        plain(Toy(width=5)).load(tmp_path)
    with pytest.raises(UserError, match="has no ema weights"):
        engine = plain()
        engine.add_weights("ema")
        engine.load(tmp_path)


@pytest.mark.parametrize("kind", ["live", "exp_avg_sq", "weights.ema"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_replaces_no_checkpoint(tmp_path: Path, kind: str, value: float) -> None:
    engine = plain()
    engine.add_weights("ema")
    for step in (1, 2):
        train_step(engine, step)
        engine.save(tmp_path, step, {"at": step})
    before = weights(engine)
    engine._kinds()[kind][0].data[3] = value
    with pytest.raises(UserError, match=f"after step 3, {kind} of .* not finite .*the same command goes on"):
        engine.save(tmp_path, 3, {"at": 3})
    again = plain()
    again.add_weights("ema")
    assert again.load(tmp_path) == (2, {"at": 2})
    assert same(weights(again), before)


def test_a_former_checkpoint_that_is_not_finite_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = saved(tmp_path)
    before = weights(engine)
    with monkeypatch.context() as former:
        former.setattr(PlainEngine, "_refuse_not_finite", lambda *arguments: None)
        engine._kinds()["exp_avg"][0].data[3] = float("inf")
        engine.save(tmp_path, 3, {"at": 3})
    again = plain()
    assert again.load(tmp_path) == (2, {"at": 2})
    assert same(weights(again), before)
    assert "step_000003 IS DAMAGED" in caplog.text and "holds numbers that are not finite" in caplog.text


def test_weights_that_are_not_finite_are_not_exported() -> None:
    engine = plain()
    assert [name for name, _ in finite(engine.consolidate())] == [name for name, _ in engine.consolidate()]
    engine._flats[0].data[3] = float("nan")
    with pytest.raises(UserError, match="not finite, so nothing is exported"):
        list(finite(engine.consolidate()))


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
