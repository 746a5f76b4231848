"""Calibration: its figures by hand, labels from a shard, and the command on the embedded model."""

from __future__ import annotations

import io
import json
import math
import random
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from srum_ds.commands.main import main
from srum_ds.common.errors import UserError
from srum_ds.evaluation.calibration import (
    Opinion,
    agreement,
    auc_error,
    calibrate,
    level_metrics,
    readout_config,
    readout_metrics,
    reliability,
    spearman,
)
from srum_ds.evaluation.labels import Labelled, RegionQuestion, read_labels
from srum_ds.monitoring.images import to_pil
from srum_ds.rewards.judge.readouts import Replies
from srum_ds.types import Prompt, Status
from srum_ds.worlds.shapes import world
from srum_ds.worlds.shapes.render import render_scenes
from srum_ds.worlds.shapes.truth import crop_truths
from srum_ds.worlds.shapes.world import SceneObject, ShapePrompt, Slot
from tests.support.paths import RECIPE

BOX = (0.0, 0.0, 0.5, 0.5)


def replies(scores: Sequence[float]) -> Replies:
    score_Q = torch.tensor(scores, dtype=torch.float32)
    status_Q = torch.where(score_Q.isnan(), int(Status.FAILED), int(Status.PARSED))
    return Replies(score_Q, status_Q, tuple(f"said {k}" for k in range(len(scores))))


def test_rank_correlation_by_hand() -> None:
    # ranks 1 2 3 4 against 1 2 4 3: 1 - 6 * 2 / (4 * 15)
    assert spearman([0.1, 0.2, 0.3, 0.4], [1, 5, 9, 7]) == pytest.approx(0.8)
    assert spearman([0.1, math.nan, 0.3], [1, 7, 0]) == pytest.approx(-1.0)
    assert math.isnan(spearman([0.5, 0.5], [0, 1])) and math.isnan(spearman([0.1], [1]))


def test_reliability_by_hand() -> None:
    rows = reliability(np.array([0.0, 0.05, 0.55, 1.0]), np.array([0.0, 1.0, 1.0, 1.0]))
    assert [(r["low"], r["n"], r["good"]) for r in rows] == [(0.0, 2, 0.5), (0.5, 1, 1.0), (0.9, 1, 1.0)]
    assert [r["said"] for r in rows] == pytest.approx([0.025, 0.55, 1.0])


def test_a_level_leaves_failures_out_and_counts_them() -> None:
    score = [0.9, -0.9, 0.5, math.nan, -0.5]
    good = np.array([True, False, False, True, False])
    found = level_metrics(replies(score), good, good.astype(float), np.arange(5))
    assert found["failed"] == pytest.approx(0.2)
    assert found["auc"] == 1.0
    assert found["accuracy"] == pytest.approx(3 / 4)
    # bins 0.95 (good), 0.05 (bad), 0.75 (bad), 0.25 (bad)
    assert found["ece"] == pytest.approx((0.05 + 0.05 + 0.75 + 0.25) / 4, abs=1e-6)
    assert found["failed_replies"] == ["1 x 'said 3'"]
    nothing = level_metrics(replies([math.nan] * 2), good[:2], np.zeros(2), np.arange(2))
    assert nothing["failed"] == 1.0 and all(math.isnan(nothing[name]) for name in ("auc", "accuracy", "ece"))


def test_error_of_the_auc_is_over_pictures() -> None:
    rng = np.random.default_rng(1)
    good = rng.random(200) < 0.5
    score = good + rng.normal(size=200)
    single = auc_error(score, good, np.arange(200))
    assert 0.02 < single < 0.05
    # the same questions asked four times over are no more evidence
    again = auc_error(np.repeat(score, 4), np.repeat(good, 4), np.repeat(np.arange(200), 4))
    assert again == pytest.approx(single, rel=0.05)


def labelled(asked: Sequence[RegionQuestion], good: Sequence[bool]) -> Labelled:
    prompts = tuple(Prompt(f"p{k}", "x") for k in range(len(good)))
    images = tuple(torch.zeros(3, 8, 8) for _ in good)
    return Labelled(prompts, images, np.array(good), np.array(good, dtype=float), tuple(asked), {})


def test_agreement_takes_a_regions_best_phrase_and_a_pictures_mean_region() -> None:
    def ask(image: int, region: int, own: bool = True) -> RegionQuestion:
        return RegionQuestion(image, region, BOX, "a", True, 1.0, own)

    asked = [ask(0, 0), ask(0, 0), ask(0, 0, own=False), ask(0, 1), ask(1, 2), ask(2, 3)]
    parts = replies([-0.5, 0.4, 1.0, 0.0, -0.6, math.nan])
    opinion = Opinion(replies([0.5, -0.5, 0.5, 0.5]), parts, 4.0, 2.0, 3.0)
    found = labelled(asked, [True, False, True, True])
    # picture 0: (0.4 + 0.0) / 2 = 0.2; picture 1: -0.6; picture 2: failed; picture 3: no regions
    assert agreement(opinion, found) == {"n": 2, "spearman": pytest.approx(1.0), "same_sign": 1.0}
    cost = readout_metrics(opinion, found)
    assert cost["seconds_a_picture"] == 1.0 and cost["seconds_a_crop"] == 0.5
    assert cost["seconds_a_judged_picture"] == 1.5 and cost["cpu_seconds_a_judged_picture"] == 0.75


def test_truths_of_crops_come_from_the_pixels() -> None:
    prompt = ShapePrompt("color", (Slot(None, "red", "circle"), Slot(None, "blue", "square")))
    scene = (SceneObject("solid", "red", "circle", 5), SceneObject("solid", "blue", "square", 10))
    boxes = [[0.25, 0.25, 0.5, 0.5], [0.5, 0.5, 0.75, 0.75], [0.0, 0.0, 0.2, 0.2]]
    truths = crop_truths(random.Random(0), prompt.to_prompt("p"), render_scenes([scene])[0], boxes)
    assert [[said.truth for said in of_box] for of_box in truths] == [
        [True, False, False],
        [False, True, False],
        [False] * 3,
    ]
    assert [said.phrase for said in truths[0]][:2] == ["a red circle", "a blue square"]
    # The last phrase is one of the prompt's with an attribute changed.
    assert [said.own for said in truths[0]] == [True, True, False]
    assert truths[0][2].phrase not in ("a red circle", "a blue square")


def write_labels(path: Path, samples: Mapping[str, tuple[Any, Tensor | None]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for key, (record, image) in samples.items():
            members = [(f"{key}.json", json.dumps(record).encode())]
            if image is not None:
                buffer = io.BytesIO()
                to_pil(image).save(buffer, "PNG")
                members.append((f"{key}.png", buffer.getvalue()))
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def human_labels(path: Path, count: int = 16) -> Path:
    """Rendered scenes, half of them with an altered prompt, scored 5 and 1; one region of each."""
    rng = random.Random(3)
    samples: dict[str, tuple[Any, Tensor]] = {}
    for number in range(count):
        prompt = world.random_prompt(rng, "color", split=None)
        image = render_scenes([world.random_scene(rng, prompt, train=False)])[0]
        good = number % 2 == 0
        shown = prompt if good else world.alter_prompt(rng, prompt, attribute_share=1.0)
        record = {"prompt": shown.text(), "score": 5 if good else 1}
        box = {"box": [0.0, 0.0, 1.0, 1.0], "phrase": shown.phrases()[0], "score": 3}
        samples[f"s{number}"] = (record | {"regions": [box]}, image)
    return write_labels(path, samples)


def test_a_shard_with_scores_of_others_labels_instead_of_the_checker(tmp_path: Path) -> None:
    tar = human_labels(tmp_path / "labels.tar")
    found = read_labels(tar, 3)
    assert found.good_N.tolist() == [True, False] * 8 and found.grade_N.tolist() == [5.0, 1.0] * 8
    assert len(found.asked) == 16 and all(item.good for item in found.asked)
    result = calibrate(RECIPE, [], ["logprob"], tmp_path / "out", tar, 3)
    row = result["readouts"]["logprob"]
    assert row["global"]["auc"] > 0.9 and row["global"]["spearman"] > 0.7
    # nothing to tell apart: undefined rather than made up
    assert row["local"]["auc"] is None and row["local"]["good"] == 1.0
    assert result["source"] == {"labels": str(tar), "pictures": 16, "threshold": 3}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"score": 1}, '"prompt"'),
        ({"prompt": "a", "score": "5"}, "score is '5'"),
        ({"prompt": "a"}, "score is None"),
        ({"prompt": "a", "score": 1, "regions": [{"phrase": "b", "score": 1}]}, "box is None"),
        ({"prompt": "a", "score": 1, "regions": [{"phrase": "b", "score": 1, "box": [0, 0, 9, 9]}]}, "box is"),
        ({"prompt": "a", "score": 1, "regions": [7]}, "a region is 7"),
        ({"prompt": "a", "score": 1, "regions": None}, "regions is None"),
        ({"prompt": " ", "score": 1}, '"prompt"'),
    ],
)
def test_labels_that_do_not_fit_are_named(tmp_path: Path, record: Any, message: str) -> None:
    tar = write_labels(tmp_path / "bad.tar", {"one": (record, torch.zeros(3, 8, 8))})
    with pytest.raises(UserError, match=r"bad\.tar: one\.json") as caught:
        read_labels(tar, 0.5)
    assert message in str(caught.value)


def test_files_that_are_no_labels_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tar files"):
        read_labels(tmp_path, 0.5)
    with pytest.raises(UserError, match="nowhere"):
        read_labels(tmp_path / "nowhere.tar", 0.5)
    lonely = write_labels(tmp_path / "lonely.tar", {"one": ({"prompt": "a", "score": 1}, None)})
    with pytest.raises(UserError, match="one has no image"):
        read_labels(lonely, 0.5)


def tar_of(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def png(mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_labels_of_a_packed_folder_are_found(tmp_path: Path) -> None:
    record = json.dumps({"prompt": "a", "score": 1}).encode()
    tar = tar_of(tmp_path / "packed.tar", [("./a.json", record), ("./a.png", png()), ("./b/a.json", record)])
    with pytest.raises(UserError, match="b/a has no image"):
        read_labels(tar, 0.5)
    found = read_labels(tar_of(tmp_path / "whole.tar", [("./a.json", record), ("./a.png", png())]), 0.5)
    assert [prompt.id for prompt in found.prompts] == ["a"]


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (("a.json", b"{"), r"a\.json: not valid JSON"),
        (("a.png", png()[:45]), r"a\.png: cannot be read as an image"),
        (("a.png", b"no picture"), r"a\.png: this is no image"),
    ],
)
def test_a_broken_member_is_named(tmp_path: Path, member: tuple[str, bytes], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_labels(tar_of(tmp_path / "labels.tar", [member]), 0.5)


def test_endings_count_in_any_case(tmp_path: Path) -> None:
    members = [("a.JSON", b'{"prompt": "a", "score": 1}'), ("a.PNG", png()), ("b.Json", b'{"prompt": "b", "score": 0}')]
    found = read_labels(tar_of(tmp_path / "labels.tar", [*members, ("b.Webp", png())]), 0.5)
    assert [prompt.id for prompt in found.prompts] == ["a", "b"] and found.good_N.tolist() == [True, False]


def test_sixteen_bits_a_channel_keep_their_high_byte(tmp_path: Path) -> None:
    members = [("a.json", b'{"prompt": "a", "score": 1}'), ("a.png", png("I;16"))]
    found = read_labels(tar_of(tmp_path / "labels.tar", members), 0.5)
    assert found.images[0].shape == (3, 8, 8) and float(found.images[0].max()) == 0.0


def test_a_second_image_of_a_sample_does_not_replace_the_first(tmp_path: Path) -> None:
    members = [("a.json", b'{"prompt": "a", "score": 1}'), ("a.png", png()), ("a.PNG", png())]
    with pytest.raises(UserError, match="'a' has a second image"):
        read_labels(tar_of(tmp_path / "labels.tar", members), 0.5)


RECORD = b'{"prompt": "a", "score": 1}'


@pytest.mark.parametrize("keys", [["./0", "./1"], ["run.v1/a", "run.v2/a"], ["0", "./1"]])
def test_names_are_those_of_webdataset(tmp_path: Path, keys: list[str]) -> None:
    members = [(f"{key}.{ending}", data) for key in keys for ending, data in (("png", png()), ("JSON", RECORD))]
    # Another field of a sample, what packing tools of a Mac add, and a file of no sample are none.
    members += [(f"{keys[0]}.seg.png", b""), ("._0.png", b""), ("README.txt", b"")]
    found = read_labels(tar_of(tmp_path / "labels.tar", members), 0.5)
    assert [prompt.id for prompt in found.prompts] == [key.removeprefix("./") for key in keys]


def test_a_dot_in_a_samples_name_leaves_no_sample_out(tmp_path: Path) -> None:
    members = [("0.png", png()), ("0.json", RECORD), ("cfg7.5-1.png", png()), ("cfg7.5-1.json", RECORD)]
    with pytest.raises(UserError, match=r"cfg7\.5-1\.png: a sample's name ends at the first dot.* 'cfg7'"):
        read_labels(tar_of(tmp_path / "labels.tar", members), 0.5)


def test_readouts_may_bring_settings_of_their_own() -> None:
    cfg = readout_config(RECIPE, ["judge.batch=7"], "generate:judge.max_new_tokens=3:judge.retries=0")
    assert (cfg.judge.readout, cfg.judge.max_new_tokens, cfg.judge.retries, cfg.judge.batch) == ("generate", 3, 0, 7)
    with pytest.raises(UserError, match="expected one of logprob, likelihood, generate"):
        readout_config(RECIPE, [], "logits")


def test_the_command_on_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["calibrate", "eval.split=validation", "eval.prompts=18", "eval.num_timesteps=9"]
    words += ["--out", str(tmp_path), "--readouts", "logprob", "generate:judge.max_new_tokens=3:judge.retries=0"]
    assert main(words) == 0
    result = json.loads((tmp_path / "calibration.json").read_text())
    read, written = result["readouts"].values()
    assert read["local"]["auc"] > 0.95 and read["local"]["failed"] == 0
    assert read["local"]["n"] > read["local"]["crops"] > 18
    assert read["judge"]["global_template"]["name"] == "shapes_global"
    # its one word again and again is no verdict
    assert written["global"]["failed"] == 1.0 and written["global"]["auc"] is None
    assert (tmp_path / "calibration.md").read_text() == capsys.readouterr().out
    assert "| `logprob` | global | 18 |" in (tmp_path / "calibration.md").read_text()
    assert Image.open(tmp_path / "calibration.png").size[1] > 500
    assert main(["calibrate", "--readouts", "nonsense", "--out", str(tmp_path)]) == 2
    assert "expected one of logprob" in capsys.readouterr().err
