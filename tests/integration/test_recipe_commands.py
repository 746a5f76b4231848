"""The commands in the heads of the recipes of full size, and those of the docs that name one, run against stand-ins.

Programs from outside (`hf`, `git`, `deepspeed`, `sbatch`, `srun`, `make`) and `srum-ds` write down their words; then
these are acted on for real as far as that needs neither weights nor a GPU.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from cyclopts import CycloptsError

from srum_ds.commands.launcher import build_command
from srum_ds.commands.main import app, main
from srum_ds.common.errors import UserError
from srum_ds.config import check_world, load_config, split_arguments
from srum_ds.evaluation.benchmarks import load_benchmark
from srum_ds.models.showo.config import MAGVIT_FOLDER, find_llm
from srum_ds.planning.hardware import gpu_named
from srum_ds.prompts.prompt_set import prompt_folder
from srum_ds.prompts.reader import PromptReader
from tests.support.paths import RECIPES, ROOT

FULL_SIZE = sorted(path.stem for path in RECIPES.glob("*.yaml") if "obody has run this file" in path.read_text())
PROGRAMS = ("hf", "git", "deepspeed", "torchrun", "srum-ds", "srun", "sbatch", "make")
GPUS = 8
"""Of the machine that the recipes name, where a command does not say."""

RECORD = '#!/usr/bin/env bash\nprintf "%q " "${0##*/}" "$@" >> "$SAID"\necho >> "$SAID"\n'
# The job script's ranks, and what launch/train.sh hands over to: the Python beside `deepspeed`.
SRUN = RECORD + 'shift 2\nSLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=16 SLURM_STEP_TASKS_PER_NODE="8(x2)" "$@"\n'
SBATCH = RECORD + 'while [ "${1#--}" != "$1" ]; do shift; done\nexec bash "$@"\n'
SLURM = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "node7", "SLURM_JOB_ID": "41"}
COMPBENCH_URL = "https://github.com/Karine-Huang/T2I-CompBench"
COMPBENCH = {"color": "a green bench", "spatial": "a dog left of a chair", "complex": "the soft cat and the hard stone"}


class Said:
    """Runs shell lines with the stand-ins on the path, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tools = folder / "tools"
        self.file = folder / "said"
        self.tools.mkdir()
        others = {"scontrol": "#!/bin/sh\necho node7\n", "python": RECORD, "srun": SRUN, "sbatch": SBATCH}
        for name, text in {**dict.fromkeys(PROGRAMS, RECORD), **others}.items():
            (self.tools / name).write_text(text)
            (self.tools / name).chmod(0o755)
        (folder / "launch").symlink_to(ROOT / "launch")

    def by(self, lines: Sequence[str]) -> list[list[str]]:
        """The words of every program that the lines have called, in order."""
        self.file.unlink(missing_ok=True)
        path = f"{self.tools}{os.pathsep}{os.defpath}"
        environment = SLURM | {"PATH": path, "SAID": str(self.file), "NUM_RANKS": str(GPUS)}
        script = ["bash", "-euc", "\n".join(lines)]
        done = subprocess.run(script, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return [shlex.split(line) for line in self.file.read_text().splitlines()]


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Said:
    # What the commands write and read lies in the same folder; recipes are found in the package's.
    monkeypatch.chdir(tmp_path)
    return Said(tmp_path)


def head_of(recipe: str) -> list[str]:
    """The shell lines in a recipe's head, and the commands that its sentences quote."""
    head = (RECIPES / f"{recipe}.yaml").read_text().split("\n\n")[0]
    lines = re.findall(r"^#   ( *\S.*)$", head, re.MULTILINE)
    return [*lines, *re.findall(r"`(srum-ds [^`]+)`", head)]


def of_docs() -> list[str]:
    """The lines of code in README and docs that name a recipe of full size."""
    found: dict[str, None] = {}
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for code in re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in code.replace("\\\n", " ").splitlines():
                words = line.partition(" # ")[0].strip()
                if re.match(rf"({'|'.join(PROGRAMS)}|bash) ", words) and named_in(words):
                    found[words] = None
    return list(found)


def named_in(line: str) -> bool:
    names = "|".join(FULL_SIZE)
    return re.search(rf"launch/recipes/({names})\.yaml|srum-ds train ({names})\b", line) is not None


class Machine:
    """What the words of the programs do to a machine: what is on its disk, and what is refused."""

    def __init__(self) -> None:
        self.models: set[str] = {"facebook/sam-vit-huge"}
        self.ran: list[str] = []

    def act(self, words: Sequence[str]) -> None:
        self.ran.append(words[0])
        if words[0] == "hf":
            self.download(list(words[1:]))
        elif words[0] == "git":
            clone_compbench(list(words[1:]))
        elif words[0] == "srum-ds":
            self.own(list(words[1:]))
        elif words[0] in ("deepspeed", "torchrun"):
            script = next(k for k, word in enumerate(words) if word.endswith("train.sh"))
            flags = dict(zip(words[1:script], words[2:script], strict=False))
            ranks = int(flags.get("--num_gpus") or flags.get("--nproc-per-node") or GPUS)
            self.train(words[script + 1 :], ranks * int(flags.get("--nnodes", 1)))
        elif words[0] == "python" and str(words[2]).endswith("train.sh"):
            # A rank under Slurm: -u launch/train.sh RECIPE ...; the stand-in says 16 of them.
            self.train(words[3:], 16)
        else:
            assert words[0] in ("srun", "sbatch", "make", "python"), words

    def download(self, words: list[str]) -> None:
        assert words[0] == "download" and re.fullmatch(r"[\w.-]+/[\w.-]+", words[1]), words
        assert words[2:3] in ([], ["--local-dir"]), words
        self.models.add(words[3] if words[2:] else words[1])

    def own(self, words: list[str]) -> None:
        if words[0] == "plan":
            # tests/unit/planning makes the plans themselves.
            _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
            load_config(*split_arguments(bound.args))
            assert gpu_named(bound.arguments.get("gpu", "h100-80g"))
        elif words[0] == "train":
            # A preflight would miss the model's files, which nobody has downloaded here.
            _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
            cfg = load_config(*split_arguments(bound.args))
            assert build_command(cfg, *split_arguments(bound.args))
            self.train(bound.args, cfg.deepspeed.ranks)
        elif words[0] == "shards":
            assert main(words) == 0
        else:
            app.parse_args(words, exit_on_error=False, print_error=False)
            if "--benchmark" in words:
                benchmark = load_benchmark(words[words.index("--benchmark") + 1])
                assert benchmark.read(Path(words[words.index("--prompts") + 1]))

    def train(self, words: Sequence[str], ranks: int) -> None:
        recipe, overrides = split_arguments(list(words))
        cfg = load_config(recipe, overrides)
        check_world(cfg, ranks)
        stems = {f"runs/{stem}/export" for stem in FULL_SIZE}
        assert cfg.written("model.path") in self.models | stems
        if Path("data_shards/compbench").exists():
            with PromptReader(prompt_folder(cfg), cfg.data.split) as reader:
                assert len(reader) == len(COMPBENCH)


def clone_compbench(words: list[str]) -> None:
    """The files of a checkout that the prompts are read from, with a prompt each."""
    assert words == ["clone", COMPBENCH_URL]
    folder = Path("T2I-CompBench/examples/dataset")
    folder.mkdir(parents=True)
    for category, text in COMPBENCH.items():
        for split in ("train", "val"):
            (folder / f"{category}_{split}.txt").write_text(f"{text}\n")
    for kind in ("spatial", "action"):
        (folder / f"complex_val_{kind}.txt").write_text(f"{COMPBENCH['complex']}\n")


def test_the_recipes_of_full_size_are_these() -> None:
    assert FULL_SIZE == sorted(
        ["bagel", "bagel_1024", "bagel_lora", "bagel_paper", "blip3o", "janus_pro", "qwen_image", "showo"]
    )


def test_the_downloader_is_a_program_of_the_installed_library() -> None:
    """`huggingface-cli` was one until huggingface_hub 1.0."""
    programs = {point.name for point in entry_points(group="console_scripts") if "huggingface_hub" in point.value}
    assert "hf" in programs
    named = {
        word for recipe in FULL_SIZE for word in re.findall(r"\b(hf|huggingface-cli)\b", "\n".join(head_of(recipe)))
    }
    assert named <= programs


@pytest.mark.parametrize("recipe", FULL_SIZE)
def test_the_commands_of_a_recipe_of_full_size_work(recipe: str, said: Said) -> None:
    machine = Machine()
    if recipe == "bagel_1024":
        # It comes after bagel.yaml, which says what to fetch.
        clone_compbench(["clone", COMPBENCH_URL])
    for words in said.by(head_of(recipe)):
        machine.act(words)
    ran = [name for name in ("hf", "git", "srum-ds", "deepspeed") if name in machine.ran]
    assert ran == (["srum-ds", "deepspeed"] if recipe == "bagel_1024" else ["hf", "git", "srum-ds", "deepspeed"])


def test_show_o_finds_its_language_model_where_the_commands_put_it(said: Said) -> None:
    """The released config.json names it by its id on the hub."""
    for words in said.by(head_of("showo")):
        if words[0] == "hf":
            Path(words[4]).mkdir(parents=True, exist_ok=True)
    folder = Path(load_config(RECIPES / "showo.yaml").model.path)
    assert find_llm(folder, "microsoft/phi-1_5").is_dir()
    assert (folder / MAGVIT_FOLDER).is_dir()


def test_the_docs_commands_of_recipes_of_full_size_work(said: Said) -> None:
    lines = of_docs()
    assert {line.split()[0] for line in lines} >= {"srum-ds", "deepspeed", "sbatch", "torchrun"}
    machine = Machine()
    machine.models |= {load_config(RECIPES / f"{recipe}.yaml").written("model.path") for recipe in FULL_SIZE}
    for words in said.by(lines):
        machine.act(words)


@pytest.mark.parametrize(
    "line",
    [
        "deepspeed launch/train.sh launch/recipes/bagel.yaml after bagel.yaml is finished",
        "deepspeed --num_gpus 5 launch/train.sh launch/recipes/bagel.yaml",
        "deepspeed launch/train.sh launch/recipes/bagle.yaml",
        "srum-ds eval runs/bagel --bench compbench",
        "srum-ds shards write compbench T2I-CompBench --out data_shards/compbench",
        "hf download ByteDance-Seed/BAGEL-7B-MoT --folder models/BAGEL-7B-MoT",
    ],
)
def test_a_command_that_would_fail_is_found(line: str, said: Said) -> None:
    machine = Machine()
    machine.models.add("models/BAGEL-7B-MoT")
    with pytest.raises((UserError, CycloptsError, AssertionError)):
        for words in said.by([line]):
            machine.act(words)
