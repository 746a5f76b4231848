"""What users get wrong when they start a run: what is typed, and what must be named in the one line that is said."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from srum_ds.config import load_config, save_config
from tests.support.paths import MODEL, ROOT

SHARDS = ROOT / "data_shards" / "shapes"
RECIPE = "tiny"
Make = Callable[[Path], list[str]]


@dataclass(frozen=True)
class WrongInput:
    """One kind. name: in a few words. typed: as the docs show it. make: prepares a folder and gives the words after
    `srum-ds train`. names: what the line must name, the key or file. remedy: words of what to do. locks: whether the
    run's folder is held by another process meanwhile.
    """

    name: str
    typed: str
    make: Make
    names: tuple[str, ...]
    remedy: str
    locks: bool = field(default=False)


def run_dir(folder: Path) -> Path:
    """Where the runs of the table write."""
    return folder / "run"


def words(folder: Path, *more: str, recipe: str | Path = RECIPE) -> list[str]:
    """The words of a run into ``folder``."""
    return [str(recipe), f"run.dir={run_dir(folder)}", *more]


def plain(*more: str) -> Make:
    """Settings that need nothing to be prepared."""
    return lambda folder: words(folder, *more)


def with_file(name: str, content: str, *more: str) -> Make:
    """Settings in which FILE stands for a file of this content."""

    def make(folder: Path) -> list[str]:
        path = folder / name
        path.write_text(content)
        return words(folder, *(word.replace("FILE", str(path)) for word in more))

    return make


def _with_copy(source: Path, setting: str, spoil: Callable[[Path], object]) -> Make:
    def make(folder: Path) -> list[str]:
        copy = folder / source.name
        shutil.copytree(source, copy)
        spoil(copy)
        return words(folder, f"{setting}={copy}")

    return make


def with_model(spoil: Callable[[Path], object]) -> Make:
    """A copy of the tiny model with something wrong."""
    return _with_copy(MODEL, "model.path", spoil)


def with_shards(spoil: Callable[[Path], object]) -> Make:
    """A copy of the shapes' shards with something wrong."""
    return _with_copy(SHARDS, "data.shards", spoil)


def with_run(before: list[str], now: list[str], finished: bool = False) -> Make:
    """A run that has begun with some settings, and is now given others."""

    def make(folder: Path) -> list[str]:
        path = run_dir(folder)
        path.mkdir()
        save_config(load_config(RECIPE, [f"run.dir={path}", *before]), path / "config.yaml")
        (path / "metrics.jsonl").write_text("")
        if finished:
            (path / "export").mkdir()
            (path / "export" / "ema.safetensors").write_text("")
        return words(folder, *now)

    return make


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _unknown_design(model: Path) -> None:
    for name in ("llm_config.json", "vit_config.json"):
        (model / name).unlink()
    (model / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')


def _index(model: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def _change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(bytes(data))


def _huge(model: Path) -> None:
    # A sparse file: it takes no room, but what is trained of it would.
    header = {"time_embedder.huge": {"dtype": "BF16", "shape": [1 << 40], "data_offsets": [0, 2 << 40]}}
    encoded = json.dumps(header).encode()
    with open(model / "ema.safetensors", "wb") as stream:
        stream.write(struct.pack("<Q", len(encoded)) + encoded)
        stream.truncate(8 + len(encoded) + (2 << 40))


def _recipe(folder: Path) -> list[str]:
    path = folder / "mine.yaml"
    path.write_text("train: {steps: 3\n")
    return words(folder, recipe=path)


def _shard(name: str) -> Callable[[Path], Path]:
    return lambda shards: shards / name


def _file_in_the_way(folder: Path) -> list[str]:
    run_dir(folder).write_text("")
    return words(folder)


WRONG_INPUTS = (
    WrongInput("unknown key", "trian.steps=3", plain("trian.steps=3"), ("trian.steps",), "known key is 'train.steps'"),
    WrongInput("wrong type", "train.steps=many", plain("train.steps=many"), ("train.steps=many",), "a whole number"),
    WrongInput("out of range", "train.lr=-1", plain("train.lr=-1"), ("train.lr=-1",), "of at least 0"),
    WrongInput(
        "settings that contradict each other",
        "rollout.micro_batch_prompts=3",
        plain("rollout.micro_batch_prompts=3"),
        ("rollout.micro_batch_prompts=3", "rollout.prompts_per_step=8"),
        "change one of them",
    ),
    WrongInput("unknown recipe", "tinny", lambda f: words(f, recipe="tinny"), ("tinny",), "name of a recipe"),
    WrongInput(
        "recipe that is no YAML", "mine.yaml", _recipe, ("mine.yaml, line 2", "not valid YAML"), "Correct it there"
    ),
    WrongInput("unknown name", "objective.name=ntf", plain("objective.name=ntf"), ("objective.name=ntf",), "one of"),
    WrongInput(
        "model folder that is not there",
        "model.path=nowhere",
        plain("model.path=nowhere"),
        ("model.path=nowhere",),
        "Give a checkpoint folder",
    ),
    WrongInput(
        "model of an unknown architecture",
        "model.path=llama",
        with_model(_unknown_design),
        ("model", "LlamaForCausalLM"),
        "Known are bagel",
    ),
    WrongInput(
        "tensor file that is cut off",
        "model.path=copied",
        with_model(lambda model: _cut(model / "ema.safetensors")),
        ("ema.safetensors", "cut off"),
        "copy it again",
    ),
    WrongInput(
        "index that names a file which is not there",
        "model.path=half",
        with_model(_index),
        ("model.safetensors.index.json", "model-00001-of-00002.safetensors"),
        "copy it there",
    ),
    WrongInput(
        "configuration that is no JSON",
        "model.path=edited",
        with_model(lambda model: (model / "llm_config.json").write_text("{'a': 1}")),
        ("llm_config.json", "not valid JSON"),
        "copy it again",
    ),
    WrongInput(
        "half of a model that it does not know",
        "model.trains=decoder",
        plain("model.trains=decoder"),
        ("model.trains=decoder",),
        "expected one of generation, transformer, lora",
    ),
    WrongInput(
        "picture size that the model does not take",
        "rollout.image_size=[60,60]",
        plain("rollout.image_size=[60,60]"),
        ("rollout.image_size=[60,60]",),
        "multiples of 16",
    ),
    WrongInput(
        "folder without shards",
        "data.shards=nowhere",
        plain("data.shards=nowhere"),
        ("data.shards=nowhere",),
        "srum-ds shards write",
    ),
    WrongInput(
        "shard that is missing",
        "data.shards=copied",
        with_shards(lambda shards: (shards / "train-000001.tar").unlink()),
        ("train-000001.tar", "missing"),
        "copy the shards again",
    ),
    WrongInput(
        "shard that has changed",
        "data.shards=edited",
        with_shards(lambda shards: _change(shards / "train-000000.tar")),
        ("train-000000.tar", "changed"),
        "copy the shards again",
    ),
    WrongInput(
        "split that is not there",
        "data.split=training",
        plain("data.split=training"),
        ("data.split=training",),
        "train",
    ),
    WrongInput(
        "prompts that are not there",
        "data.prompts=mine.txt",
        plain("data.prompts=mine.txt"),
        ("data.prompts=mine.txt",),
        "give the path of one",
    ),
    WrongInput(
        "file of prompts that is empty",
        "data.prompts=empty.txt",
        with_file("empty.txt", "\n", "data.prompts=FILE"),
        ("data.prompts=", "empty.txt", "holds no prompts"),
        "put at least one text there",
    ),
    WrongInput(
        "file of prompts of another kind",
        "data.prompts=mine.docx",
        with_file("mine.docx", "a red circle", "data.prompts=FILE"),
        ("data.prompts=", "mine.docx", ".txt, .jsonl"),
        "convert it",
    ),
    WrongInput(
        "column that is not there",
        "data.prompts=mine.csv",
        with_file("mine.csv", "id,sentence\n1,a red circle\n", "data.prompts=FILE"),
        ("mine.csv", "sentence"),
        "data.column",
    ),
    WrongInput(
        "question that is not there",
        "judge.global_template=mine.jinja",
        plain("judge.global_template=mine.jinja"),
        ("judge.global_template=mine.jinja",),
        "built-in names",
    ),
    WrongInput(
        "question with an unknown variable",
        "judge.global_template=mine.jinja",
        with_file("mine.jinja", "Is {{ caption }} in {{ prompt }}?", "judge.global_template=FILE"),
        ("judge.global_template=", "caption"),
        "it may use prompt",
    ),
    WrongInput(
        "question that is no Jinja",
        "judge.local_template=mine.jinja",
        with_file("mine.jinja", "Is it {{ phrase }?", "judge.local_template=FILE"),
        ("judge.local_template=", "line 1"),
        "correct the Jinja syntax",
    ),
    WrongInput(
        "own code: file that is not there",
        "judge.external=mine.py:score",
        plain("judge.external=mine.py:score"),
        ("judge.external=mine.py:score", "no file"),
        "expected module:name or file.py:name",
    ),
    WrongInput(
        "own code: name that is not there",
        "judge.external=mine.py:score",
        with_file(
            "mine.py", "def scores(images, prompts):\n    return [0.0] * len(prompts)\n", "judge.external=FILE:score"
        ),
        ("judge.external=", "mine.py", "has no 'score'"),
        "did you mean 'scores'?",
    ),
    WrongInput(
        "own code: file that fails",
        "objective.name=mine.py:LOSS",
        with_file("mine.py", "import numppy\n", "objective.name=FILE:LOSS"),
        ("objective.name=", "mine.py", "numppy"),
        "expected module:name or file.py:name",
    ),
    WrongInput(
        "Segment Anything that was not fetched",
        "regions.kind=sam",
        plain("regions.kind=sam", "regions.sam_model=nobody/no-such-sam"),
        ("regions.sam_model=nobody/no-such-sam", "local cache"),
        "hf download",
    ),
    WrongInput("folder that is a file", "run.dir=notes", _file_in_the_way, ("run.dir=", "is a file"), "choose another"),
    WrongInput(
        "folder in use", "run.dir=runs/mine", plain(), ("another process is training",), "wait for it", locks=True
    ),
    WrongInput(
        "folder of a run with other settings",
        "run.dir=runs/mine run.seed=2",
        with_run(["run.seed=1"], ["run.seed=2"]),
        ("run.seed was 1 and is now 2",),
        "another run.dir",
    ),
    WrongInput(
        "finished run with fewer steps",
        "run.dir=runs/mine train.steps=2",
        with_run(["train.steps=3"], ["train.steps=2"], finished=True),
        ("train.steps",),
        "another run.dir",
    ),
    WrongInput(
        "ranks that do not divide the prompts",
        "deepspeed.ranks=3",
        plain("deepspeed.ranks=3"),
        ("rollout.prompts_per_step=8", "3 ranks"),
        "make it a multiple of 3",
    ),
    WrongInput(
        "disk without room for a checkpoint",
        "model.path=huge",
        with_model(_huge),
        ("run.dir=", "a checkpoint takes"),
        "free some space",
    ),
    WrongInput(
        "DeepSpeed settings that are no JSON",
        "deepspeed.config=mine.json",
        with_file("mine.json", "{'zero_optimization': {}}", "deepspeed.config=FILE"),
        ("deepspeed.config", "mine.json", "is not JSON"),
        "Correct it",
    ),
    WrongInput(
        "DeepSpeed settings that the recipe has",
        "deepspeed.config=mine.json",
        with_file("mine.json", '{"optimizer": {}, "zero_optimization": {"stage": 3}}', "deepspeed.config=FILE"),
        ("deepspeed.config", "'optimizer'"),
        "train.lr",
    ),
)
