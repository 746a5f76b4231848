"""`srum-ds generate --prompts`: a whole set in every layout, gone on with, refused, and read back as others read it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from srum_ds.commands.main import main
from srum_ds.common.errors import UserError
from srum_ds.evaluation.draw_request import model_drawing
from srum_ds.evaluation.draw_set import PromptSet, set_request
from srum_ds.evaluation.layout_paths import NAMES, picture_places
from srum_ds.evaluation.picture_folder import PictureFolder
from srum_ds.evaluation.picture_layouts import COMPBENCH, GENEVAL, OWN, WISE, map_pictures
from srum_ds.models.flow import FlowSampling
from srum_ds.prompts.shards import write_shards
from srum_ds.types import Prompt
from tests.support.paths import MODEL
from tests.support.tiny_models import write_tiny_bagel

Captured = pytest.CaptureFixture[str]
SCENES = [Prompt("k1", "a red cat/dog.", "color"), Prompt("k2", "no", "shape")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bagel(tmp_path_factory.mktemp("model"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.csv"
    path.write_text("text,category\na red cat,color\nno,\na red cat,color\n")
    return path


def words(model: Path, source: Path, out: Path, *more: str) -> list[str]:
    given = ["generate", "--model", str(model), "--prompts", str(source), "--out", str(out), "--steps", "2"]
    return [*given, "--size", "16x16", "--processes", "1", *more]


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_a_set_is_drawn_indexed_and_gone_on_with(model: Path, prompts: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "out"
    assert main(words(model, prompts, out, "--samples", "2", "--seed", "7", "--batch", "3")) == 0
    assert f"4 pictures of 2 prompts of {prompts}, 4 of them drawn now" in capsys.readouterr().out
    before = pictures(out)
    index = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    assert [(line["prompt"], line["sample"], line["seed"]) for line in index] == [
        ("a red cat", 0, 7),
        ("a red cat", 1, 7),
        ("no", 0, 7),
        ("no", 1, 7),
    ]
    assert {line["file"] for line in index} == set(before) and index[2]["category"] == "all"
    (out / index[1]["file"]).unlink()
    (out / "index.jsonl").unlink()
    again = ["--samples", "2", "--seed", "7", "--batch", "3", "--json"]
    assert main(words(model, prompts, out, *again)) == 0
    printed, told = capsys.readouterr()
    assert "1 of them drawn now" in told and pictures(out) == before
    assert [json.loads(line)["image"] for line in printed.splitlines()] == [str(out / line["file"]) for line in index]
    for seed, shift, said in (("8", "3", "seed was 7 and is now 8"), ("7", "2", "sampling.timestep_shift was")):
        other = ["--samples", "2", "--batch", "3", "--seed", seed, "--shift", shift]
        assert main(words(model, prompts, out, *other)) == 2
        assert said in capsys.readouterr().err
    assert pictures(out) == before


def test_genevals_checkout_in_its_own_layout_keeps_its_records(model: Path, tmp_path: Path, capsys: Captured) -> None:
    record = {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}], "prompt": "a red cat"}
    place = tmp_path / "geneval" / "prompts" / "evaluation_metadata.jsonl"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(record) + "\n")
    out = tmp_path / "out"
    given = words(model, tmp_path / "geneval", out, "--layout", "geneval", "--samples", "2")
    assert main(given) == 0
    assert sorted(pictures(out)) == ["00000/samples/00000.png", "00000/samples/00001.png"]
    assert json.loads((out / "00000" / "metadata.jsonl").read_text()) == record
    folder = PictureFolder.open(out)
    assert (folder.layout, len(folder.pictures()), folder.strangers) == (GENEVAL, 2, {})
    assert folder.drawn is not None and folder.drawn["benchmark"] == "geneval"
    before = pictures(out)
    (out / "00000" / "samples" / "00000.png").unlink()
    capsys.readouterr()
    assert main(given) == 0 and "1 of them drawn now" in capsys.readouterr().out
    assert pictures(out) == before


@pytest.mark.parametrize(
    ("layout", "prompts", "samples", "files"),
    [
        (OWN, SCENES, 1, ["images/k1_000.png", "images/k2_000.png"]),
        (GENEVAL, SCENES, 2, [f"0000{n}/samples/0000{k}.png" for n in (0, 1) for k in (0, 1)]),
        (GENEVAL, [Prompt("geneval-00017", "a cat")], 1, ["00017/samples/00000.png"]),
        (COMPBENCH, SCENES, 2, [f"samples/a red cat_dog._00000{n}.png" for n in (0, 1)]),
        (WISE, [Prompt("w", "a festival", "culture", (), {"prompt_id": 701})], 1, ["701.png"]),
        (WISE, SCENES, 1, ["1.png", "2.png"]),
    ],
)
def test_pictures_are_named_as_a_benchmarks_tools_name_them(
    layout: str, prompts: list[Prompt], samples: int, files: list[str]
) -> None:
    places = picture_places(layout, Path("out"), prompts, samples)
    assert len(places) == len(set(places.values())) == len(prompts) * samples
    assert [path.relative_to("out").as_posix() for path in places.values()][: len(files)] == files


@pytest.mark.parametrize("layout", [GENEVAL, COMPBENCH, WISE])
def test_a_reader_of_foreign_folders_finds_the_same_prompts(layout: str, tmp_path: Path) -> None:
    numbered = [
        Prompt(f"geneval-0000{n}", text, "color", (), {"prompt_id": 40 + n})
        for n, text in enumerate(["a red cat/dog.", "no", "two hats"])
    ]
    samples = 1 if layout == WISE else 2
    places = picture_places(layout, tmp_path, numbered, samples)
    mapped = map_pictures(tmp_path, list(places.values()), numbered)
    assert mapped.layout == layout and dict(mapped.found) == dict(places) and not mapped.strangers


@pytest.mark.parametrize(
    ("layout", "prompts", "samples", "said"),
    [
        (WISE, SCENES, 2, "one picture of a prompt"),
        (COMPBENCH, [Prompt("a", "No"), Prompt("b", "no.")], 1, "make the same name"),
        (COMPBENCH, [Prompt("a", "é" * 120)], 1, "at most 230 bytes"),
        (COMPBENCH, [Prompt("a", ".hidden")], 1, "beginning with a full stop"),
    ],
)
def test_a_picture_that_has_no_place_in_a_layout_is_named(
    layout: str, prompts: list[Prompt], samples: int, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        picture_places(layout, Path("out"), prompts, samples)


def test_shards_are_drawn_by_their_split_and_one_text_once_where_it_is_the_name(tmp_path: Path) -> None:
    write_shards(tmp_path, "train", [Prompt("a", "a hat")])
    write_shards(tmp_path, "test", [Prompt("b", "a cat"), Prompt("c", "a cat"), Prompt("d", "no")])
    drawing = model_drawing(MODEL, "bagel", FlowSampling(), None)

    def ids(chosen: PromptSet) -> list[str]:
        return [prompt.id for prompt in set_request(chosen, drawing, 1, tmp_path / "out").prompts]

    assert ids(PromptSet(str(tmp_path))) == ["b", "c", "d"]
    assert ids(PromptSet(str(tmp_path), split="train")) == ["a"]
    assert ids(PromptSet(str(tmp_path), limit=2)) == ["b", "c"]
    assert ids(PromptSet(str(tmp_path), layout="compbench")) == ["b", "d"]
    with pytest.raises(UserError, match="has no split 'val', but test, train"):
        ids(PromptSet(str(tmp_path), split="val"))
    assert set(NAMES) == {"plain", "geneval", "wise", "compbench"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--prompt", "no"], "either --prompt TEXT, once or several times, or --prompts FILE"),
        (["--image", "a.png"], "--image goes with --prompt, not with --prompts"),
        (["--think"], "--think goes with --prompt"),
        (["--force"], "--force goes with --prompt"),
        (["--dtype", "float32"], "--dtype goes with --prompt"),
        (["--samples", "0"], "--samples 0: give at least 1"),
        (["--batch", "0"], "--batch 0: give at least 1"),
        (["--split", "test"], "is no folder of prompt shards"),
        (["--column", "words"], "no column 'words'"),
        (["--layout", "wise", "--samples", "2"], "WISE's tools know one picture of a prompt"),
        (["--sampler", "nonsense=1"], "--sampler nonsense"),
    ],
)
def test_what_does_not_fit_a_set_is_said_before_anything_is_drawn(
    model: Path, prompts: Path, tmp_path: Path, capsys: Captured, more: list[str], said: str
) -> None:
    assert main(words(model, prompts, tmp_path / "out", *more)) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("out/**/*.png"))


def test_options_of_a_set_need_one(model: Path, tmp_path: Path, capsys: Captured) -> None:
    given = ["generate", "--model", str(model), "--out", str(tmp_path)]
    assert main([*given, "--prompt", "no", "--layout", "geneval"]) == 2
    assert "--layout needs a set of prompts: give --prompts FILE" in capsys.readouterr().err
    assert main(given) == 2
    assert "say what to draw" in capsys.readouterr().err
