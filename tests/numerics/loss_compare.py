"""Compares this tree with another revision, bit for bit: `make loss-compare REV=<commit>`.

    python -m tests.numerics.loss_compare REV [--quick] [--keep FOLDER]

Both trees run the same commands with this environment's Python, in turn: short runs of the tiny recipe on one and on
two ranks, one short run for each objective and readout, and `generate` and `ask` with seeds. Compared are the lines of
``metrics.jsonl`` but for seconds, rates and memory, every tensor of the exported models, the pixels of the pictures and
the printed answers. Exit status 0 where nothing differs, 1 with a list of what does, 2 where a command fails.

A refactoring must end in 0. A change that is meant to move numbers says in its commit which of these lines it moved.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from srum_ds.monitoring.records import read_metrics

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = "srum_ds/assets/tiny_bagel"
PROMPTS = ("a red circle above a blue square", "two green crosses", "a striped yellow triangle")
FREE_KEYS = ("time_", "speed_", "memory_", "elapsed_", "wall_")
SHORT = ("train.steps=2", "train.save_every=2", "log.image_every=2")


def runs(quick: bool) -> dict[str, tuple[str, ...]]:
    """Name -> recipe and settings of each training run that is compared."""
    tiny = "launch/recipes/tiny.yaml"
    steps = "train.steps=2" if quick else "train.steps=20"
    found: dict[str, tuple[str, ...]] = {
        "one_rank": (tiny, steps, "deepspeed.ranks=1", "log.image_every=20"),
        "two_ranks": (tiny, "train.steps=2" if quick else "train.steps=24", "deepspeed.ranks=2", "log.image_every=24"),
    }
    changes = {
        **{name: (f"objective.name={name}",) for name in ("signed", "group", "awm", "dpo")},
        "generate": ("judge.readout=generate", "judge.max_new_tokens=1"),
        "likelihood": ("judge.readout=likelihood",),
        "grid": ("regions.kind=grid", "regions.filter=true"),
        "transformer_bf16": ("model.trains=transformer", "train.precision=bf16"),
        "rounds": ("train.mode=rounds", "train.rounds=1"),
        "checkpointing": ("train.activation_checkpointing=true", "train.schedule=cosine"),
    }
    found.update({name: (tiny, *SHORT, "deepspeed.ranks=1", *words) for name, words in changes.items()})
    for recipe in ("sft", "weighted", "paper", "lora", "local_only", "global_only"):
        found[recipe] = (f"launch/recipes/{recipe}.yaml", *SHORT, "deepspeed.ranks=1")
    return found


def commands() -> dict[str, tuple[str, ...]]:
    """Name -> words of each other `srum-ds` command.

    {out} is a folder of its own; {image} the first picture of ``draw``, at a path that both trees share, since the
    names of edited pictures depend on it.
    """
    prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    drawn = "{image}"
    return {
        "draw": ("generate", "--model", MODEL, *prompts, "--seed", "3", "--count", "2", "--out", "{out}"),
        "guided": ("generate", "--model", MODEL, *prompts, "--steps", "10", "--guidance", "1.25", "--out", "{out}"),
        "edit": ("generate", "--model", MODEL, "--prompt", "make it blue", "--image", drawn, "--out", "{out}"),
        "think": ("generate", "--model", MODEL, "--prompt", PROMPTS[0], "--think", "--think-tokens", "4")
        + ("--temperature", "0.7", "--out", "{out}"),
        "ask": ("ask", "--model", MODEL, "--image", drawn, "--question", "is there a red circle?")
        + ("--answer", "yes", "--answer", "no", "--json"),
    }


def entry_module(tree: Path) -> str:
    """The module behind the console script `srum-ds` of a tree."""
    found = re.search(r"srum-ds = ([\w.]+):main", (tree / "setup.py").read_text(encoding="utf-8"))
    if found is None:
        raise SystemExit(f"{tree}/setup.py names no console script srum-ds")
    return found.group(1)


def call(tree: Path, words: Sequence[str]) -> str:
    """Runs `srum-ds WORDS` in a tree and returns what it printed."""
    code = f"import sys; from {entry_module(tree)} import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-P", "-c", code, *words]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        print(f"{tree}: srum-ds {' '.join(words)} ended with {done.returncode}\n{done.stderr[-4000:]}", file=sys.stderr)
        raise SystemExit(2)
    return done.stdout


def make(tree: Path, out: Path, quick: bool) -> None:
    """Runs everything in a tree; results lie in ``out``. What is there already is not done again."""
    for name, words in commands().items():
        folder = out / "commands" / name
        if not (folder / "printed.txt").exists():
            folder.mkdir(parents=True, exist_ok=True)
            image = out.parent / "image.png"
            printed = call(tree, [word.format(out=folder, image=image) for word in words])
            if name == "draw":
                shutil.copyfile(min(folder.glob("*.png")), image)
            (folder / "printed.txt").write_text(printed.replace(str(out), "OUT"))
    for name, (recipe, *overrides) in runs(quick).items():
        folder = out / "runs" / name
        if not (folder / "export" / "ema.safetensors").exists():
            call(tree, ["train", recipe, f"run.dir={folder}", "log.tensorboard=false", *overrides])
            print(f"{tree.name}: {name}", flush=True)


def metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` without ``FREE_KEYS``; a NaN becomes a word, so that it equals itself.

    Steps count from 1, also those of trees that counted from 0.
    """
    lines = read_metrics(path)
    return [{key: str(value) for key, value in line.items() if not key.startswith(FREE_KEYS)} for line in lines]


def differences(old: Path, new: Path) -> list[str]:
    """What differs between two folders that ``make`` wrote, one line each."""
    said: list[str] = []
    for path in sorted(old.glob("runs/*/metrics.jsonl")):
        name = path.parent.name
        pairs = zip(metrics(path), metrics(new / "runs" / name / "metrics.jsonl"), strict=True)
        for step, (before, after) in enumerate(pairs):
            said += [
                f"{name}, step {step}: {key} was {value} and is {after.get(key)}"
                for key, value in before.items()
                if after.get(key) != value
            ]
    for path in sorted(old.glob("runs/*/export/**/*.safetensors")):
        said += _tensors(path.relative_to(old), load_file(path), load_file(new / path.relative_to(old)))
    for path in sorted([*old.glob("commands/*/*.png"), *old.glob("runs/*/samples/*.png")]):
        other = new / path.relative_to(old)
        if not other.exists() or not np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(other))):
            said.append(f"{path.relative_to(old)}: another picture, or none")
    for path in sorted(old.glob("commands/*/printed.txt")):
        if path.read_text() != (new / path.relative_to(old)).read_text():
            said.append(f"{path.relative_to(old)}: other words")
    return said


def _tensors(name: Path, before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> list[str]:
    if before.keys() != after.keys():
        return [f"{name}: other tensors are stored"]
    different = [key for key, tensor in before.items() if not torch.equal(tensor, after[key])]
    if not different:
        return []
    return [f"{name}: {len(different)} of {len(before)} tensors differ, the first is {different[0]}"]


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision")
    parser.add_argument("--quick", action="store_true", help="two steps a run")
    parser.add_argument("--keep", type=Path, help="folder of the results; those of REV are taken up again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.keep.resolve() if arguments.keep else Path(temporary)
        commit = subprocess.run(
            ["git", "rev-parse", "--verify", f"{arguments.revision}^{{commit}}"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        old, new = work / commit[:12], work / "this_tree"
        shutil.rmtree(new, ignore_errors=True)
        tree = Path(temporary) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", str(tree), commit], cwd=ROOT, check=True)
        try:
            make(tree, old, arguments.quick)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)
        make(ROOT, new, arguments.quick)
        found = differences(old, new)
        compared = [len(list(old.glob(f"runs/*/{what}"))) for what in ("metrics.jsonl", "export/**/*.safetensors")]
    for line in found:
        print(line)
    verdict = f"{len(found)} differences" if found else "nothing differs"
    print(f"{commit[:12]} against this tree: {verdict} in {compared[0]} runs and {compared[1]} exported files")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
