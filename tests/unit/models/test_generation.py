"""``generation.json``: a trained model is drawn as its training drew, and a file that is none says what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from srum_ds.commands.main import main
from srum_ds.common.errors import UserError
from srum_ds.common.files import GENERATION, weights_sha256
from srum_ds.evaluation.draw_request import DrawOptions, PromptChoice, draw_request
from srum_ds.models import family_of
from srum_ds.models.flow import FlowSampling
from srum_ds.models.generation import generation_of, read_generation, write_generation
from tests.support.tiny_models import write_tiny_bagel
from tests.unit.commands.test_model_commands import chunks_of, pixels_of

Captured = pytest.CaptureFixture[str]
TRAINED = FlowSampling(num_timesteps=3, timestep_shift=2.0, text_scale=1.25, interval=(0.0, 1.0))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bagel(tmp_path_factory.mktemp("model"))


@pytest.fixture
def trained(plain: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(plain, tmp_path / "export")
    write_generation(folder, generation_of(family_of(folder), TRAINED, (16, 32), {"step": 120, "weights": "ema"}))
    return folder


def test_it_is_read_as_it_was_written_and_changes_no_hash_of_weights(plain: Path, trained: Path) -> None:
    found = read_generation(trained, family_of(trained))
    assert found is not None and FlowSampling(**found.sampling) == TRAINED
    assert (found.kind, found.image_size, found.about) == ("bagel", (16, 32), {"step": 120, "weights": "ema"})
    assert weights_sha256(trained) == weights_sha256(plain)
    assert read_generation(plain, family_of(plain)) is None


def test_generate_draws_as_the_training_drew_and_options_win(
    plain: Path, trained: Path, tmp_path: Path, capsys: Captured
) -> None:
    given = ["--prompt", "no", "--out"]
    assert main(["generate", "--model", str(trained), *given, str(tmp_path / "a")]) == 0
    printed, told = capsys.readouterr()
    assert told.count("\n") == 1 and f"drawn as {trained / GENERATION} says" in told and "text_scale 1.25" in told
    assert "16x32" in told and printed == f"{tmp_path / 'a' / 'no-seed0-0.png'}\n"
    chunks = chunks_of(tmp_path / "a" / "no-seed0-0.png")
    assert (chunks["num_timesteps"], chunks["text_scale"], chunks["interval"]) == ("3", "1.25", "(0.0, 1.0)")
    assert pixels_of(tmp_path / "a" / "no-seed0-0.png").shape == (16, 32, 3)
    more = ["--guidance", "3", "--size", "16x16"]
    assert main(["generate", "--model", str(trained), *given, str(tmp_path / "b"), *more]) == 0
    chunks = chunks_of(tmp_path / "b" / "no-seed0-0.png")
    assert (chunks["num_timesteps"], chunks["text_scale"], chunks["timestep_shift"]) == ("3", "3.0", "2.0")
    assert pixels_of(tmp_path / "b" / "no-seed0-0.png").shape == (16, 16, 3)
    capsys.readouterr()
    assert main(["generate", "--model", str(plain), *given, str(tmp_path / "c"), "--steps", "2"]) == 0
    assert capsys.readouterr().err == ""
    assert chunks_of(tmp_path / "c" / "no-seed0-0.png")["text_scale"] == "4.0"


def test_an_edit_keeps_what_edits_are_drawn_with(trained: Path, tmp_path: Path) -> None:
    photo = tmp_path / "a" / "no-seed0-0.png"
    assert main(["generate", "--model", str(trained), "--prompt", "no", "--out", str(photo.parent)]) == 0
    edit = ["--prompt", "yes", "--image", str(photo), "--out", str(tmp_path / "b")]
    assert main(["generate", "--model", str(trained), *edit]) == 0
    (edited,) = (tmp_path / "b").iterdir()
    chunks = chunks_of(edited)
    assert (chunks["num_timesteps"], chunks["image_scale"], chunks["renorm"]) == ("3", "2.0", "text_channel")


def test_a_benchmark_and_a_whole_set_begin_from_it_too(trained: Path, tmp_path: Path, capsys: Captured) -> None:
    choice = PromptChoice("shapes", limit=1)
    drawing = draw_request(trained, False, choice, DrawOptions(("text_scale=2",)), tmp_path).drawing
    assert (drawing.sampling.num_timesteps, drawing.sampling.text_scale, drawing.image_size) == (3, 2.0, (16, 32))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("no\n")
    out = tmp_path / "set"
    given = ["--prompts", str(prompts), "--out", str(out), "--processes", "1", "--guidance", "2"]
    assert main(["generate", "--model", str(trained), *given]) == 0
    assert "text_scale 1.25" in capsys.readouterr().out
    facts = json.loads((out / "drawn.json").read_text())
    assert (facts["sampling"]["text_scale"], facts["sampling"]["timestep_shift"]) == (2.0, 2.0)
    assert facts["image_size"] == [16, 32]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("{", "cannot be read"),
        ("[]", r'expected an object with "schema": 1'),
        ({"schema": 2}, "its schema is 2, this srum-ds reads 1"),
        ({"kind": "janus"}, "is of a model of the design 'janus', the folder of bagel"),
        ({"sampling": []}, "expected the sampler's settings"),
        ({"sampling": {"cfg": 3}}, "sampling.cfg: the sampler of bagel has no such setting"),
        ({"sampling": {"text_scale": -1}}, "text_scale is -1.0, expected a number from 0"),
        ({"image_size": [64]}, r"expected \"image_size\" as \[height, width\]"),
        ({"image_size": [64, True]}, 'expected "image_size"'),
    ],
)
def test_a_file_that_cannot_be_meant_is_named_with_its_cure(trained: Path, change: Any, said: str) -> None:
    path = trained / GENERATION
    text = change if isinstance(change, str) else json.dumps({**json.loads(path.read_text()), **change})
    path.write_text(text)
    with pytest.raises(UserError, match=f"generation.json: .*{said}.*remove the file to draw by the design's own"):
        read_generation(trained, family_of(trained))
