"""Weights with a number that is not finite are refused by file and tensor, whatever design they are of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from srum_ds.commands.main import main
from srum_ds.common.errors import UserError
from srum_ds.common.finite import refuse_module
from srum_ds.models import load_model
from srum_ds.models.library import FolderWeights
from srum_ds.models.library.building import fill
from tests.support.designs import DESIGNS
from tests.support.tiny_models import write_tiny_bagel


def spoil(path: Path, key: str, value: float = float("nan")) -> None:
    """Puts one bad number into the middle of a stored tensor."""
    tensors = load_file(path)
    flat = tensors[key].view(-1)
    flat[len(flat) // 2] = value
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("name", list(DESIGNS))
def test_each_file_of_each_design(name: str, tmp_path: Path) -> None:
    folder = DESIGNS[name].write(tmp_path / "model")
    # BAGEL's autoencoder makes pictures alone, and those are looked at.
    paths = sorted(path for path in folder.rglob("*.safetensors") if path.name != "ae.safetensors")
    assert paths
    for path, value in zip(paths, (float("inf"), float("nan"), float("-inf"), *[float("nan")] * 9), strict=False):
        whole = path.read_bytes()
        key = next(key for key, tensor in load_file(path).items() if tensor.is_floating_point())
        spoil(path, key, value)
        for dtype in (torch.float32, torch.bfloat16):
            with pytest.raises(UserError, match="not finite") as caught:
                load_model(folder, dtype=dtype)
            assert f"{path}: {key} holds numbers" in str(caught.value)
        path.write_bytes(whole)
    load_model(folder)


def test_inspect_says_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_tiny_bagel(tmp_path / "model")
    assert main(["inspect", str(folder)]) == 0
    spoil(folder / "ema.safetensors", "llm2vae.bias")
    capsys.readouterr()
    assert main(["inspect", str(folder)]) == 2
    out, said = capsys.readouterr()
    assert f"{folder / 'ema.safetensors'}: llm2vae.bias holds numbers that are not finite" in said and not out


def test_what_no_module_takes_is_not_exported_either(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, folder / "model.safetensors")
    weights = FolderWeights(folder)
    weights.export(tmp_path / "whole", ["weight"], [("weight", torch.zeros(2, 2))])
    spoil(folder / "model.safetensors", "bias")
    with pytest.raises(UserError, match=r"model\.safetensors: bias holds numbers that are not finite"):
        weights.export(tmp_path / "broken", ["weight"], [("weight", torch.zeros(2, 2))])
    assert not list((tmp_path / "broken").iterdir())


def test_a_module_that_a_library_has_filled(tmp_path: Path) -> None:
    second = torch.nn.Linear(2, 2)
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), second)
    refuse_module(module, tmp_path)
    second.weight.data[1, 0] = float("nan")
    with pytest.raises(UserError, match=f"{tmp_path}: 1.weight holds numbers that are not finite"):
        refuse_module(module, tmp_path)


def test_pairs_of_no_file_are_named_by_themselves() -> None:
    with pytest.raises(UserError, match="^bias holds numbers that are not finite"):
        fill(torch.nn.Linear(1, 1), [("weight", torch.ones(1, 1)), ("bias", torch.tensor([float("inf")]))])


def test_a_number_of_64_bits_that_would_become_infinite_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_bagel(tmp_path / "model")
    tensors = load_file(folder / "ema.safetensors")
    save_file({**tensors, "llm2vae.bias": tensors["llm2vae.bias"].double() + 1e300}, folder / "ema.safetensors")
    with pytest.raises(UserError, match="llm2vae.bias holds numbers that are not finite"):
        load_model(folder)
