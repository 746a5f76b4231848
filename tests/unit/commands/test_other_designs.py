"""A design that an installed package registers goes through generate, ask and inspect: the folder says what it is."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srum_ds.commands.main import main
from srum_ds.common.seeds import uniform
from srum_ds.config.choices import MODELS

Captured = pytest.CaptureFixture[str]

# An image is a grid of codes, each a square of 4 by 4 pixels of one grey; codes are drawn evenly from the key alone.
SKETCH = """
import json
from dataclasses import dataclass

import torch

from srum_ds.common.errors import UserError
from srum_ds.common.seeds import uniform
from srum_ds.models.protocol import ModelFamily


@dataclass(frozen=True)
class SketchSampling:
    levels: int = 5
    text_scale: float = 2.0
    palette: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        if self.levels < 2:
            raise UserError(f"the sampler's levels is {self.levels}, expected at least 2")
        if not self.text_scale >= 0:
            raise UserError(f"the sampler's text_scale is {self.text_scale}, expected a number from 0")


class Sketch:
    def __init__(self, side):
        self.side = side

    def check_prompts(self, prompts):
        for prompt in prompts:
            if len(prompt.text) > 40:
                raise UserError(f"prompt {prompt.id!r} is longer than 40 letters.")

    def grid(self, height, width):
        if height % 4 or width % 4:
            raise UserError(f"{height}x{width}: expected multiples of 4.")
        return height // 4, width // 4

    def default_size(self, edit=None):
        return (self.side, self.side) if edit is None else (8, 12)

    def generate(self, prompts, keys, grid, sampling, edits=None, plans=None):
        shares = torch.stack([uniform(grid, *key) for key in keys])
        codes = (shares * sampling.levels).long()
        low, high = sampling.palette
        grey = low + (high - low) * codes / (sampling.levels - 1)
        if edits is not None:
            grey = torch.stack([edit.mean() for edit in edits])[:, None, None].expand_as(grey)
        images = grey.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].expand(-1, 3, -1, -1)
        return codes.flatten(1), (images * 255).round() / 255

    def plan(self, prompts, max_new_tokens, edits=None, temperature=0.0, seeds=None):
        raise UserError("this design writes no plans: leave --think out.")

    def answer(self, images, questions, max_new_tokens, image_index=None, temperature=0.0, seeds=None):
        return ["bright" if image.mean() > 0.5 else "dark" for image in images]

    def answer_logprobs(self, images, questions, answers, image_index=None):
        return torch.tensor([[0.25, 0.5] for _ in images]).log()


def load(folder, dtype, device, materialise, only_judges):
    return Sketch(json.loads((folder / "sketch.json").read_text())["side"])


def inspect(folder):
    facts = json.loads((folder / "sketch.json").read_text())
    return facts, f"side {facts['side']}"


FAMILY = ModelFamily(
    kind="sketch",
    modes=("all",),
    sampling_type=SketchSampling,
    matches=lambda folder: (folder / "sketch.json").is_file(),
    contains="sketch.json",
    load=load,
    inspect=inspect,
    edit_sampling={"palette": (0.0, 0.5)},
)
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the design ``sketch``, whose package is installed beside it."""
    site = tmp_path / "site"
    info = site / "sketch_design-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sketch-design\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[srum_ds.models]\nsketch = sketch_design:FAMILY\n")
    (site / "sketch_design.py").write_text(SKETCH)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "sketch.json").write_text('{"side": 16}')
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(MODELS, "_loaded", dict(MODELS._loaded))
    yield folder
    sys.modules.pop("sketch_design", None)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (6, 6), (51, 51, 51)).save(path)
    return path


def grey_of(path: Path) -> np.ndarray:
    """The grey of each token, of levels 0..255."""
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))[::4, ::4].astype(int)


def chunks_of(path: Path) -> dict[str, str]:
    with Image.open(path) as image:
        return {str(name).removeprefix("srum-ds:"): str(value) for name, value in image.info.items()}


def generate(model: Path, out: Path, *words: str) -> list[str]:
    return ["generate", "--model", str(model), "--prompt", "a cat", "--out", str(out), *words]


def test_it_draws_from_its_keys_with_its_own_sampler(model: Path, tmp_path: Path, capsys: Captured) -> None:
    words = ["--seed", "7", "--count", "2", "--guidance", "1.5", "--sampler", "levels=3", "--json"]
    assert main(generate(model, tmp_path / "out", *words)) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["number"] for line in lines] == [0, 1]
    for line in lines:
        expected = (uniform((4, 4), "generate", 7, "a cat", line["number"]) * 3).long() * 127.5
        assert np.abs(grey_of(Path(line["image"])) - expected.numpy()).max() <= 1
    said = chunks_of(Path(lines[0]["image"]))
    assert (said["levels"], said["text_scale"], said["palette"]) == ("3", "1.5", "(0.0, 1.0)")
    assert "num_timesteps" not in said


def test_it_edits_with_its_own_settings_and_size(model: Path, photo: Path, tmp_path: Path) -> None:
    assert main(generate(model, tmp_path / "out", "--image", str(photo))) == 0
    (path,) = (tmp_path / "out").iterdir()
    assert grey_of(path).tolist() == [[51] * 3] * 2
    assert chunks_of(path)["palette"] == "(0.0, 0.5)"
    assert main(generate(model, tmp_path / "wide", "--image", str(photo), "--sampler", "palette=[0.5, 1]")) == 0
    assert chunks_of(next((tmp_path / "wide").iterdir()))["palette"] == "(0.5, 1.0)"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "4"], "--steps sets num_timesteps, which the sampler of sketch does not have"),
        (["--steps", "4"], "levels, text_scale, palette"),
        (["--guidance", "nan"], "--guidance: the sampler's text_scale is nan"),
        (["--sampler", "level=3"], "did you mean --sampler levels"),
        (["--sampler", "levels=1"], "levels is 1, expected at least 2"),
        (["--sampler", "levels=many"], "--sampler levels=many"),
        (["--sampler", "levels"], "KEY=VALUE"),
        (["--sampler", "levels=[1"], "not valid YAML"),
        (["--sampler", "text_scale=3", "--guidance", "2"], "give one of them"),
        (["--sampler", "levels=3", "--sampler", "levels=4"], "given twice"),
        (["--size", "10x8"], "multiples of 4"),
        (["--think"], "writes no plans"),
    ],
)
def test_what_it_does_not_have_is_refused(
    model: Path, words: list[str], said: str, tmp_path: Path, capsys: Captured
) -> None:
    assert main(generate(model, tmp_path / "out", *words)) == 2
    message = capsys.readouterr().err
    assert said in message and message.startswith("srum-ds: ") and message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_it_is_asked_and_inspected(model: Path, photo: Path, capsys: Captured) -> None:
    words = ["ask", "--model", str(model), "--image", str(photo), "--question", "how bright is it?"]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{photo}: dark\n"
    assert main([*words, "--answer", "yes", "--answer", "no"]) == 0
    assert capsys.readouterr().out == f"{photo}: no  (yes 0.250  no 0.500)\n"
    assert main(["inspect", str(model)]) == 0
    assert capsys.readouterr().out == "side 16\n"
    assert main(["inspect", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"side": 16}


def test_a_folder_of_no_known_design_names_all_of_them(model: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["inspect", str(tmp_path / "empty")]) == 2
    message = capsys.readouterr().err
    assert "sketch: sketch.json" in message and "bagel: llm_config.json" in message
