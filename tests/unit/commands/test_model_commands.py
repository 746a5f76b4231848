"""`srum-ds generate` and `srum-ds ask` on a whole small folder: files, options, what is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from srum_ds.commands.generate import parse_size
from srum_ds.commands.main import main
from srum_ds.commands.placement import Placement, resolve_placement
from srum_ds.common.errors import UserError
from srum_ds.common.image_files import read_image
from srum_ds.models import load_model
from srum_ds.models.flow import FlowSampling
from srum_ds.types import Prompt
from tests.support.tiny_models import write_tiny_bagel

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bagel(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def chunks_of(path: Path) -> dict[str, str]:
    with Image.open(path) as picture:
        return {key.removeprefix("srum-ds:"): value for key, value in picture.info.items()}  # type: ignore[union-attr]


def test_pictures_depend_on_themselves_alone(model: Path, tmp_path: Path) -> None:
    words = ["generate", "--model", str(model), "--seed", "3", "--steps", "3", "--guidance", "2"]
    several = ["--prompt", "a red cat", "--prompt", "no", "--count", "2", "--out", str(tmp_path / "a")]
    assert main([*words, *several]) == 0
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [f"{slug}-seed3-{n}.png" for slug in ("a-red-cat", "no") for n in (0, 1)]
    assert main([*words, "--prompt", "no", "--out", str(tmp_path / "b")]) == 0
    together, alone = (pixels_of(tmp_path / folder / "no-seed3-0.png") for folder in "ab")
    # A value may sit on the edge between two of 256 levels.
    assert np.abs(together - alone).max() <= 1 and (together != alone).mean() < 0.001
    assert np.abs(alone - pixels_of(tmp_path / "a" / "no-seed3-1.png")).max() > 5
    chunks = chunks_of(tmp_path / "b" / "no-seed3-0.png")
    assert chunks["prompt"] == "no" and chunks["seed"] == "3" and chunks["num_timesteps"] == "4"
    assert "plan" not in chunks and alone.shape == (64, 64, 3)


def test_the_options_reach_the_sampler(model: Path, tmp_path: Path) -> None:
    words = ["generate", "--model", str(model), "--prompt", "a", "--out", str(tmp_path)]
    words += ["--steps", "4", "--guidance", "3", "--interval", "0.2", "0.9", "--renorm", "channel"]
    words += ["--renorm-min", "0.1", "--shift", "2", "--size", "32x48"]
    assert main(words) == 0
    sampling = FlowSampling(5, 2.0, 3.0, 1.0, (0.2, 0.9), "channel", 0.1)
    keys = [("generate", 0, "a", 0)]
    expected = load_model(model).generate([Prompt("0", "a")], keys, (2, 3), sampling)[1][0]
    found = pixels_of(tmp_path / "a-seed0-0.png")
    assert np.abs(found - (expected * 255).round().permute(1, 2, 0).numpy()).max() <= 1
    for option, value in (("renorm", "channel"), ("interval", "(0.2, 0.9)"), ("timestep_shift", "2.0")):
        assert chunks_of(tmp_path / "a-seed0-0.png")[option] == value


def test_editing(model: Path, photo: Path, tmp_path: Path) -> None:
    words = ["generate", "--model", str(model), "--steps", "3", "--seed", "1"]
    assert main([*words, "--prompt", "no", "--image", str(photo), "--out", str(tmp_path / "a")]) == 0
    (edited,) = (tmp_path / "a").iterdir()
    adapter = load_model(model)
    height, width = adapter.default_size(read_image(photo))
    assert pixels_of(edited).shape == (height, width, 3)
    # The settings of BAGEL's own demo for editing, unless others are given.
    sampling = FlowSampling(4, 3.0, 4.0, 2.0, (0.0, 1.0), "text_channel")
    grid = adapter.grid(height, width)
    keys = [("generate", 1, "no", 0)]
    expected = adapter.generate([Prompt("0", "no")], keys, grid, sampling, [read_image(photo)])[1][0]
    assert np.abs(pixels_of(edited) - (expected * 255).round().permute(1, 2, 0).numpy()).max() <= 1
    chunks = chunks_of(edited)
    assert chunks["image"] == str(photo) and chunks["image_scale"] == "2.0"
    given = ["--image-guidance", "1", "--interval", "0.4", "1", "--renorm", "global", "--size", "16x32"]
    assert main([*words, "--prompt", "no", "--image", str(photo), *given, "--out", str(tmp_path / "b")]) == 0
    (other,) = (tmp_path / "b").iterdir()
    assert pixels_of(other).shape == (16, 32, 3) and chunks_of(other)["renorm"] == "global"


def test_one_picture_to_edit_for_each_prompt(model: Path, photo: Path, tmp_path: Path, capsys: Captured) -> None:
    second = tmp_path / "second.png"
    Image.new("RGB", (16, 16), (250, 10, 10)).save(second)
    words = ["generate", "--model", str(model), "--steps", "2", "--out", str(tmp_path / "out")]
    both = ["--prompt", "no", "--prompt", "yes", "--image", str(photo), "--image", str(second), "--json"]
    assert main([*words, *both]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    sizes = [pixels_of(Path(line["image"])).shape for line in lines]
    assert [line["prompt"] for line in lines] == ["no", "yes"]
    # Each edit has the size of its own image, rounded to whole tokens.
    assert sizes == [(32, 64, 3), (16, 16, 3)]
    assert main([*words, "--prompt", "a", "--image", str(photo), "--image", str(second)]) == 2
    assert "one for all" in capsys.readouterr().err


def test_thinking_prints_the_plan_and_keeps_it(model: Path, tmp_path: Path, capsys: Captured) -> None:
    words = ["generate", "--model", str(model), "--prompt", "a red cat", "--steps", "2", "--count", "2"]
    words += ["--think", "--think-tokens", "5", "--size", "16x16"]
    assert main([*words, "--out", str(tmp_path / "a"), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (plan,) = load_model(model).plan([Prompt("0", "a red cat")], 5)
    assert [line["plan"] for line in lines] == [plan, plan]
    assert chunks_of(Path(lines[1]["image"]))["plan"] == plan
    assert main([*words, "--out", str(tmp_path / "b")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("  plan: ") == 2 and plan in shown
    sampled = [*words, "--temperature", "2", "--json", "--out"]
    assert main([*sampled, str(tmp_path / "c")]) == 0
    plans = [json.loads(line)["plan"] for line in capsys.readouterr().out.splitlines()]
    assert plans[0] != plans[1]
    assert main([*sampled, str(tmp_path / "d")]) == 0
    assert [json.loads(line)["plan"] for line in capsys.readouterr().out.splitlines()] == plans


def test_nothing_is_overwritten_unasked(model: Path, tmp_path: Path, capsys: Captured) -> None:
    words = ["generate", "--model", str(model), "--prompt", "x", "--steps", "1", "--out", str(tmp_path)]
    assert main(words) == 0
    before = (tmp_path / "x-seed0-0.png").stat().st_mtime_ns
    assert main(words) == 2
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "x-seed0-0.png").stat().st_mtime_ns == before
    assert main([*words, "--force", "--size", "32", "48"]) == 0
    assert pixels_of(tmp_path / "x-seed0-0.png").shape == (32, 48, 3)


def test_prompts_that_look_alike_have_files_of_their_own(model: Path, tmp_path: Path) -> None:
    prompts = ("x", "X!", "红猫", "蓝狗", "y" * 70, "y" * 71)
    words = [word for prompt in prompts for word in ("--prompt", prompt)]
    options = ["--out", str(tmp_path), "--steps", "1", "--size", "16x16"]
    assert main(["generate", "--model", str(model), *words, *options]) == 0
    written = {chunks_of(path)["prompt"] for path in tmp_path.iterdir()}
    assert written == set(prompts)


def test_bfloat16(model: Path, photo: Path, tmp_path: Path, capsys: Captured) -> None:
    words = ["generate", "--model", str(model), "--prompt", "a", "--image", str(photo), "--steps", "4"]
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    assert main([*words, "--out", str(tmp_path / "b"), "--dtype", "bfloat16", "--device", "cpu"]) == 0
    one, other = (pixels_of(next((tmp_path / folder).iterdir())) for folder in "ab")
    assert 0 < np.abs(one - other).mean() < 12
    ask = ["ask", "--model", str(model), "--image", str(photo), "--question", "a", "--dtype", "bfloat16"]
    assert main(ask) == 0


def test_where_a_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_placement(Placement()) == (cpu, torch.float32)
    assert resolve_placement(Placement("cpu", "bfloat16")) == (cpu, torch.bfloat16)
    with pytest.raises(UserError, match="--device cpu"):
        resolve_placement(Placement("cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_placement(Placement()) == (torch.device("cuda"), torch.bfloat16)
    assert resolve_placement(Placement("cuda", "float32")) == (torch.device("cuda"), torch.float32)
    with pytest.raises(UserError, match="1 GPUs"):
        resolve_placement(Placement("cuda:1"))


def test_sizes_are_height_and_width() -> None:
    assert parse_size(["512x768"]) == parse_size(["512", "768"]) == parse_size(["512X768"]) == (512, 768)
    assert parse_size([]) is None


# ---- asking


def test_ask(model: Path, photo: Path, capsys: Captured) -> None:
    words = ["ask", "--model", str(model), "--image", str(photo), "--question", "a red cat?"]
    assert main([*words, "--max-new-tokens", "4"]) == 0
    adapter = load_model(model)
    picture = [read_image(photo)]
    (expected,) = adapter.answer(picture, ["a red cat?"], 4)
    assert capsys.readouterr().out == f"{photo}: {expected}\n"
    assert main([*words, "--answer", "yes", "--answer", "no", "--json"]) == 0
    reply = json.loads(capsys.readouterr().out)
    shares = adapter.answer_logprobs(picture, ["a red cat?"], ["yes", "no"]).exp()[0].tolist()
    assert reply["probabilities"] == pytest.approx(dict(zip(("yes", "no"), shares, strict=True)))
    assert reply["answer"] == ("yes" if shares[0] > shares[1] else "no")
    assert main([*words, "--answer", "yes"]) == 2


def test_sampled_answers_follow_their_seed(model: Path, photo: Path, capsys: Captured) -> None:
    words = ["ask", "--model", str(model), "--image", str(photo), "--question", "a", "--temperature", "3", "--json"]

    def reply(seed: int) -> str:
        assert main([*words, "--seed", str(seed)]) == 0
        return json.loads(capsys.readouterr().out)["answer"]

    assert reply(1) == reply(1) != reply(2)


# ---- image files


def test_pictures_of_every_mode(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"

    def read(picture: Image.Image, **options: Any) -> list[float]:
        picture.save(path, **options)
        image = read_image(path)
        assert image.shape == (3, 4, 6) and image.dtype == torch.float32
        assert bool((image == image[:, :1, :1]).all())
        return [round(value) for value in (image[:, 0, 0] * 255).tolist()]

    assert read(Image.new("RGB", (6, 4), (1, 2, 3))) == [1, 2, 3]
    assert read(Image.new("L", (6, 4), 9)) == [9, 9, 9]
    assert read(Image.new("1", (6, 4), 1)) == [255, 255, 255]
    # Transparency shows white paper.
    assert read(Image.new("RGBA", (6, 4), (1, 2, 3, 0))) == [255, 255, 255]
    assert read(Image.new("RGBA", (6, 4), (1, 2, 3, 255))) == [1, 2, 3]
    assert read(Image.new("LA", (6, 4), (0, 51))) == [204, 204, 204]
    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([9, 9, 9, 70, 80, 90])
    assert read(palette) == [70, 80, 90]
    assert read(palette, transparency=1) == [255, 255, 255]
    # 16 bits keep their high byte; clipping at 255 would make this white.
    assert read(Image.fromarray(np.full((4, 6), 0x8040, dtype=np.uint16))) == [0x80] * 3
