"""Folders of pictures: this program's and those of other tools, what is missing, and what fits no prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from srum_ds.common.errors import UserError
from srum_ds.evaluation.picture_folder import PictureFolder, write_drawn
from srum_ds.evaluation.scored import PROMPTS, picture_path
from srum_ds.prompts.records import write_records
from srum_ds.types import Prompt

RED = Prompt("geneval-00000", "a photo of a red apple", "colors", (), {"question_id": 12})
TWO = Prompt("geneval-00001", "two dogs/cats.", "counting", (), {"question_id": 7})
BOTH = [RED, TWO]


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"a picture")


def shown(folder: PictureFolder) -> list[tuple[str, int, str]]:
    return [
        (prompt.id, sample, path.relative_to(folder.folder).as_posix()) for prompt, sample, path in folder.pictures()
    ]


def test_a_folder_of_ours_knows_its_prompts_samples_and_what_is_missing(tmp_path: Path) -> None:
    odd = Prompt("a/b c:%", "odd", "colors")
    write_records(tmp_path / PROMPTS, [RED, odd])
    write_drawn(tmp_path, {"samples": 2, "seed": 3})
    for prompt_id, sample in ((odd.id, 1), (odd.id, 0), (RED.id, 0)):
        path = picture_path(tmp_path, prompt_id, sample)
        assert path.parent == tmp_path / "images"
        put(tmp_path, path.relative_to(tmp_path).as_posix())
    put(tmp_path, "images/.x.png.7.tmp", "report.html", "replies-http.jsonl")
    folder = PictureFolder.open(tmp_path)
    assert [(prompt.id, sample) for prompt, sample, _ in folder.pictures()] == [(RED.id, 0), (odd.id, 0), (odd.id, 1)]
    assert folder.missing() == [(RED, 1)]
    assert folder.drawn is not None and folder.drawn["seed"] == 3
    assert not folder.strangers
    assert folder.lines() == [f"{tmp_path}: 1 of 4 pictures are missing: geneval-00000 (1)"]


def test_files_that_fit_no_prompt_are_counted_and_named(tmp_path: Path) -> None:
    write_records(tmp_path / PROMPTS, BOTH)
    write_drawn(tmp_path, {"samples": 1})
    put(tmp_path, "images/geneval-00000_000.png", "images/geneval-00000_001.png", "images/geneval-00009_000.png")
    put(tmp_path, "images/notes.txt", "images/geneval-00001_000.jpg", "cover.png")
    folder = PictureFolder.open(tmp_path)
    assert shown(folder) == [("geneval-00000", 0, "images/geneval-00000_000.png")]
    why = {path.name: reason for path, reason in folder.strangers.items()}
    assert sorted(why) == [
        "cover.png",
        "geneval-00000_001.png",
        "geneval-00001_000.jpg",
        "geneval-00009_000.png",
        "notes.txt",
    ]
    assert "there is no prompt 'geneval-00009'" in why["geneval-00009_000.png"]
    assert "convert it" in why["geneval-00001_000.jpg"] and "has 1 pictures" in why["geneval-00000_001.png"]
    assert any("5 files are no picture" in line for line in folder.lines())


def test_prompts_that_were_left_out_are_no_strangers(tmp_path: Path) -> None:
    write_records(tmp_path / PROMPTS, BOTH)
    put(tmp_path, "images/geneval-00000_000.png", "images/geneval-00001_000.png")
    folder = PictureFolder.open(tmp_path, [TWO])
    assert shown(folder) == [("geneval-00001", 0, "images/geneval-00001_000.png")]
    assert (folder.left_out, folder.strangers, folder.missing()) == (1, {}, [])


def test_prompts_of_another_text_under_the_same_id_are_refused(tmp_path: Path) -> None:
    write_records(tmp_path / PROMPTS, BOTH)
    with pytest.raises(UserError, match="'geneval-00001' is 'two dogs/cats.' there, but 'three dogs'"):
        PictureFolder.open(tmp_path, [RED, Prompt(TWO.id, "three dogs")])


def test_geneval_names_pictures_by_the_prompts_number(tmp_path: Path) -> None:
    put(tmp_path, "00000/samples/00000.png", "00000/samples/00001.png", "00001/samples/00001.png", "00000/grid.png")
    put(tmp_path, "00002/samples/00000.png")
    (tmp_path / "00001" / "metadata.jsonl").write_text(json.dumps({"prompt": TWO.text, "tag": "counting"}))
    folder = PictureFolder.open(tmp_path, BOTH)
    assert folder.layout == "GenEval"
    assert shown(folder) == [
        ("geneval-00000", 0, "00000/samples/00000.png"),
        ("geneval-00000", 1, "00000/samples/00001.png"),
        ("geneval-00001", 1, "00001/samples/00001.png"),
    ]
    assert folder.missing() == [(TWO, 0)]
    assert list(folder.strangers.values()) == ["there is no prompt of number 2"]
    # The folder's number counts, also where only some of the prompts are meant.
    assert [row[0] for row in shown(PictureFolder.open(tmp_path, [TWO]))] == ["geneval-00001"]


def test_geneval_pictures_of_another_prompt_are_strangers(tmp_path: Path) -> None:
    put(tmp_path, "00000/samples/00000.png", "00001/samples/00000.png")
    (tmp_path / "00001" / "metadata.jsonl").write_text(json.dumps({"prompt": "a cow"}))
    folder = PictureFolder.open(tmp_path, BOTH)
    assert [row[0] for row in shown(folder)] == ["geneval-00000"]
    assert "says 'a cow', but geneval-00001 is" in next(iter(folder.strangers.values()))
    (tmp_path / "00001" / "metadata.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"00001/metadata\.jsonl: expected"):
        PictureFolder.open(tmp_path, BOTH)


@pytest.mark.parametrize("numbers", [(0, 1, 0, 1), (0, 1, 2, 3)])
def test_compbench_names_pictures_by_the_prompts_text(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    """Whether each prompt's pictures are numbered from 0, or all pictures are numbered through."""
    texts = ["a photo of a red apple", "a photo of a red apple", "two dogs_cats", "Two dogs_cats."]
    names = [f"samples/{text}_{number:06d}.png" for text, number in zip(texts, numbers, strict=True)]
    put(tmp_path, *names, "samples/a blue cow_000009.png")
    folder = PictureFolder.open(tmp_path, BOTH)
    assert folder.layout == "T2I-CompBench"
    assert shown(folder) == [
        ("geneval-00000", 0, names[0]),
        ("geneval-00000", 1, names[1]),
        ("geneval-00001", 0, names[2]),
        ("geneval-00001", 1, names[3]),
    ]
    assert list(folder.strangers.values()) == ["there is no prompt 'a blue cow'"]


def test_a_picture_named_by_its_text_shows_every_prompt_of_that_text(tmp_path: Path) -> None:
    put(tmp_path, "samples/a photo of a red apple_000000.png")
    twin = Prompt("again", RED.text, "complex")
    folder = PictureFolder.open(tmp_path, [RED, twin])
    assert [row[:2] for row in shown(folder)] == [("geneval-00000", 0), ("again", 0)]
    assert not folder.strangers and not folder.missing()


def test_srum_names_pictures_by_question_id(tmp_path: Path) -> None:
    put(tmp_path, "12.png", "7.png", "99.png", "007.png")
    folder = PictureFolder.open(tmp_path, BOTH)
    assert folder.layout == "SRUM"
    assert {row[:2] for row in shown(folder)} == {("geneval-00000", 0), ("geneval-00001", 0)}
    assert sorted(folder.strangers.values()) == [
        "shows the same prompt and sample as 007.png",
        "there is no prompt of question_id 99",
    ]


def test_pictures_named_by_id_may_lie_in_the_folder_itself(tmp_path: Path) -> None:
    put(tmp_path, "geneval-00000_000.png", "geneval-00001_000.png")
    folder = PictureFolder.open(tmp_path, BOTH)
    assert folder.layout == "srum-ds" and len(folder.pictures()) == 2


def test_a_folder_that_says_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        PictureFolder.open(tmp_path / "none")
    put(tmp_path, "picture.png")
    with pytest.raises(UserError, match=r"no prompts\.jsonl"):
        PictureFolder.open(tmp_path)
    with pytest.raises(UserError, match=r"none of its 1 PNG files .* picture\.png.*GenEval: 00000/samples"):
        PictureFolder.open(tmp_path, BOTH)
    write_records(tmp_path / PROMPTS, BOTH)
    (tmp_path / "drawn.json").write_text('{"seed": 1}')
    with pytest.raises(UserError, match=r"drawn\.json: expected an object"):
        PictureFolder.open(tmp_path)
