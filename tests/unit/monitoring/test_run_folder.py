"""One writer a folder, and no run continued under other settings."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from srum_ds.common.errors import UserError
from srum_ds.common.files import weights_sha256
from srum_ds.config import load_config
from srum_ds.monitoring import run_folder
from srum_ds.monitoring.run_binding import BINDING, binding_of, refuse_foreign
from srum_ds.monitoring.run_inputs import check_inputs
from srum_ds.prompts.shards import write_shards
from srum_ds.types import Prompt
from tests.support.paths import MODEL, RECIPE

Change = Callable[[Path], object]
METRICS = "metrics.jsonl"


def checkpoint(run: Path, step: int) -> None:
    (run / "checkpoints" / f"step_{step:06d}").mkdir(parents=True)


def ended(run: Path, *words: str) -> list[str]:
    """A run that was made with these settings and has ended: its export and results stand there."""
    run_folder.prepare(run, load_config(RECIPE, words))
    checkpoint(run, load_config(RECIPE, words).train.steps)
    for name in ("metrics.jsonl", "export/ema.safetensors", "result.json", "samples/eval_grid.png", "samples/own.png"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(name)
    return list(words)


def test_the_same_settings_change_nothing(tmp_path: Path) -> None:
    words = ended(tmp_path, "train.steps=7")
    before = (tmp_path / "config.yaml").read_bytes()
    assert run_folder.prepare(tmp_path, load_config(RECIPE, words)) == []
    assert (tmp_path / "config.yaml").read_bytes() == before and not (tmp_path / "former").exists()
    assert run_folder.is_finished(tmp_path, load_config(RECIPE, words))


def test_free_settings_may_change_and_the_folder_says_so(tmp_path: Path) -> None:
    words = [*ended(tmp_path, "train.steps=7"), "log.progress=false", "train.save_every=3", "watch.patience=9"]
    before = (tmp_path / "config.yaml").read_bytes()
    [told] = run_folder.prepare(tmp_path, load_config(RECIPE, words))
    assert "train.save_every 20 -> 3" in told and "watch.patience 5 -> 9" in told
    assert load_config(tmp_path / "config.yaml").train.save_every == 3
    assert (tmp_path / "former/step_000007/config.yaml").read_bytes() == before
    assert run_folder.is_finished(tmp_path, load_config(RECIPE, words)), "an export is not made again for these"


def test_changed_settings_are_named_with_the_way_out(tmp_path: Path) -> None:
    ended(tmp_path, "train.steps=7")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"train\.steps was 7 and is now 6 \(it may only grow\)") as caught:
        run_folder.prepare(tmp_path, load_config(RECIPE, ["train.steps=6", "objective.beta=0.5"]))
    assert "objective.beta was 1.0 and is now 0.5" in str(caught.value)
    assert "run.dir" in str(caught.value) and f"--fork {tmp_path}" in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_finished_run_goes_on_to_more_steps_and_keeps_what_it_was(tmp_path: Path) -> None:
    former = load_config(RECIPE, ended(tmp_path, "train.steps=7"))
    longer = load_config(RECIPE, ["train.steps=9"])
    assert run_folder.is_finished(tmp_path, former) and not run_folder.is_finished(tmp_path, longer)
    told = run_folder.prepare(tmp_path, longer)
    assert "goes on to 9 steps" in told[0] and "train.steps 7 -> 9" in told[1]
    kept = tmp_path / "former/step_000007"
    assert {path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()} == {
        "config.yaml",
        "export/ema.safetensors",
        "result.json",
        "samples/eval_grid.png",
    }
    assert (tmp_path / "samples/own.png").exists() and not (tmp_path / "export").exists()
    assert load_config(tmp_path / "config.yaml").train.steps == 9 and not run_folder.is_finished(tmp_path, longer)
    with pytest.raises(UserError, match="train.steps was 9 and is now 7"):
        run_folder.prepare(tmp_path, former)


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("train.schedule=cosine", "with train.schedule=cosine the learning rate of every step depends on it"),
        ("train.mode=rounds", "rounds, whose length would change"),
    ],
)
def test_more_steps_are_refused_where_the_taken_ones_depend_on_them(tmp_path: Path, setting: str, why: str) -> None:
    ended(tmp_path, "train.steps=8", setting)
    with pytest.raises(UserError, match=rf"train\.steps was 8 and is now 12 \(.*{why}"):
        run_folder.prepare(tmp_path, load_config(RECIPE, ["train.steps=12", setting]))
    extra = {BINDING: binding_of(tmp_path, load_config(RECIPE, ["train.steps=8", setting]))}
    with pytest.raises(UserError, match=r"made with other settings or inputs .*: train\.steps"):
        refuse_foreign(tmp_path, load_config(RECIPE, ["train.steps=12", setting]), 8, extra)


def test_a_run_that_the_watch_ended_goes_on_past_it(tmp_path: Path) -> None:
    ended(tmp_path, "train.steps=7", "watch.stop=true")
    (tmp_path / "stopped_by_watch.json").write_text("{}")
    with pytest.raises(UserError, match=r"the watch ended this run and would again: .*watch\.stop=false"):
        run_folder.prepare(tmp_path, load_config(RECIPE, ["train.steps=9", "watch.stop=true"]))
    past = load_config(RECIPE, ["train.steps=7", "watch.stop=false"])
    assert not run_folder.is_finished(tmp_path, past)
    run_folder.prepare(tmp_path, past)
    assert not run_folder.is_finished(tmp_path, past)
    assert (tmp_path / "former/step_000007/stopped_by_watch.json").exists()
    assert not (tmp_path / "stopped_by_watch.json").exists()


@pytest.mark.parametrize("moment", [1, 4])
def test_setting_a_finished_run_aside_may_be_cut_off(
    tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before any single move, the same call does the rest, and nobody takes the old export for the new one."""
    ended(tmp_path, "train.steps=7")
    longer = load_config(RECIPE, ["train.steps=9"])
    replaces, calls = os.replace, 0

    def dying(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > moment:
            raise KeyboardInterrupt
        replaces(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", dying)
        with contextlib.suppress(KeyboardInterrupt):
            run_folder.prepare(tmp_path, longer)
    assert not run_folder.is_finished(tmp_path, longer)
    run_folder.prepare(tmp_path, longer)
    assert not run_folder.is_finished(tmp_path, longer)
    assert (tmp_path / "former/step_000007/export/ema.safetensors").exists()
    assert load_config(tmp_path / "former/step_000007/config.yaml").train.steps == 7


def test_a_wrong_setting_can_be_put_right_before_anything_is_trained(tmp_path: Path) -> None:
    run_folder.prepare(tmp_path, load_config(RECIPE, ["model.path=/nowhere"]))
    run_folder.prepare(tmp_path, load_config(RECIPE))
    assert "nowhere" not in (tmp_path / "config.yaml").read_text()


def test_which_weights_are_exported_is_no_free_setting(tmp_path: Path) -> None:
    run_folder.prepare(tmp_path, load_config(RECIPE))
    (tmp_path / METRICS).touch()
    with pytest.raises(UserError, match=r"eval\.weights was 'ema' and is now 'live'"):
        run_folder.prepare(tmp_path, load_config(RECIPE, ["eval.weights=live"]))


def prompts(folder: Path, *texts: str) -> None:
    write_shards(folder, "train", [Prompt(f"p{i}", text) for i, text in enumerate(texts)], force=True)


def begun(tmp_path: Path, *words: str) -> tuple[Path, list[str]]:
    """A run that has begun with prompts, a question and code of its own, and the words it was begun with."""
    prompts(tmp_path / "p", "a cup", "a dog")
    (tmp_path / "ask.jinja").write_text("{# version 1 #}Is this {{ prompt }}?")
    (tmp_path / "code.py").write_text("def score(images, prompts): ...")
    shutil.copytree(MODEL, tmp_path / "model")
    words = (
        f"data.shards={tmp_path}/p",
        f"judge.global_template={tmp_path}/ask.jinja",
        f"judge.external={tmp_path}/code.py:score",
        f"model.path={tmp_path}/model",
        *words,
    )
    run = tmp_path / "run"
    run.mkdir()
    assert run_folder.prepare(run, load_config(RECIPE, words)) == []
    (run / METRICS).touch()
    assert run_folder.prepare(run, load_config(RECIPE, words)) == []
    return run, list(words)


def test_inputs_may_move_with_their_contents(tmp_path: Path) -> None:
    run, words = begun(tmp_path)
    (tmp_path / "new").mkdir()
    for name in ("p", "ask.jinja", "code.py", "model"):
        (tmp_path / name).rename(tmp_path / "new" / name)
    moved = [word.replace(f"={tmp_path}/", f"={tmp_path}/new/") for word in words]
    told = run_folder.prepare(run, load_config(RECIPE, moved))
    assert "model.path" in told[0] and "judge.external" in told[0]
    assert load_config(run / "config.yaml").model.path == f"{tmp_path}/new/model"
    assert run_folder.prepare(run, load_config(RECIPE, moved)) == []
    change_weights(tmp_path / "new/model")
    shutil.move(tmp_path / "new/model", tmp_path / "model")
    with pytest.raises(UserError, match=r"other settings: model\.path was '.*/new/model' and is now '.*/model'"):
        run_folder.prepare(run, load_config(RECIPE, [*moved[:3], words[3]]))


def test_another_function_of_a_moved_file_is_another_judge(tmp_path: Path) -> None:
    run, words = begun(tmp_path)
    with pytest.raises(UserError, match=r"other settings: judge\.external was"):
        run_folder.prepare(run, load_config(RECIPE, [*words, f"judge.external={tmp_path}/code.py:rate"]))


def change_weights(folder: Path) -> None:
    stored = load_file(folder / "ema.safetensors")
    stored["connector.fc1.bias"] += 1
    save_file(stored, folder / "ema.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: prompts(folder / "p", "a cup", "a cat"), "data.shards"),
        (lambda folder: (folder / "ask.jinja").write_text("{# version 1 #}Was it?"), "judge.global_template"),
        (lambda folder: (folder / "code.py").write_text("def score(i, p): ..."), "judge.external"),
        (lambda folder: change_weights(folder / "model"), "model.path"),
    ],
)
def test_a_run_does_not_go_on_with_other_contents(tmp_path: Path, change: Change, said: str) -> None:
    run, words = begun(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=f"was begun with other contents of {said}.*run.accept_changed_inputs=true"):
        run_folder.prepare(run, load_config(RECIPE, words))
    accepting = load_config(RECIPE, [*words, "run.accept_changed_inputs=true"])
    told = run_folder.prepare(run, accepting)
    assert len(told) > 0 and told[0].startswith(said) and "which is accepted" in told[0]
    assert said in str(json.loads((run / "inputs.json").read_text())["accepted"])
    assert run_folder.prepare(run, load_config(RECIPE, words)) == [], "what was accepted is what counts now"


@pytest.mark.parametrize("name", ["vocab.json", "judge.py"])
def test_an_input_that_cannot_be_read_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that does not answer proves no change: nothing is noted, and the run goes on once it does."""
    judge = tmp_path / "judge.py"
    judge.write_text("def score(images, prompts):\n    return [0.0] * len(prompts)\n")
    shutil.copytree(MODEL, tmp_path / "model")
    cfg = load_config(RECIPE, [f"model.path={tmp_path}/model", f"judge.external={judge}:score"])
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", failing_for(name))
        with pytest.raises(UserError, match=rf"{name}, of .*could not be read \(Stale file handle\)"):
            check_inputs(run, cfg, begun=False)
        assert not run.exists()
        if name == "vocab.json":
            with pytest.raises(UserError, match=r"vocab\.json could not be read"):
                weights_sha256(tmp_path / "model")
    check_inputs(run, cfg, begun=False)


def failing_for(name: str) -> Callable[..., Any]:
    """``open`` that raises ESTALE for files of this name."""
    before = open

    def opened(file: Any, *rest: Any, **named: Any) -> Any:
        if Path(str(file)).name == name:
            raise OSError(errno.ESTALE, "Stale file handle", str(file))
        return before(file, *rest, **named)

    return opened


def test_a_run_of_an_earlier_version_notes_its_inputs(tmp_path: Path) -> None:
    run, words = begun(tmp_path)
    (run / "inputs.json").unlink()
    assert run_folder.prepare(run, load_config(RECIPE, words)) == []
    prompts(tmp_path / "p", "another")
    with pytest.raises(UserError, match="data.shards"):
        run_folder.prepare(run, load_config(RECIPE, words))
    (run / "inputs.json").write_text("{")
    with pytest.raises(UserError, match="inputs.json: damaged"):
        run_folder.prepare(run, load_config(RECIPE, words))


def test_a_checkpoint_knows_the_settings_that_made_it(tmp_path: Path) -> None:
    run, words = begun(tmp_path, "train.lr=0.001", "objective.bound=null")
    extra = {"watch": {}, BINDING: json.loads(json.dumps(binding_of(run, load_config(RECIPE, words))))}

    def differs(*more: str) -> str:
        refuse_foreign(run, load_config(RECIPE, [*words, *more]), 5, extra)
        return "nothing"

    free = ("log.progress=false", "deepspeed.ranks=1", "limits.save=9", "eval.prompts=3", f"run.dir={tmp_path}/moved")
    assert differs(*free) == "nothing"
    assert differs(f"data.shards={tmp_path}/../{tmp_path.name}/p", "objective.bound=2.0") == "nothing"
    with pytest.raises(UserError, match=r"checkpoint of step 5 in .* was made with other settings .*: .*train\.lr"):
        differs("train.lr=0.01")
    with pytest.raises(UserError, match=r"run\.seed, judge\.min_mass"):
        differs("run.seed=8", "judge.min_mass=0.1")


def test_a_checkpoint_knows_its_inputs(tmp_path: Path) -> None:
    run, words = begun(tmp_path)
    cfg = load_config(RECIPE, words)
    before = {BINDING: binding_of(run, cfg)}
    prompts(tmp_path / "p", "a cup", "a cat")
    run_folder.prepare(run, load_config(RECIPE, [*words, "run.accept_changed_inputs=true"]))
    refuse_foreign(run, cfg, 5, before)
    refuse_foreign(run, cfg, 5, {BINDING: binding_of(run, cfg)})
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    run_folder.prepare(foreign, cfg)
    with pytest.raises(UserError, match=r"contents of data\.shards\. It was copied from another run"):
        refuse_foreign(foreign, cfg, 5, before)
    refuse_foreign(foreign, cfg, 5, {})
    refuse_foreign(foreign, cfg, 5, {BINDING: {"train.gone": "0"}})
    with pytest.raises(UserError, match=f"of step 999, beyond train.steps={cfg.train.steps}"):
        refuse_foreign(foreign, cfg, 999, {})


def test_folders_that_cannot_be_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("/nonexistent/x")
    (tmp_path / "run/.lock").mkdir(parents=True)
    bad = [tmp_path / "file", tmp_path / "file/x", tmp_path / "link", Path("/proc/x"), tmp_path / "run"]
    for folder in [*bad, tmp_path / ("x" * 300), tmp_path / "a\0b"]:
        with pytest.raises(UserError, match=r" is no folder that can be written"):
            with run_folder.locked(folder):
                pass


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("mine")
    with pytest.raises(UserError, match="run.dir"):
        run_folder.prepare(tmp_path, load_config(RECIPE))
    assert (tmp_path / "metrics.jsonl").read_text() == "mine"


def test_a_folder_that_was_moved_or_removed_is_noticed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    known = run_folder.identity(run)
    run_folder.refuse_another(run, known)
    run.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"run\.dir .*/run is not there any more"):
        run_folder.refuse_another(run, known)
    assert not run.exists()
    run.mkdir()
    with pytest.raises(UserError, match="is another folder than the one that this run began in"):
        run_folder.refuse_another(run, known)
    run_folder.refuse_another(tmp_path / "elsewhere", known)


@pytest.mark.parametrize("weights", ["ema.safetensors", "model.safetensors", "transformer/model.safetensors"])
def test_a_run_of_any_design_is_finished_once_its_export_stands(tmp_path: Path, weights: str) -> None:
    partial = tmp_path / "export.partial"
    for content in ("first", "second"):
        (partial / weights).parent.mkdir(parents=True)
        (partial / weights).write_text(content)
        assert run_folder.is_finished(tmp_path) == (content == "second")
        run_folder.publish_export(partial, tmp_path)
        assert run_folder.is_finished(tmp_path)
        assert (tmp_path / "export" / weights).read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
