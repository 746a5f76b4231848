"""Detections from files and from tiny random models of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from srum_ds.common.errors import UserError
from srum_ds.evaluation.benchmarks import Detection
from srum_ds.evaluation.benchmarks.masks import decode_mask
from srum_ds.evaluation.detectors import Detector, load_detector, read_detections, write_detections
from tests.support.tiny_detectors import write_grounding_dino, write_mask2former, write_owlv2

DOG = {"label": "dog", "score": 0.9, "box": [0.1, 0.2, 0.3, 0.4], "color": "red"}


def test_detections_are_read_from_json_and_from_lines(tmp_path: Path) -> None:
    whole = tmp_path / "detections.json"
    whole.write_text(json.dumps({"images/a_000.png": [DOG], "b_000.png": []}, indent=1))
    found = read_detections(whole)
    assert found.of("images/a_000.png") == [Detection("dog", 0.9, (0.1, 0.2, 0.3, 0.4), None, "red")]
    assert found.of("images/b_000.png") == []
    lines = tmp_path / "detections.jsonl"
    pixels = {"picture": "images/a_000.png", "size": [200, 100], "detections": [{**DOG, "box": [20, 20, 60, 40]}]}
    lines.write_text(json.dumps(pixels) + "\n\n")
    assert read_detections(lines).of("images/a_000.png") == found.of("images/a_000.png")


def test_a_picture_that_nobody_looked_at_is_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "detections.json"
    path.write_text('{"a.png": []}')
    found = read_detections(path)
    assert found.of("images/c.png") is None
    grade = found.missing("images/c.png")
    assert grade.value is None and grade.failure == "detections.json has no entry for images/c.png"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"picture": "b.png", "detections": [', "line 2: not valid JSON"),
        ('{"picture": "b.png"}', "line 2: expected"),
        ('{"picture": "a.png", "detections": []}', "line 2: the picture 'a.png' occurs twice"),
        ('{"picture": "b.png", "detections": {}}', "line 2: the detections of 'b.png' are dict"),
        ('{"picture": "b.png", "detections": [{"label": "dog"}]}', "line 2: object 1: score is None"),
        ('{"picture": "b.png", "detections": [{"score": 1}]}', "line 2: object 1: expected"),
        ('{"picture": "b.png", "detections": [{"label": "d", "score": 1.5, "box": [0,0,1,1]}]}', "score is 1.5"),
        ('{"picture": "b.png", "detections": [{"label": "d", "score": 1, "box": [0,0,1]}]}', "object 1: box is"),
        ('{"picture": "b.png", "detections": [{"label": "d", "score": 1, "box": [9,9,80,70]}]}', "divide pixels"),
        ('{"picture": "b.png", "detections": [{"label": "d", "score": 1, "box": [1,0,0,1]}]}', "x0 >= x1"),
        ('{"picture": "b.png", "size": [0, 1], "detections": []}', "line 2: size"),
    ],
)
def test_malformed_detections_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "detections.jsonl"
    path.write_text('{"picture": "a.png", "detections": []}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        read_detections(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "is list"),
        ("{}", "names no pictures"),
        ('{"a.png": [], "b.png": [], "a.png": []}', "the picture 'a.png' occurs twice"),
        ('{"image": "a.png"}\n{"image": "b.png"}\n', 'or lines {"picture"'),
        ('{"a.png": [{"label": "d"}]}', "'a.png': object 1: score"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "detections.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_detections(path)


def test_what_would_grade_pictures_wrongly_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "detections.json"
    pictures = ["00000/samples/00000.png", "00001/samples/00000.png", "00001/samples/00001.png"]
    path.write_text(json.dumps({"00000.png": [DOG]}))
    with pytest.raises(UserError, match=r"may be any of 2 pictures.*'00000/samples/00000.png'"):
        read_detections(path).refuse(pictures, ["dog"])
    path.write_text(json.dumps({"00001.png": [{**DOG, "label": "Hot_Dog"}]}))
    with pytest.raises(UserError, match="label 'Hot_Dog', which the prompts spell 'hot dog'"):
        read_detections(path).refuse(pictures, ["dog", "hot dog"])
    path.write_text(json.dumps({"00001.png": [DOG, {**DOG, "label": "person"}], pictures[0]: []}))
    # Objects that no prompt asks for are as detectors find them.
    read_detections(path).refuse(pictures, ["dog"])
    assert read_detections(path).strangers(pictures) == []
    assert read_detections(path).strangers(pictures[:1]) == ["00001.png"]


def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((40, 56), (64, 48), (40, 56))
    return [torch.rand(3, height, width, generator=generator) for height, width in sizes]


def detected(folder: Path, classes: list[str]) -> list[list[Detection]]:
    detector = load_detector(str(folder))
    assert isinstance(detector, Detector)
    found = detector.detect(images(), classes)
    assert len(found) == 3
    for one in found:
        assert [item.score for item in one] == sorted((item.score for item in one), reverse=True)
        for item in one:
            assert item.label in classes and 0 <= item.score <= 1
            assert 0 <= item.box[0] < item.box[2] <= 1 and 0 <= item.box[1] < item.box[3] <= 1
    # The same picture gives the same objects wherever it stands, alone and beside others of another size.
    alone = detector.detect(images()[:1], classes)[0]
    assert [item.label for item in alone] == [item.label for item in found[0]]
    assert [item.box for item in alone] == [pytest.approx(item.box, abs=1e-4) for item in found[0]]
    return found


def test_owlv2_finds_objects_of_the_classes(tmp_path: Path) -> None:
    write_owlv2(tmp_path)
    found = detected(tmp_path, ["dog", "red cup"])
    assert any(found)


def test_grounding_dino_is_asked_class_by_class(tmp_path: Path) -> None:
    write_grounding_dino(tmp_path)
    found = detected(tmp_path, ["dog", "cat"])
    assert {item.label for one in found for item in one} == {"dog", "cat"}


def test_mask2former_gives_masks_and_the_boxes_around_them(tmp_path: Path) -> None:
    write_mask2former(tmp_path)
    found = detected(tmp_path, ["dog", "computer mouse"])
    assert any(found)
    for image, one in zip(images(), found, strict=True):
        for item in one:
            assert item.mask is not None
            rows = decode_mask(item.mask, *image.shape[-2:]).any(dim=1).nonzero()[:, 0]
            assert item.box[1] == pytest.approx(int(rows[0]) / image.shape[-2])
            assert item.box[3] == pytest.approx((int(rows[-1]) + 1) / image.shape[-2])
    path = tmp_path / "found.jsonl"
    write_detections(path, [(f"images/{n}.png", one) for n, one in enumerate(found)])
    again = read_detections(path)
    assert [again.of(f"images/{n}.png") for n in range(3)] == found
    with pytest.raises(UserError, match="was not trained on zebra"):
        load_detector(str(tmp_path)).detect(images(), ["zebra"])


def test_a_folder_without_a_detector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config.json cannot be read"):
        load_detector(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bagel"}')
    with pytest.raises(UserError, match="cannot be opened as AutoModelForZeroShotObjectDetection"):
        load_detector(str(tmp_path))
