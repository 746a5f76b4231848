"""The official code's numbers, and that the conformance command fails where it should."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from srum_ds.models.bagel.adapter import load_bagel
from tests.conformance import DESIGNS, case_names, compare, main, read_set, run_case
from tests.numerics.bagel_cases import RUNNERS
from tests.numerics.bagel_design import DESIGN, load_set
from tests.numerics.conformance_set import Case, open_levels, picture
from tests.support.paths import CONFORMANCE
from tests.support.tiny_models import random_picture, write_tiny_bagel

SHARED = CONFORMANCE
SETS = sorted(
    path.parent
    for path in SHARED.glob("*/cases.json")
    if any(design.matches(path.parent / "checkpoint") for design in DESIGNS)
)

RUN = ("position_ids", "t2i_pair", "und_0", "edit_image", "edit_text", "vae", "train_pair", "train_und", "srum")


def errors_of(path: Path) -> dict[str, float]:
    return json.loads(path.read_text())


@pytest.mark.skipif(not SETS, reason=f"no conformance sets in {SHARED}")
@pytest.mark.parametrize("folder", SETS, ids=lambda path: path.name)
def test_the_official_numbers(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "errors.json"
    assert main([str(folder), "--json", str(report)]) == 0, capsys.readouterr().out
    errors = errors_of(report)
    listed = {
        line.removeprefix("- ").strip()
        for line in (folder / "outputs.md").read_text().splitlines()
        if line.startswith("- ")
    }
    assert errors.keys() == listed
    assert max(error for key, error in errors.items() if key != "edit_image/image_uint8") <= 1e-4


# ---- the command itself, on a small set of this model's own numbers


def own_set(folder: Path) -> Path:
    """A set in the official layout whose expected values are what this model computes."""
    write_tiny_bagel(folder / "checkpoint")
    config = json.loads((folder / "checkpoint" / "config.json").read_text())
    cases = {
        "_global": {
            "vae_image_transform": config["vae_transform"],
            "vit_image_transform": config["vit_transform"],
        },
        "tokenizer": {"pairs": [["red", load_bagel(folder / "checkpoint").reader.tokenizer.encode("red")]]},
        "position_ids": {"0": {"img_h": 48, "img_w": 32, "patch_size": 16, "max_num_patches_per_side": 4}},
        "t2i_pair": {
            "prompt_ids": [[1, 2, 3], [4]],
            "image_hw": [32, 16],
            "num_timesteps": 4,
            "timestep_shift": 2.0,
            "cfg_text_scale": 3.0,
            "cfg_interval": [0.3, 1.0],
            "cfg_renorm_type": "global",
            "cfg_renorm_min": 0.0,
        },
        "und_0": {"question_ids": [5, 6]},
        "edit_image": {
            "prompt_ids": [7],
            "input_image": "und_0/image_uint8",
            "hyper": {
                "num_timesteps": 3,
                "timestep_shift": 2.0,
                "cfg_text_scale": 3.0,
                "cfg_img_scale": 2.0,
                "cfg_interval": [0.0, 1.0],
                "cfg_renorm_type": "text_channel",
            },
        },
        "edit_text": {"prompt_ids": [7, 8], "input_image": "und_0/image_uint8"},
        "vae": {},
        "train_pair": {
            "plan": [[["vae_image", 0], ["text", 0], ["vae_image", 1]], [["text", 1]]],
            "prompt_ids": [[[3, 4]], [[5]]],
            "grad_norm_names": ["llm2vae.bias", "language_model.lm_head.weight"],
        },
        "train_und": {
            "plan": [[["vit_image", 0], ["text", 0], ["text", 1]]],
            "prompt_ids": [[[3, 4], [5, 6]]],
            "grad_norm_names": ["connector.fc1.bias"],
        },
        "srum": {
            "prompt_ids": [[5], [6, 7]],
            "image_hw": [32, 16],
            "rewards_0": [{"object": "cat", "bbox": [0, 3, 16, 20], "score": 0.5}],
            "global_score_0": 0.2,
            "rewards_1": [],
            "global_score_1": -0.4,
            "lambda_constraint": 0.5,
        },
    }
    image = random_picture(33, 47)
    size = load_bagel(folder / "checkpoint").default_size(image)
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {
        "t2i_pair/init_noise": torch.randn(4, 16, generator=generator),
        "edit_image/init_noise": torch.randn(size[0] * size[1] // 256, 16, generator=generator),
        "und_0/image_uint8": (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous(),
        "vae/image": torch.rand(1, 3, 16, 32, generator=generator) * 2 - 1,
        "vae/eps": torch.randn(1, 4, 2, 4, generator=generator),
        "vae/z": torch.randn(1, 4, 2, 4, generator=generator),
        "train_pair/latent_0": torch.randn(4, 2, 4, generator=generator),
        "train_pair/latent_1": torch.randn(4, 4, 2, generator=generator),
        "train_pair/noise": torch.randn(4, 16, generator=generator),
        "train_pair/timestep_logits": torch.tensor([float("-inf")] * 2 + [0.3] * 2),
        "srum/bad_latents": torch.randn(2, 4, 4, 2, generator=generator),
        "srum/good_latents": torch.randn(2, 4, 4, 2, generator=generator),
        "srum/noise": torch.randn(4, 16, generator=generator),
        "srum/timestep_logits": torch.tensor([0.1, 0.1, -0.6, -0.6]),
    }
    assert torch.equal(picture(tensors["und_0/image_uint8"]), image)
    patches = len(load_bagel(folder / "checkpoint").reader.patches([image])[0][0])
    tensors["train_und/vit_token_seqlens"] = torch.tensor([patches])
    (folder / "cases.json").write_text(json.dumps({"cases": cases, "tensors": {}}))
    save_file(tensors, folder / "cases.safetensors")
    data = read_set(folder)
    model = load_set(folder / "checkpoint", cases)
    for name in RUN:
        wanted = {"tokens": (3,), "grad.vae2llm.bias": (32,)}
        outputs = RUNNERS[str(DESIGN.kind_of(name))](model, Case(name, cases[name], data.inputs, wanted))
        found = {f"{name}/{key}": tensor.detach().clone().contiguous() for key, tensor in outputs.items()}
        tensors |= {key: tensor for key, tensor in found.items() if tensor.numel()}
    declared = {key: {"shape": list(tensor.shape)} for key, tensor in tensors.items()}
    (folder / "cases.json").write_text(json.dumps({"cases": cases, "tensors": declared}))
    save_file(tensors, folder / "cases.safetensors")
    return folder


@pytest.fixture(scope="module")
def good_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own_set(tmp_path_factory.mktemp("set"))


@pytest.fixture
def copied_set(good_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good_set, tmp_path / "set"))


def test_a_set_of_its_own_numbers_passes(good_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    report = tmp_path / "errors.json"
    assert main([str(good_set), "--json", str(report)]) == 0
    lines = capsys.readouterr().out.splitlines()
    errors = errors_of(report)
    assert len(errors) > 70 and max(errors.values()) == 0
    assert {line.split()[0] for line in lines if line.endswith("  ok") and "/" in line} == errors.keys()
    assert "und_0/image_uint8" not in errors and "t2i_pair/init_noise" not in errors


def test_altered_expectations_fail(copied_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Each output is changed a little more than allowed: every single one must be reported."""
    path = copied_set / "cases.safetensors"
    tensors = load_file(path)
    for key, tensor in tensors.items():
        if DESIGN.is_input(key):
            continue
        changed = tensor.clone()
        step = 2e-4 if tensor.is_floating_point() else 2 if key == "edit_image/image_uint8" else 1
        if "vit_patches" in key:
            step = 1e-6
        flat = changed.view(-1)
        flat[-1] = flat[-1] + step if tensor.is_floating_point() or flat[-1] < 128 else flat[-1] - step
        tensors[key] = changed
    save_file(tensors, path)
    report = tmp_path / "errors.json"
    assert main([str(copied_set), "--json", str(report)]) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = {line.split()[0] for line in lines if line.endswith("  FAIL")}
    assert failed == errors_of(report).keys()
    assert min(errors_of(report).values()) > 0


def test_one_altered_value_is_enough(copied_set: Path, capsys: pytest.CaptureFixture) -> None:
    path = copied_set / "cases.safetensors"
    tensors = load_file(path)
    tensors["t2i_pair/v"][0, 0, 0] += 0.01
    save_file(tensors, path)
    assert main([str(copied_set)]) == 1
    failed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "FAIL" in line]
    assert failed == ["t2i_pair/v"]


def test_a_level_may_be_its_neighbour_only_where_rounding_leaves_it_open() -> None:
    exact = torch.tensor([10.001, 10.5, 11.998])
    found = exact.floor().to(torch.uint8)
    left_open = open_levels(exact, 0.0)
    assert left_open.tolist() == [True, False, True]
    for place, off, right in ((0, -1, True), (2, 1, True), (1, 1, False), (0, 2, False)):
        expected = found.clone()
        expected[place] += off
        assert compare(DESIGN, "draw/image_uint8", found, expected, left_open).ok is right
    assert not compare(DESIGN, "draw/image_uint8", found, found + 1).ok


def test_the_list_of_outputs_decides_what_is_compared(
    copied_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """What it names must be there and computed; what it leaves out is neither compared nor fed to the model."""
    listed = ["t2i_pair/v", "vae/decoded", "train_und/ce", "und_9/logits"]
    (copied_set / "outputs.md").write_text("# Outputs\n\n" + "".join(f"- {key}\n" for key in listed))
    data = read_set(copied_set)
    assert not any(key in data.inputs for key in ("vae/moments", *listed))
    report = tmp_path / "errors.json"
    assert main([str(copied_set), "--json", str(report)]) == 1
    errors = errors_of(report)
    assert errors.keys() == set(listed)
    assert [key for key, error in errors.items() if error > 0] == ["und_9/logits"]
    assert "srum  not run" in capsys.readouterr().out


def test_a_folder_that_is_no_set_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(tmp_path)]) == 2
    assert "not run" in capsys.readouterr().err


def test_what_was_not_run_fails(copied_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    facts = json.loads((copied_set / "cases.json").read_text())
    facts["cases"]["mystery"] = {}
    facts["tensors"]["t2i_pair/unheard_of"] = {"shape": [1]}
    facts["tensors"]["t2i_lost/v"] = {"shape": [1]}
    facts["cases"]["tokenizer"]["pairs"].append(["red", [0]])
    (copied_set / "cases.json").write_text(json.dumps(facts))
    tensors = load_file(copied_set / "cases.safetensors")
    tensors["t2i_pair/unheard_of"] = torch.zeros(1)
    tensors["t2i_pair/final_latents"] = tensors["t2i_pair/final_latents"][:1].clone()
    del tensors["und_0/logits"]
    save_file(tensors, copied_set / "cases.safetensors")
    report = tmp_path / "errors.json"
    assert main([str(copied_set), "--json", str(report)]) == 1
    output = capsys.readouterr().out
    failed = {line.split()[0] for line in output.splitlines() if "FAIL" in line}
    assert failed == {
        "mystery",
        "t2i_pair/unheard_of",
        "t2i_pair/final_latents",
        "t2i_lost/v",
        "und_0/logits",
        "tokenizer",
    }
    assert "not computed" in output and "expected [1, 16]" in output and "missing in cases" in output
    assert errors_of(report)["t2i_lost/v"] > 1e6


def test_a_case_that_breaks_does_not_stop_the_others(copied_set: Path, capsys: pytest.CaptureFixture) -> None:
    facts = json.loads((copied_set / "cases.json").read_text())
    del facts["cases"]["t2i_pair"]["num_timesteps"]
    (copied_set / "cases.json").write_text(json.dumps(facts))
    assert main([str(copied_set)]) == 1
    captured = capsys.readouterr()
    assert "num_timesteps" in captured.err
    assert "edit_image/v  0  ok" in captured.out and "t2i_pair/v  1e+30  FAIL" in captured.out


def test_runners_see_inputs_only(good_set: Path) -> None:
    data = read_set(good_set)
    assert not data.inputs.keys() & data.expected.keys()
    assert {key for key in data.inputs if not key.startswith(("train", "srum", "vae"))} == {
        "t2i_pair/init_noise",
        "edit_image/init_noise",
        "und_0/image_uint8",
    }
    assert sorted(case_names(data)) == sorted(RUN)
    assert run_case(load_set(good_set / "checkpoint", data.settings), data, "position_ids")[0].ok
