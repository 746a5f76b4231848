"""What a run says before and after: rewards against the first steps, the held-out difference, commands that work."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from srum_ds.commands.main import app
from srum_ds.config import load_config
from srum_ds.evaluation.benchmarks.own import read as read_own_benchmark
from srum_ds.evaluation.held_out import best_of, told
from srum_ds.evaluation.run_words import end_block, next_commands, uncheckable
from srum_ds.monitoring.blocks import CALLER_PATH, block, held_out_told, program, rewards_told
from srum_ds.prompts.shards import write_shards
from srum_ds.types import Prompt
from tests.support.paths import RECIPE


def look(step: int, reward: float, difference: float | None = 0.0, error: float | None = 0.05) -> dict[str, Any]:
    return {
        "step": step,
        "prompts": 48,
        "weights": "ema",
        "reward": reward,
        "reward_se": 0.06,
        "difference": difference,
        "difference_se": error,
    }


def test_rewards_of_the_last_steps_are_held_against_the_first_ones() -> None:
    rising = [{"step": n, "reward_global": n / 100} for n in range(1, 41)]
    assert rewards_told(rising) == "+0.355 in the last 10 steps, +0.055 in the first: +0.300"
    # Short runs: no step counts on both sides; what failed is left out.
    short: list[dict[str, Any]] = [
        {"reward_global": 0.1},
        {"reward_global": None},
        {"reward_global": 0.3},
        {"reward_global": 0.5},
    ]
    assert rewards_told(short) == "+0.500 in the last step, +0.100 in the first: +0.400"
    assert rewards_told([{"reward_global": 0.25}]) == "+0.250 in the only step"
    assert rewards_told([{"loss": 1.0}]) == ""


def test_a_difference_is_called_what_it_is() -> None:
    base = look(0, 0.2)
    assert held_out_told([base, look(120, 0.35, 0.15, 0.05)]) == (
        "+0.350 after step 120 on 48 prompts, base +0.200: +0.150 ± 0.050, better, more than chance "
        "(+3.0 standard errors)"
    )
    assert "no more than chance (+1.0 standard errors)" in held_out_told([base, look(120, 0.25, 0.05)])
    assert "WORSE, more than chance (-4.0 standard errors)" in held_out_told([base, look(120, 0.0, -0.2)])
    assert "too few prompts to tell from chance" in held_out_told([base, look(120, 0.25, 0.05, None)])
    assert "the base was not looked at" in held_out_told([look(120, 0.25, None)])
    assert held_out_told([base]) == held_out_told([]) == ""


def test_the_best_look_is_the_first_of_the_highest_and_never_the_base() -> None:
    looks = [look(0, 0.9), look(20, 0.1), look(40, 0.3), look(60, 0.3), {**look(80, 0.0), "reward": None}]
    best = best_of(looks)
    assert best is not None and best["step"] == 40
    assert best_of([look(0, 0.9)]) is None
    # A checker or another judge that sees it otherwise has no say.
    swayed = [
        {**entry, "checker_exact": 1.0 - n / 10, "judges": {"http": 1.0 - n / 10}} for n, entry in enumerate(looks)
    ]
    assert best_of(swayed) == swayed[2]
    assert told(swayed[2]).endswith("80% exact by the checker, http +0.800")


def test_blocks_are_wrapped_at_80_columns_and_say_nothing_empty() -> None:
    text = block("runs/tiny starts", [("model", "word " * 40), ("nothing", ""), ("judge", "x" * 90)])
    lines = text.splitlines()
    assert all(len(line) < 80 for line in lines[:-1]) and "nothing" not in text
    assert lines[1].startswith("  model      word") and lines[2].startswith(" " * 13 + "word")
    assert lines[-1] == "  judge      " + "x" * 90 or lines[-1].strip() == "x" * 90


def test_commands_at_the_end_are_commands_and_take_what_stands_behind_them(tmp_path: Path) -> None:
    run = tmp_path / "my runs" / "tiny"
    run.mkdir(parents=True)
    (run / "report.html").touch()
    own = tmp_path / "prompts.txt"
    own.write_text("".join(f"a {colour} circle\n" for colour in ("red", "blue", "green", "grey", "pink")))
    shapes = load_config(str(RECIPE), [f"run.dir={run}"])
    mine = load_config(str(RECIPE), [f"run.dir={run}", f"data.prompts={own}"])
    known = {name for name in app if not name.startswith("-")}
    commands = [shlex.split(command) for cfg in (shapes, mine) for command in next_commands(cfg, run)]
    names = [words[1] for words in commands if words[0].endswith("srum-ds")]
    assert [name for name in names if name != "report"] == ["eval", "generate"] * 2
    assert set(names) - {"report"} <= known
    for words in commands:
        # Every path is one word, whatever is in its name, and lies in the run or is made there.
        assert any(word.startswith(str(run)) for word in words)
    assert ["--benchmark", "own", "--prompts", str(run / "prompts"), "--judge", "self"] in [w[3:] for w in commands]
    assert commands[-1][-2:] == ["--logdir", str(run / "tensorboard")]
    # Without a report there is none to write anew.
    (run / "report.html").unlink()
    assert "report" not in " ".join(next_commands(shapes, run))


def test_prompts_that_no_checker_knows_are_said_to_be_scored_by_the_judge(tmp_path: Path) -> None:
    """What `make train` ends with after a recipe on a public benchmark's prompts, which have no split `test`."""
    for split in ("train", "val"):
        write_shards(tmp_path, split, [Prompt(f"{split}-1", "a green bench and a blue bowl")])
    run = tmp_path / "run"
    cfg = load_config(str(RECIPE), [f"run.dir={run}", f"data.shards={tmp_path}"])
    why = uncheckable(cfg, run)
    assert why is not None and "no split 'test'; there are train, val" in why
    [words] = [shlex.split(line)[-5:] for line in why.splitlines() if line.startswith("scored by its own judge")]
    assert words == ["own", "--prompts", str(tmp_path), "--judge", "self"]
    assert [prompt.id for prompt in read_own_benchmark(tmp_path)] == ["val-1"]
    assert uncheckable(load_config(str(RECIPE), [f"run.dir={run}"]), run) is None


def test_prompts_without_a_part_kept_out_offer_no_evaluation(tmp_path: Path) -> None:
    own = tmp_path / "prompts.txt"
    own.write_text("a red circle\na blue circle\n")
    cfg = load_config(str(RECIPE), [f"run.dir={tmp_path / 'run'}", f"data.prompts={own}", "data.train_share=1"])
    assert not any(" eval " in command for command in next_commands(cfg, tmp_path / "run"))


def test_a_program_is_named_as_the_users_shell_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = Path(sys.executable).parent
    monkeypatch.setenv(CALLER_PATH, str(tools))
    assert program("tensorboard") == "tensorboard"
    # The environment is not activated: `make train` in a fresh clone.
    monkeypatch.setenv(CALLER_PATH, "/nowhere")
    monkeypatch.chdir(tools.parent.parent)
    relative = program("tensorboard")
    assert relative == str((tools / "tensorboard").relative_to(tools.parent.parent))
    assert os.access(relative, os.X_OK)
    assert program("no-such-program").endswith(" -m no-such-program")


def test_the_end_says_what_came_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "best.json").write_text("{}")
    cfg = load_config(str(RECIPE), [f"run.dir={tmp_path}", "log.tensorboard=false"])
    records = [{"step": n, "reward_global": n / 100} for n in range(1, 41)]
    text = end_block(cfg, tmp_path, records, [look(0, 0.2), look(20, 0.4, 0.2), look(40, 0.3, 0.1, 0.04)], 90.0)
    assert text.startswith("done: 40 steps in 1:30\n  reward     +0.355 in the last 10 steps")
    assert "best       after step 20 (+0.400), kept as" in text and "checkpoints/step_000020" in text
    assert "+0.100 ± 0.040, better, more than chance" in " ".join(text.split())
    assert "\nnext:\n" in text and "tensorboard" not in text


def test_a_design_that_its_folder_does_not_tell_is_not_offered_to_be_drawn(tmp_path: Path) -> None:
    export = tmp_path / "run" / "export"
    export.mkdir(parents=True)
    for name in ("llm_config.json", "vit_config.json", "ema.safetensors", "ae.safetensors"):
        (export / name).write_text("{}")
    (tmp_path / "own.py").write_text(
        "from dataclasses import replace\nfrom srum_ds.models.bagel import FAMILY\n"
        "MINE = replace(FAMILY, kind='mine')\n"
    )
    for kind, offered in ((f"{tmp_path}/own.py:MINE", False), ("bagel", True), ("auto", True)):
        cfg = load_config(str(RECIPE), [f"run.dir={tmp_path / 'run'}", f"model.kind={kind}"])
        assert any(" generate " in command for command in next_commands(cfg, tmp_path / "run")) == offered, kind
