"""Drawing into a folder, in this process: what it writes, what it does not draw again, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from srum_ds.common.errors import UserError
from srum_ds.common.image_files import read_image
from srum_ds.common.seeds import Key
from srum_ds.config import load_config, save_config
from srum_ds.evaluation import draw_pictures as worker
from srum_ds.evaluation.draw import image_key
from srum_ds.evaluation.draw_folder import draw_folders
from srum_ds.evaluation.draw_request import DrawOptions, DrawRequest, PromptChoice, draw_request
from srum_ds.evaluation.evaluate_benchmark import evaluate_benchmark, run_folders
from srum_ds.evaluation.picture_folder import PictureFolder, read_drawn
from srum_ds.evaluation.processes import model_of
from srum_ds.evaluation.score_request import JudgeChoice, ScoreRequest
from tests.support.paths import MODEL, RECIPE

SIX = PromptChoice("shapes", limit=6)
QUICK = DrawOptions(("num_timesteps=3",), batch=2)


def request(out: Path, choice: PromptChoice = SIX, options: DrawOptions = QUICK) -> DrawRequest:
    return draw_request(MODEL, False, choice, options, out)


def draw(*requests: DrawRequest) -> None:
    assert draw_folders(lambda: requests, processes=1)


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "images").iterdir())}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures in batches of two; nobody writes there."""
    folder = tmp_path_factory.mktemp("drawn") / "six"
    draw(request(folder))
    return folder


def test_the_folder_says_how_its_pictures_were_drawn(drawn: Path) -> None:
    folder = PictureFolder.open(drawn)
    assert len(folder.pictures()) == 6 and not folder.missing() and not folder.strangers
    assert len({prompt.category for prompt in folder.prompts}) > 1
    facts = read_drawn(drawn)
    assert facts is not None
    assert (facts["benchmark"], facts["version"], facts["seed"], facts["samples"]) == ("shapes", "1", 1234, 1)
    assert (facts["image_size"], facts["limit"], facts["dtype"]) == ([64, 64], 6, "float32")
    assert facts["sampling"]["num_timesteps"] == 3 and facts["model"] == str(MODEL)


def test_a_picture_is_the_models_own_of_seed_prompt_and_sample(drawn: Path) -> None:
    prompt, sample, path = PictureFolder.open(drawn).pictures()[3]
    model = model_of(MODEL, "bagel", "cpu")
    key: Key = image_key(1234, prompt, sample)
    _, image_NCHW = model.generate([prompt], [key], model.grid(64, 64), request(drawn).drawing.sampling)
    # Alone instead of in a batch, so that a value may be rounded to the next one.
    assert (read_image(path) - image_NCHW[0]).abs().max() <= 1.01 / 255


def test_what_is_there_is_not_written_again_and_what_is_missing_comes_back_the_same(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "six"
    draw(request(folder))
    before = pictures(folder)
    assert before == pictures(drawn)
    names = sorted(before)
    # Half a batch, a whole one, and what a killed process leaves of a file.
    for name in (names[1], names[4], names[5]):
        (folder / "images" / name).unlink()
    (folder / "images" / f".{names[1]}.99.tmp").write_bytes(b"half")
    kept = {name: (folder / "images" / name).stat().st_mtime_ns for name in (names[0], names[2], names[3])}
    capsys.readouterr()
    draw(request(folder))
    assert "6 pictures of 6 prompts of shapes, 3 of them drawn now" in capsys.readouterr().out
    assert pictures(folder) == before
    assert kept == {name: (folder / "images" / name).stat().st_mtime_ns for name in kept}


def test_a_whole_folder_loads_no_model(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(worker, "model_of", load)
    monkeypatch.setattr("srum_ds.evaluation.draw_folder.model_of", load)
    draw(request(drawn))


def test_samples_of_a_prompt_differ_and_do_not_depend_on_their_number(drawn: Path, tmp_path: Path) -> None:
    choice = PromptChoice("shapes", limit=1)
    draw(request(tmp_path / "two", choice, DrawOptions(("num_timesteps=3",), samples=2, batch=2)))
    first, second = (read_image(path) for _, _, path in PictureFolder.open(tmp_path / "two").pictures())
    assert (first - second).abs().max() > 0.05
    alone = read_image(PictureFolder.open(drawn).pictures()[0].path)
    assert (first - alone).abs().max() <= 1.01 / 255


@pytest.mark.parametrize(
    ("choice", "options", "said"),
    [
        (SIX, DrawOptions(("num_timesteps=4",), batch=2), "sampling.num_timesteps was 3 and is now 4"),
        (SIX, DrawOptions(QUICK.words, batch=2, seed=5), "seed was 1234 and is now 5"),
        (SIX, DrawOptions(QUICK.words, batch=3), "batch was 2 and is now 3"),
        (SIX, DrawOptions(QUICK.words, batch=2, samples=2), "samples was 1 and is now 2"),
        (SIX, DrawOptions(QUICK.words, batch=2, size=(32, 64)), r"image_size was \[64, 64\] and is now \[32, 64\]"),
        (PromptChoice("shapes", limit=5), QUICK, "limit was 6 and is now 5; prompts_sha256 was"),
        (PromptChoice("shapes", limit=6, categories=("color",)), QUICK, r"categories was \[\] and is now \['color'\]"),
    ],
)
def test_a_folder_of_other_pictures_is_refused(
    drawn: Path, choice: PromptChoice, options: DrawOptions, said: str
) -> None:
    with pytest.raises(UserError, match=f"holds other pictures: {said}"):
        draw(request(drawn, choice, options))
    assert len(PictureFolder.open(drawn).pictures()) == 6


def test_settings_bind_nobody_before_the_first_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(type(model_of(MODEL, "bagel", "cpu")), "generate", fail)
        with pytest.raises(UserError, match="too little memory to draw 2 pictures at once: lower --batch"):
            draw(request(tmp_path / "d"))
    draw(request(tmp_path / "d", SIX, DrawOptions(QUICK.words, batch=1)))
    assert len(PictureFolder.open(tmp_path / "d").pictures()) == 6


def test_pictures_of_another_tool_are_not_drawn_over(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat_000.png").write_bytes(b"a picture")
    with pytest.raises(UserError, match="that another tool made"):
        draw(request(tmp_path))


def test_pictures_that_are_no_numbers_are_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(model_of(MODEL, "bagel", "cpu"))
    nan = (torch.full((2, 4, 3), torch.nan), torch.full((2, 3, 64, 64), torch.nan))
    monkeypatch.setattr(kind, "generate", lambda *_: nan)
    with pytest.raises(UserError, match="not finite"):
        draw(request(tmp_path / "d"))
    assert not list(tmp_path.rglob("*.png"))


# ---- whose settings


def run_of(folder: Path, *words: str) -> Path:
    """A run's folder whose trained model is its base."""
    folder.mkdir()
    save_config(
        load_config(RECIPE, [f"model.path={MODEL}", "eval.batch=3", "eval.num_timesteps=3", *words]),
        folder / "config.yaml",
    )
    (folder / "export").symlink_to(MODEL)
    return folder


def test_a_run_draws_with_its_own_settings_of_evaluation(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "eval.seed=9")
    made = draw_request(run, False, SIX, DrawOptions(("eval.text_scale=2",)), tmp_path / "out").drawing
    assert (made.model, made.seed, made.batch, made.image_size) == (run / "export", 9, 3, (64, 64))
    assert (made.sampling.num_timesteps, made.sampling.text_scale) == (3, 2.0)
    assert draw_request(run, True, SIX, DrawOptions(seed=4), tmp_path / "out").drawing.model == MODEL
    with pytest.raises(UserError, match=r"train\.lr.*only eval\.\* and limits\.\* can be chosen anew"):
        draw_request(run, False, SIX, DrawOptions(("train.lr=1",)), tmp_path / "out")
    (run / "export").unlink()
    with pytest.raises(UserError, match="has not finished"):
        draw_request(run, False, SIX, DrawOptions(), tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("eval.num_timesteps=3",), "by their own names: num_timesteps=3"),
        (("num_timestep=3",), "did you mean num_timesteps"),
        (("num_timesteps",), "expected key=value"),
        (("num_timesteps=many",), "num_timesteps=many"),
    ],
)
def test_a_bare_model_takes_settings_of_its_sampler(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        request(tmp_path, SIX, DrawOptions(words))


def test_what_is_no_model_no_run_and_no_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run"):
        draw_request(MODEL, True, SIX, QUICK, tmp_path)
    with pytest.raises(UserError, match="nowhere is not a folder"):
        draw_request(tmp_path / "nowhere", False, SIX, QUICK, tmp_path)
    with pytest.raises(UserError, match="did you mean 'shapes'"):
        draw_request(MODEL, False, PromptChoice("shape"), QUICK, tmp_path)
    with pytest.raises(UserError, match="--samples 0"):
        request(tmp_path, SIX, DrawOptions(samples=0))


def test_a_benchmark_of_a_run_draws_scores_and_compares_both_models(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    scored: list[ScoreRequest] = []
    compared: list[Path] = []
    judge = JudgeChoice("checker")
    evaluate_benchmark(run, SIX, DrawOptions(), judge, scored.append, lambda *pair: compared.extend(pair), processes=1)
    base, trained = run / "eval" / "shapes" / "base", run / "eval" / "shapes" / "trained"
    assert [one.folder for one in scored] == [base, trained] and compared == [base, trained]
    assert all(one.choice == SIX and one.judge.kind == "checker" for one in scored)
    # The same weights, prompts and seed: the same pictures.
    assert pictures(base) == pictures(trained) and len(pictures(base)) == 6
    assert json.loads((base / "drawn.json").read_text())["model"] == str(MODEL)


def test_a_benchmark_of_a_bare_model_has_nothing_to_compare_with(tmp_path: Path) -> None:
    scored: list[ScoreRequest] = []

    def compare(base: Path, trained: Path) -> None:
        raise AssertionError("nothing to compare")

    judge = JudgeChoice("checker")
    with pytest.raises(UserError, match="say by --out"):
        evaluate_benchmark(MODEL, SIX, QUICK, judge, scored.append, compare)
    evaluate_benchmark(MODEL, SIX, QUICK, judge, scored.append, compare, out=tmp_path / "out", processes=1)
    assert [one.folder for one in scored] == [tmp_path / "out"]


def test_a_benchmark_named_by_its_file_has_a_folder_of_its_own() -> None:
    assert run_folders(Path("r"), "my/bench.py:CATS")[True] == Path("r/eval/my-bench.py-CATS/base")


def test_numbers_of_a_judge_are_checked() -> None:
    for judge, said in (
        (JudgeChoice("oracle"), "--judge=oracle: no such judge"),
        (JudgeChoice("checker", concurrency=0), "--concurrency 0"),
        (JudgeChoice("checker", timeout=0), "--timeout 0"),
        (JudgeChoice("checker", retries=-1), "--retries -1"),
    ):
        with pytest.raises(UserError, match=said):
            judge.check()
