"""What a preflight looks at beside the kinds of wrong input: several at once, what is odd, what it leaves alone."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest

from srum_ds.commands.main import main
from srum_ds.commands.preflight import ranks_of, refuse_on_rank
from srum_ds.common.errors import UserError
from srum_ds.common.supervise import SUPERVISED
from srum_ds.config import Config, load_config, save_config
from srum_ds.config.choices import MODELS, OBJECTIVES
from srum_ds.models import costs_of, family_of, load_model
from srum_ds.models.protocol import UnifiedModel
from srum_ds.monitoring import run_folder
from srum_ds.preflight import Finding, Start, State, look_at, placing
from srum_ds.preflight.model import folder_problems, trained_elements
from srum_ds.preflight.run import errors
from tests.support.paths import ROOT
from tests.support.tiny_showo import write_tiny_showo

TINY = ROOT / "srum_ds" / "assets"


@pytest.fixture(autouse=True)
def in_the_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def found(folder: Path, *words: str, work: str = "train", ranks: int | None = 2) -> list[Finding]:
    _, findings = look_at(Start(work, "tiny", (f"run.dir={folder / 'run'}", *words), ranks))
    return findings


def states(findings: list[Finding]) -> dict[str, State]:
    return {finding.part: finding.state for finding in findings}


def test_a_right_run_is_told_to_be_right_and_leaves_nothing(tmp_path: Path) -> None:
    findings = found(tmp_path)
    assert errors(findings) == []
    looked = states(findings)
    for part in ("settings", "run.dir", "disk", "deepspeed.config", "data.shards", "data.split", "model.path", "ranks"):
        assert looked[part] == State.OK, part
    assert list(tmp_path.iterdir()) == []


def test_everything_that_is_wrong_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train.step=1", "train.lr=-1", "model.path=nowhere", "data.split=no", "judge.global_template=no"]
    assert main(["train", "tiny", f"run.dir={tmp_path}", "deepspeed.config=no.json", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(set(lines)) == 6
    for word in (
        "train.step",
        "train.lr=-1",
        "model.path=nowhere",
        "data.split=no",
        "judge.global_template",
        "no.json",
    ):
        assert sum(word in line for line in lines) >= 1, word


def test_all_wrong_settings_of_a_recipe_are_told(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("train: {step: 3, lr: -1, precision: fp8}\nrollout: 3\n")
    _, findings = look_at(Start("train", recipe, (f"run.dir={tmp_path / 'run'}",), 2))
    said = " ".join(finding.text for finding in errors(findings))
    assert len(errors(findings)) == 4
    for word in ("'train.step'", "train.lr=-1", "train.precision=fp8", "rollout is 3"):
        assert word in said
    with pytest.raises(UserError, match=r"train\.step"):
        load_config(recipe)


def test_check_prints_what_was_looked_at_and_its_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = f"run.dir={tmp_path / 'run'}"
    assert main(["train", "tiny", run, "--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("ok") and "model.path" in line for line in lines)
    assert any("launch/train.sh tiny" in line and "--num_gpus 2" in line for line in lines)
    assert main(["train", "tiny", run, "data.split=no", "--check", "--json"]) == 2
    facts = json.loads(capsys.readouterr().out)
    assert facts["ok"] is False
    assert {"part": "data.split", "state": "error"}.items() <= next(
        one for one in facts["findings"] if one["state"] == "error"
    ).items()
    assert not (tmp_path / "run").exists()


def test_torch_is_not_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Modules that the preflight reads may be imported where torch cannot be."""
    for name in [name for name in sys.modules if name.split(".")[0] == "srum_ds"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    fresh = importlib.import_module("srum_ds.preflight")
    for words, wrong in (((), 0), (("model.path=nowhere", "rollout.image_size=[60,60]", "train.steps=x"), 2)):
        start = fresh.Start("train", "tiny", (f"run.dir={tmp_path / 'run'}", *words), 2)
        _, findings = fresh.look_at(start)
        assert sum(finding.state.value == "error" for finding in findings) == wrong, findings
    for name in [name for name in sys.modules if name.split(".")[0] == "srum_ds"]:
        monkeypatch.delitem(sys.modules, name)


def test_a_finished_run_needs_nothing_more(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "export").mkdir(parents=True)
    (run / "export" / "ema.safetensors").write_text("")
    save_config(load_config("tiny", [f"run.dir={run}"]), run / "config.yaml")
    findings = found(tmp_path)
    assert errors(findings) == []
    assert "finished" in next(finding.text for finding in findings if finding.part == "run.dir")
    assert "model.path" not in states(findings)


def test_few_prompts_are_odd_and_no_error(tmp_path: Path) -> None:
    prompts = tmp_path / "mine.txt"
    prompts.write_text("a red circle\na blue square\na green ring\n")
    findings = found(tmp_path, f"data.prompts={prompts}")
    assert errors(findings) == []
    assert states(findings)["data.split"] == State.WARNING
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content, wrong", [("[]", 1), ('{"weight_map": {}}', 0), ("{", 1)])
def test_an_index_is_read_whatever_its_length(tmp_path: Path, content: str, wrong: int) -> None:
    shutil.copytree(TINY / "tiny_bagel", tmp_path / "model")
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(content.replace("{}", "{" + " " * (3 << 20) + "}"))
    problems = list(folder_problems(tmp_path / "model", "model.path"))
    assert len(problems) == wrong
    assert all(index.name in problem.text for problem in problems)


def test_a_url_is_not_fetched(tmp_path: Path) -> None:
    findings = found(tmp_path, "data.prompts=https://no.such.host/mine.txt")
    assert states(findings)["data.prompts"] == State.NOT_CHECKED


def test_room_for_what_is_kept_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = placing.checkpoint_bytes(load_config("tiny", [f"run.dir={tmp_path / 'run'}"]))
    assert size is not None
    usage = placing.shutil.disk_usage(tmp_path)
    for free, state in ((size // 2, State.ERROR), (2 * size, State.WARNING), (9 * size, State.OK)):
        monkeypatch.setattr(placing.shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        assert states(found(tmp_path))["disk"] == state


def test_the_size_of_a_checkpoint_is_that_of_the_last_one_where_there_is_one(tmp_path: Path) -> None:
    last = tmp_path / "run" / "checkpoints" / "step_000020"
    last.mkdir(parents=True)
    (last / "rank_00000.safetensors").write_bytes(b"x" * 1234)
    assert placing.checkpoint_bytes(load_config("tiny", [f"run.dir={tmp_path / 'run'}"])) == 1234


@pytest.mark.parametrize(
    "name, mode", [("tiny_bagel", "generation"), ("tiny_bagel", "transformer"), ("tiny_janus", "generation")]
)
def test_what_trains_is_counted_as_the_plan_counts_it(name: str, mode: str) -> None:
    folder = TINY / name
    costs = costs_of(folder)
    assert costs is not None
    assert trained_elements(family_of(folder), folder, mode) == costs.parameters(mode, 0, ()).trained


def test_sizes_are_refused_as_the_designs_do(tmp_path: Path) -> None:
    sizes = ((16, 16), (32, 32), (60, 64), (64, 64), (128, 64))
    for folder in (TINY / "tiny_bagel", TINY / "tiny_janus", write_tiny_showo(tmp_path)):
        family = family_of(folder)
        assert family.refuses_size is not None
        model = load_model(folder, materialise=lambda module, stored: None)
        asked = [*sizes, model.default_size()]
        taken = [size for size in asked if not family.refuses_size(folder, *size)]
        assert taken == [size for size in asked if _draws(model, size)]
        assert taken, folder


def _draws(model: UnifiedModel, size: tuple[int, int]) -> bool:
    try:
        model.grid(*size)
    except UserError:
        return False
    return True


def test_objectives_that_take_the_old_policy_are_known() -> None:
    taking = {name for name in OBJECTIVES.builtin if OBJECTIVES.get(name).needs_old}
    assert set(placing._WITH_OLD) == taking


def test_every_design_is_known_without_its_libraries() -> None:
    for name in MODELS.builtin:
        assert MODELS.get(name).kind == name


@pytest.mark.parametrize(
    "flags, ranks",
    [
        ([], 2),
        (["--num_gpus", "3"], 3),
        (["--num_gpus=4", "--num_nodes", "2"], 8),
        (["--hostfile", "hosts"], None),
        (["--include=localhost:0,1"], None),
        (["--num_gpus", "many"], None),
    ],
)
def test_ranks_are_read_off_the_launchers_flags(flags: list[str], ranks: int | None) -> None:
    assert ranks_of(Config(), flags) == ranks


def test_visible_gpus_are_counted_as_the_driver_reads_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(
        placing.os, "listdir", lambda path: ["nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl", "tty"]
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert placing.visible_gpus() == 4
    for said, count in {"": 0, "-1": 0, "0,-1,1": 1, "0, 3,none,1": 2, "GPU-4f2a,MIG-1b,2": 3}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
        assert placing.visible_gpus() == count, said
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert placing.visible_gpus() == 0


def test_more_ranks_than_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "visible_gpus", lambda: 1)
    assert states(found(tmp_path))["devices"] == State.ERROR


def test_rollout_looks_at_the_folder_that_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with run_folder.locked(out, "writing"):
        assert main(["rollout", "tiny", "--out", str(out), "data.split=no", "--dry-run"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "another process is writing" in lines[0] and "data.split=no" in lines[1]


def test_of_ranks_started_by_hand_the_first_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("srum_ds.commands.preflight.WAIT_SECONDS", 0.0)
    monkeypatch.delenv(SUPERVISED, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ["tiny", f"run.dir={tmp_path / 'run'}", "data.split=no"]
    monkeypatch.setenv("RANK", "0")
    assert refuse_on_rank(words) == 2
    assert capsys.readouterr().err.count("data.split=no") == 1
    # It holds the folder by now: nobody else asks for that.
    monkeypatch.setenv("RANK", "1")
    with run_folder.locked(tmp_path / "run"):
        assert refuse_on_rank(words[:2]) == 0
    monkeypatch.setenv(SUPERVISED, "1")
    assert refuse_on_rank(words) == 0


def test_the_plan_builds_the_model_without_its_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "tiny", f"run.dir={tmp_path / 'run'}", "--dry-run"]) == 0
    command, *plan = capsys.readouterr().out.splitlines()
    assert "launch/train.sh tiny" in command
    told = "\n".join(plan)
    assert "1.80 M" in told and "ZeRO-3 on 2 rank(s)" in told and "a rank at most" in told
    size = placing.checkpoint_bytes(load_config("tiny", [f"run.dir={tmp_path / 'run'}"]))
    assert size is not None and f"{size / 1e6:.1f} MB every 20 steps" in told
    assert not (tmp_path / "run").exists()


def test_code_of_another_kind_is_told_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("NUMBER = 5\n")
    for key in ("watch.checker", "model.kind"):
        (wrong,) = errors(found(tmp_path, f"{key}={tmp_path}/own.py:NUMBER"))
        assert f"{key}={tmp_path}/own.py:NUMBER" in wrong.text and "is int, expected a" in wrong.text
