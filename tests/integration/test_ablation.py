"""Ablations: which runs a command means, what the table says of their outcomes, and a real one, stopped and resumed."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from srum_ds.commands.main import main
from srum_ds.common.errors import UserError
from srum_ds.config import load_config
from srum_ds.evaluation.ablation import ablate
from srum_ds.evaluation.ablation_plan import evaluation_words, plan_runs, split_words
from srum_ds.evaluation.ablation_table import RunOutcome, build_table, markdown, plot, write_table
from tests.support.paths import ROOT

TINY, SFT = str(ROOT / "launch/recipes/tiny.yaml"), str(ROOT / "launch/recipes/sft.yaml")
SMALL = [
    "train.steps=1",
    "train.timesteps_per_image=1",
    "rollout.prompts_per_step=1",
    "rollout.micro_batch_prompts=1",
    "rollout.images_per_prompt=2",
    "rollout.num_timesteps=2",
    "eval.prompts=4",
    "eval.num_timesteps=2",
    "log.tensorboard=false",
    "deepspeed.ranks=1",
]


def test_words_are_recipes_with_their_own_and_common_settings() -> None:
    recipes, shared = split_words(["a/srum.yaml", "b/sft.yaml:train.lr=1e-4:rollout.interval=[0,1]", "train.steps=3"])
    assert shared == ["train.steps=3"]
    assert [(name, own) for name, _, own in recipes] == [
        ("srum", ()),
        ("sft train.lr=1e-4 rollout.interval=[0,1]", ("train.lr=1e-4", "rollout.interval=[0,1]")),
    ]
    assert recipes[1][1] == Path("b/sft.yaml")
    # Settings that only the chosen code knows have three parts.
    deep = "objective.options.strength=3"
    assert split_words(["a.yaml", f"b.yaml:{deep}", deep]) == (
        [("a", Path("a.yaml"), ()), (f"b {deep}", Path("b.yaml"), (deep,))],
        [deep],
    )


@pytest.mark.parametrize(
    "words, said",
    [
        (["train.steps=3"], "which recipes"),
        (["a/srum.yaml", "b/srum.yaml"], "'srum'"),
        (["a/srum.yaml", "run.dir=x"], "--runs"),
        (["a/srum.yaml:run.seed=4"], "--seeds"),
    ],
)
def test_words_that_cannot_be_meant(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        split_words(words)


def test_plan_goes_seed_by_seed_into_folders_of_their_own(tmp_path: Path) -> None:
    planned = plan_runs([TINY, f"{SFT}:train.lr=1e-4", "train.steps=7"], [0, 5], tmp_path, jobs=2)
    assert [run.name for run in planned] == [
        "tiny, seed 0",
        "sft train.lr=1e-4, seed 0",
        "tiny, seed 5",
        "sft train.lr=1e-4, seed 5",
    ]
    assert len({run.run_dir for run in planned}) == 4
    # The evaluation's command line takes a word with = for a setting.
    assert all(run.run_dir.parent == tmp_path and "=" not in run.run_dir.name for run in planned)
    assert [(j.cfg.run.seed, j.cfg.train.steps, j.cfg.train.lr, j.cfg.deepspeed.ranks) for j in planned[2:]] == [
        (5, 7, 5e-4, 1),
        (5, 7, 1e-4, 1),
    ]
    with pytest.raises(UserError, match="model.path"):
        plan_runs([TINY, f"{SFT}:model.path=elsewhere"], [0], tmp_path)
    with pytest.raises(UserError, match="--seeds"):
        plan_runs([TINY], [1, 1], tmp_path)


def test_everything_is_measured_as_the_first_recipe_says() -> None:
    cfg = load_config(TINY, ["rollout.interval=[0.25,0.75]", "eval.text_scale=3", "eval.prompts=5"])
    other = load_config(TINY, ["rollout.text_scale=9", "rollout.timestep_shift=7", *evaluation_words(cfg)])
    assert evaluation_words(other) == evaluation_words(cfg)
    assert other.eval.interval == (0.25, 0.75) and other.eval.timestep_shift == 2.0


def two_recipes() -> list[RunOutcome]:
    base = [1, 0, 0, 0]
    return [
        RunOutcome("a", 0, base, [1, 1, 0, 0], images=100, seconds=10.0),
        RunOutcome("a", 1, base, [1, 1, 1, 1], images=100, seconds=30.0),
        RunOutcome("b", 0, base, [0, 0, 0, 0], images=100, seconds=5.0),
        RunOutcome("b", 1, base, [1, 0, 0, 0], images=60, seconds=5.0, stopped_by_watch=True),
    ]


def test_table_by_hand() -> None:
    table = build_table(two_recipes(), best_of_8=[1, 1, 1, 0])
    # Four 0/1 outcomes with one success: s = sqrt(0.75 / 3) = 0.5, / sqrt(4) = 0.25.
    assert table["base"] == {"mean": 0.25, "stderr": pytest.approx(0.25), "n": 4}
    assert table["best_of_8"]["mean"] == 0.75
    a, b = table["rows"]
    # Seeds 0.5 and 1.0: s = 0.3536, / sqrt(2) = 0.25.
    assert (a["recipe"], a["seeds"], a["mean"], a["stderr"]) == ("a", [0, 1], 0.75, pytest.approx(0.25))
    assert (a["images"], a["seconds"], b["images"]) == (100, 20.0, 80)
    assert a["difference"]["mean"] == 0.5 and a["gap_closed"] == pytest.approx(1.0)
    # Averaged over seeds the prompts differ by 0, 1, 0.5, 0.5: s = 0.4082, / 2 = 0.2041.
    assert a["difference"]["stderr_prompts"] == pytest.approx(0.2041, abs=1e-4)
    assert a["difference"]["z"] == pytest.approx(0.5 / 0.25)
    # a - b: 0.5 and 0.75, so 0.625 with an error of 0.125 over seeds.
    assert b["against_first"]["mean"] == pytest.approx(0.625)
    assert b["against_first"]["stderr_seeds"] == pytest.approx(0.125)
    assert b["stopped_by_watch"] == [1] and a["stopped_by_watch"] == []
    assert "against_first" not in a


def test_one_seed_has_no_error_over_seeds(tmp_path: Path) -> None:
    table = build_table(two_recipes()[:1])
    assert table["best_of_8"] is None and table["rows"][0]["gap_closed"] is None
    row = table["rows"][0]
    assert row["stderr"] is None and row["difference"]["stderr_seeds"] is None
    assert row["difference"]["z"] == pytest.approx(0.25 / 0.25)
    write_table(tmp_path, table)
    stored = json.loads((tmp_path / "ablation.json").read_text(), parse_constant=pytest.fail)
    assert stored == table and not math.isnan(stored["rows"][0]["mean"])


def test_runs_measured_against_different_bases_share_no_table() -> None:
    runs = two_recipes()
    with pytest.raises(ValueError, match="base"):
        build_table([*runs, RunOutcome("c", 0, [1, 1, 0, 0], [1, 1, 0, 0], 1, 1.0)])


def test_markdown_and_plot_show_every_row() -> None:
    table = build_table(two_recipes(), [1, 1, 1, 0], {"split": "test"}, ["c, seed 0: broke"])
    text = markdown(table, "srum-ds ablate x")
    for part in (
        "| a | 2 | 0.750 ± 0.250 | +0.500 ± 0.250 / 0.204 |",
        "srum-ds ablate x",
        "c, seed 0: broke",
        "| split",
    ):
        assert part in text
    assert "b (stopped by the watch: [1])" in text
    assert plot(table).startswith(b"\x89PNG")


def test_a_real_ablation_does_nothing_twice(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    words = [f"{SFT}:train.lr=1e-3", *SMALL]
    out, runs = tmp_path / "out", tmp_path / "runs"
    assert ablate(words, [0], out, runs, 1, console) == 0
    table = json.loads((out / "ablation.json").read_text())
    assert [row["recipe"] for row in table["rows"]] == ["sft train.lr=1e-3"]
    assert all(row["images"] == 2 and row["seconds"] > 0 for row in table["rows"])
    assert table["base"]["n"] == table["best_of_8"]["n"] == 4
    assert (out / "ablation.png").exists() and (out / "ablation.md").exists()
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}

    # Beside a run that cannot work, which is told, the finished one is neither trained nor drawn again.
    broken = f"{TINY}:deepspeed.config={tmp_path}/none.json"
    assert ablate([words[0], broken, *SMALL], [0], out, runs, 1, console) == 1
    again = json.loads((out / "ablation.json").read_text())
    assert again["rows"] == table["rows"] and "none.json" in again["failed"][0]
    assert before.items() <= {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}.items()

    # Other settings for the same folders are refused before anything runs.
    with pytest.raises(UserError, match="train.max_grad_norm was 1.0 and is now 2.0"):
        ablate([*words, "train.max_grad_norm=2"], [0], out, runs, 1, console)


def test_command_line_reads_seeds_before_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", TINY, "--seeds", "0", "1", "train.nonsense=3", "--runs", str(tmp_path)]) == 2
    assert "train.nonsense" in capsys.readouterr().err
    assert main(["ablate", "--jobs", "0", TINY]) == 2
    assert main(["ablate"]) == 2
