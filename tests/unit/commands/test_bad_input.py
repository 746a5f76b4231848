"""What a user can get wrong with `srum-ds generate`, `ask` and `inspect`: one line that says what, and status 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from srum_ds.commands.main import main
from tests.support.paths import MODEL
from tests.support.tiny_models import write_tiny_bagel

Spoil = Callable[[Path], object]
SHIPPED = MODEL


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bagel(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (40, 30), (200, 10, 10)).save(path)
    return path


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command that must fail as a user's mistake does; returns the one line it prints."""
    assert main(words) == 2, words
    captured = capsys.readouterr()
    assert captured.out == ""
    message = captured.err.removesuffix("\n")
    assert message.startswith("srum-ds: ") and "\n" not in message and "Traceback" not in message, message
    assert message.endswith("."), message
    return message


def generate(model: Path, out: Path, *words: str, prompt: str = "a") -> list[str]:
    return ["generate", "--model", str(model), "--prompt", prompt, "--out", str(out), "--steps", "1", *words]


def ask(model: Path, image: Path, *words: str, question: str = "a") -> list[str]:
    return ["ask", "--model", str(model), "--image", str(image), "--question", question, "--json", *words]


# ---- the model's folder


def change(name: str, inside: str = "", **values: Any) -> Spoil:
    """Sets keys of a JSON file, or of the object ``inside`` it."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (content[inside] if inside else content).update(values)
        (folder / name).write_text(json.dumps(content))

    return spoil


def remove(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Spoil:
    return lambda folder: (folder / name).write_text(text)


def cut(name: str, end: int) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:end])


def tensors(name: str, alter: Callable[[dict[str, Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        stored = load_file(folder / name)
        alter(stored)
        save_file(stored, folder / name)

    return spoil


def index(content: Any) -> Spoil:
    return write("model.safetensors.index.json", json.dumps(content))


def without_picture_tokens(folder: Path) -> None:
    content = json.loads((folder / "tokenizer_config.json").read_text())
    added = content["added_tokens_decoder"].items()
    content["added_tokens_decoder"] = {key: token for key, token in added if "vision" not in token["content"]}
    content["additional_special_tokens"] = []
    (folder / "tokenizer_config.json").write_text(json.dumps(content))


def directory_instead_of(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return spoil


LLM, VIT, TOP, EMA, AE = "llm_config.json", "vit_config.json", "config.json", "ema.safetensors", "ae.safetensors"

WRONG_CONFIGURATIONS: dict[str, tuple[Spoil, list[str]]] = {
    "no llm_config": (remove(LLM), [LLM, "missing"]),
    "no vit_config": (remove(VIT), [VIT, "missing"]),
    "half a json": (write(LLM, "{"), [LLM, "not valid JSON"]),
    "a list": (write(TOP, "[1]"), [TOP, "object"]),
    "null": (write(VIT, "null"), [VIT, "object"]),
    "text for a number": (change(LLM, hidden_size="64"), [LLM, "hidden_size", "'64'", "whole number"]),
    "a broken number": (change(LLM, hidden_size=64.5), [LLM, "hidden_size", "64.5"]),
    "true for a number": (change(LLM, num_hidden_layers=True), [LLM, "num_hidden_layers", "True"]),
    "no layers": (change(LLM, num_hidden_layers=0), [LLM, "num_hidden_layers", "above 0"]),
    "negative": (change(LLM, intermediate_size=-4), [LLM, "intermediate_size", "-4"]),
    "heads": (change(LLM, num_attention_heads=3), [LLM, "hidden_size 32", "num_attention_heads (3)"]),
    "key heads": (change(LLM, num_key_value_heads=3), [LLM, "num_attention_heads 4", "num_key_value_heads (3)"]),
    "odd heads": (change(LLM, head_dim=5), [LLM, "a head", "5"]),
    "rope theta": (change(LLM, rope_theta=-1), [LLM, "rope_theta"]),
    "rope scaling": (change(LLM, rope_scaling={"type": "yarn"}), [LLM, "rope_scaling"]),
    "rope scaling's type": (change(LLM, rope_scaling="x"), [LLM, "rope_scaling"]),
    "activation": (change(LLM, hidden_act="nope"), [LLM, "hidden_act 'nope'", "silu"]),
    "another design": (change(LLM, model_type="llama"), [LLM, "'llama'", "'qwen2'"]),
    "vision heads": (change(VIT, num_attention_heads=7), [VIT, "num_attention_heads (7)"]),
    "vision patches": (change(VIT, image_size=3), [VIT, "image_size 3", "patch_size 14"]),
    "connector": (change(TOP, connector_act="?"), [TOP, "connector_act '?'"]),
    "interpolation": (change(TOP, interpolate_pos="yes"), [TOP, "interpolate_pos", "true or false"]),
    "latent patch": (change(TOP, latent_patch_size=0), [TOP, "latent_patch_size is 0"]),
    "autoencoder": (change(TOP, vae_config="x"), [TOP, "vae_config"]),
    "levels": (change(TOP, "vae_config", ch_mult="a"), [TOP, "ch_mult"]),
    "no levels": (change(TOP, "vae_config", ch_mult=[]), [TOP, "ch_mult"]),
    "downsampling": (change(TOP, "vae_config", downsample=16), [TOP, "downsample is 16", "3 times"]),
    "groups": (change(TOP, "vae_config", norm_num_groups=7), [TOP, "norm_num_groups (7)"]),
    "transform": (change(TOP, vit_transform={"max_image_size": 56}), [TOP, "min_image_size"]),
}

WRONG_WEIGHTS: dict[str, tuple[Spoil, list[str]]] = {
    "no weights": (remove(EMA), [EMA, "copy"]),
    "no autoencoder": (remove(AE), [AE, "copy"]),
    "no vocabulary": (remove("vocab.json"), ["vocab.json", "copy"]),
    "no merges": (remove("merges.txt"), ["merges.txt", "copy"]),
    "no special tokens": (remove("tokenizer_config.json"), ["<|im_start|>", "copy"]),
    "no picture tokens": (without_picture_tokens, ["<|vision_start|>, <|vision_end|>", "copy"]),
    "small vocabulary": (change(LLM, vocab_size=100), ["vocab_size 100", "id 267", "Copy"]),
    "large vocabulary": (change(LLM, vocab_size=300), ["embed_tokens.weight is [272, 32], expected [300, 32]"]),
    "broken vocabulary": (write("vocab.json", '{"a":'), ["tokenizer", "copy"]),
    "more layers": (change(LLM, num_hidden_layers=9), ["missing: language_model.model.layers.2.", "more"]),
    "half the weights": (cut(EMA, 1000), [EMA, "whole safetensors file"]),
    "no tail": (cut(EMA, -10), [EMA, "whole safetensors file"]),
    "empty weights": (cut(EMA, 0), [EMA, "whole safetensors file"]),
    "a folder for weights": (directory_instead_of(EMA), [EMA]),
    "half an autoencoder": (cut(AE, -10), [AE, "whole safetensors file"]),
    "missing key": (tensors(EMA, lambda t: t.pop("llm2vae.bias")), ["missing: llm2vae.bias", LLM]),
    "unexpected key": (tensors(EMA, lambda t: t.update(extra=torch.zeros(1))), ["unexpected: extra"]),
    "shape": (tensors(EMA, lambda t: t.update({"llm2vae.bias": torch.zeros(3)})), ["is [3], expected [16]"]),
    "whole numbers": (
        tensors(EMA, lambda t: t.update({"llm2vae.bias": torch.zeros(16, dtype=torch.int32)})),
        ["llm2vae.bias", "I32", "BF16"],
    ),
    "autoencoder key": (tensors(AE, lambda t: t.pop("encoder.conv_in.bias")), [AE, "encoder.conv_in.bias"]),
    "autoencoder shape": (
        tensors(AE, lambda t: t.update({"encoder.conv_in.bias": torch.zeros(1)})),
        [AE, "encoder.conv_in.bias is [1], expected [8]"],
    ),
    "absent shard": (index({"weight_map": {"llm2vae.bias": "absent.safetensors"}}), ["absent.safetensors", "copy"]),
    "no index": (index({}), ["index.json", "weight_map"]),
    "index of another kind": (index({"weight_map": [1]}), ["index.json", "weight_map"]),
}


@pytest.mark.parametrize("name", WRONG_CONFIGURATIONS)
def test_wrong_configurations(
    name: str, whole: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, said = WRONG_CONFIGURATIONS[name]
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    spoil(folder)
    message = refused(["inspect", str(folder), "--json"], capsys)
    assert str(folder) in message and all(word in message for word in said), message
    assert refused(generate(folder, tmp_path / "out"), capsys) == message
    assert refused(ask(folder, photo), capsys) == message
    assert not (tmp_path / "out").exists()


UNREADABLE = {"half the weights", "empty weights", "a folder for weights", "half an autoencoder", "no tail"}


@pytest.mark.parametrize("name", WRONG_WEIGHTS)
def test_wrong_weights_and_tokenizers(
    name: str, whole: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, said = WRONG_WEIGHTS[name]
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    spoil(folder)
    message = refused(generate(folder, tmp_path / "out"), capsys)
    assert str(folder) in message and all(word in message for word in said), message
    assert refused(ask(folder, photo), capsys) == message
    assert not (tmp_path / "out").exists()
    # Counting needs the configuration alone, but numbers that are not finite are looked for wherever there are some.
    assert main(["inspect", str(folder)]) == (2 if name in UNREADABLE else 0)


def test_wrong_folders(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for folder, said in ((tmp_path / "nowhere", "not a folder"), (photo, "not a folder"), (tmp_path / "empty", LLM)):
        for words in (["inspect", str(folder)], generate(folder, tmp_path / "out"), ask(folder, photo)):
            message = refused(words, capsys)
            assert str(folder) in message and said in message


def test_weights_that_are_no_numbers(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    tensors(EMA, lambda t: t["llm2vae.bias"].fill_(float("nan")))(folder)
    assert "not finite" in refused(generate(folder, tmp_path / "out"), capsys)
    assert not (tmp_path / "out").exists()


def test_an_autoencoder_of_no_numbers(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    tensors("ae.safetensors", lambda t: t["decoder.conv_in.bias"].fill_(float("nan")))(folder)
    assert "not finite" in refused(generate(folder, tmp_path / "out"), capsys)
    assert "not finite" in refused(["inspect", str(folder)], capsys)
    assert not list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize("words", [["--max-new-tokens", "1"], ["--answer", "yes", "--answer", "no"]])
def test_answers_of_numbers_that_are_none(
    words: list[str], whole: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    # Finite as it is read; what is computed with it is not.
    tensors(EMA, lambda t: t["connector.fc1.bias"].fill_(3e38))(folder)
    assert "answers with numbers that are not finite" in refused(ask(folder, photo, *words), capsys)


# ---- what is asked for


@pytest.mark.parametrize(
    ("prompt", "words", "said"),
    [
        ("", [], "'' is empty"),
        (" \n\t", [], "is empty"),
        ("caf\udce9", [], r"--prompt 'caf\udce9': character 4 is \udce9"),
        ("red " * 6000, [], "max_position_embeddings in llm_config.json is 4096"),
        ("a", ["--size", "128x64"], "max_latent_size 4 in config.json allows 64 pixels"),
        ("a", ["--size", "30x32"], "multiples of 16"),
        ("a", ["--size", "0x16"], "multiples of 16"),
        ("a", ["--size", "16"], "such as 512x768"),
        ("a", ["--size", "wide"], "such as 512x768"),
        ("a", ["--count", "0"], "--count"),
        ("a", ["--guidance", "nan"], "--guidance"),
        ("a", ["--guidance", "-1"], "--guidance"),
        ("a", ["--interval", "0.9", "0.1"], "--interval"),
        ("a", ["--renorm", "local"], "global, channel, text_channel"),
        ("a", ["--renorm-min", "2"], "--renorm-min"),
        ("a", ["--shift", "0"], "--shift"),
        ("a", ["--image-guidance", "2"], "--image"),
        ("a", ["--think", "--temperature", "-1"], "--temperature"),
        ("a", ["--think", "--think-tokens", "0"], "--think-tokens"),
        ("a", ["--think", "--think-tokens", "5000"], "5000 new tokens are too many"),
        ("a", ["--device", "gpu"], "expected auto, cpu, cuda"),
        ("a", ["--device", "meta"], "expected auto, cpu, cuda"),
        ("a", ["--dtype", "int8"], "bfloat16"),
        ("a", ["--prompt", "a"], "--count"),
    ],
)
def test_wrong_requests(
    prompt: str, words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(generate(SHIPPED, tmp_path / "out", *words, prompt=prompt), capsys)
    assert said in message
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_written(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out in (photo, photo / "below"):
        message = refused(generate(SHIPPED, out), capsys)
        assert str(photo) in message and "folder" in message
    message = refused(generate(SHIPPED, Path("/proc/pictures")), capsys)
    assert "/proc" in message


@pytest.mark.parametrize(
    ("question", "words", "said"),
    [
        ("", [], "--question"),
        ("  ", [], "--question"),
        ("red " * 6000, [], "question is too long"),
        ("caf\udce9", [], r"--question 'caf\udce9': character 4 is \udce9"),
        ("a", ["--answer", "yes", "--answer", "n\udce9"], r"--answer 'n\udce9': character 2 is \udce9"),
        ("a", ["--max-new-tokens", "0"], "--max-new-tokens"),
        ("a", ["--max-new-tokens", "5000"], "5000 new tokens are too many"),
        ("a", ["--temperature", "-1"], "temperature"),
        ("a", ["--answer", "yes"], "at least two"),
        ("a", ["--answer", "yes", "--answer", ""], "first tokens"),
        ("a", ["--answer", "yes", "--answer", "yes"], "first tokens"),
    ],
)
def test_wrong_questions(
    question: str, words: list[str], said: str, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(ask(SHIPPED, photo, *words, question=question), capsys)


# ---- images


def bad_pictures(folder: Path) -> dict[str, Path]:
    paths = {name: folder / name for name in ("absent.png", "text.png", "empty.png", "half.png", "flipped.png")}
    paths |= {name: folder / name for name in ("head.jpg", "floats.tiff")}
    good = folder / "good.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(good)
    content = bytearray(good.read_bytes())
    paths["text.png"].write_text("no picture")
    paths["empty.png"].write_bytes(b"")
    paths["half.png"].write_bytes(content[: len(content) // 2])
    content[len(content) // 2] ^= 255
    paths["flipped.png"].write_bytes(content)
    paths["head.jpg"].write_bytes(b"\xff\xd8\xff\xe0" + b"\0" * 50)
    Image.fromarray(np.zeros((8, 8), np.float32)).save(paths["floats.tiff"])
    return {**paths, "folder": folder}


def test_pictures_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in bad_pictures(tmp_path).values():
        message = refused(ask(SHIPPED, path), capsys)
        assert str(path) in message
        assert refused(generate(SHIPPED, tmp_path / "out", "--image", str(path)), capsys) == message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (2, 5000), (1500, 1000), (16, 16)])
def test_pictures_of_any_shape_are_resized(
    size: tuple[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "picture.png"
    Image.new("RGB", size, (10, 200, 30)).save(path)
    assert main(ask(SHIPPED, path, "--max-new-tokens", "1")) == 0
    assert main(generate(SHIPPED, tmp_path / "out", "--image", str(path))) == 0
    capsys.readouterr()


def test_a_picture_to_edit_that_is_too_large_for_the_model(
    whole: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The transform's limit lies above what the position tables hold."""
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    change(TOP, vae_transform={"max_image_size": 128, "min_image_size": 96, "image_stride": 16})(folder)
    message = refused(generate(folder, tmp_path / "out", "--image", str(photo)), capsys)
    assert "max_latent_size 4 in config.json" in message and "vae_transform" in message
    change(TOP, vit_transform={"max_image_size": 140, "min_image_size": 112, "image_stride": 14})(folder)
    assert "vit_max_num_patch_per_side 4" in refused(ask(folder, photo), capsys)
