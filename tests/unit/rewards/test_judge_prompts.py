"""Judge questions: the texts that come with the package, and what a broken template says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from srum_ds.common.errors import UserError
from srum_ds.rewards.templates import PROMPTS_FOLDER, builtin_names, load_template


def test_shapes_questions_are_exactly_what_the_judge_learnt() -> None:
    assert (
        load_template("shapes_global").render(prompt="a red circle above a blue square")
        == "does the picture show a red circle above a blue square?"
    )
    assert load_template("shapes_local.jinja").render(phrase="a red circle") == "is this a red circle?"
    assert load_template("shapes_listed").render(phrase="a red circle") == "is there a red circle?"


def test_templates_for_real_models_ask_yes_or_no_about_their_subject() -> None:
    whole = load_template("global_layout").render(prompt='a "small" dog & <cat>', phrase=None)
    part = load_template("local_crop").render(prompt="unused", phrase="a small dog")
    assert '"a "small" dog & <cat>"' in whole
    assert part.count('"a small dog"') == 2
    for question in (whole, part):
        assert question.endswith("yes or no.")
        assert "{" not in question
        assert not question.startswith("\n")


def test_all_built_in_templates_load() -> None:
    assert builtin_names() == [
        "describe",
        "global_layout",
        "global_layout_scale",
        "global_layout_score",
        "ground_boxes",
        "listed_box",
        "local_crop",
        "local_crop_scale",
        "local_crop_score",
        "phrases",
        "region_filter",
        "regional_boxes",
        "sample_level",
        "sample_level_score",
        "shapes_global",
        "shapes_listed",
        "shapes_local",
    ]
    for name in builtin_names():
        template = load_template(name)
        assert template.name == name
        assert template.sha256 == hashlib.sha256((PROMPTS_FOLDER / f"{name}.jinja").read_bytes()).hexdigest()
        assert template.version == "1"
        assert template.label == f"{name} v1 {template.sha256[:8]}"
        question = template.render(
            prompt="a dog",
            phrase="a dog",
            phrases=["a dog"],
            boxes=[[0, 0, 5, 9]],
            number=1,
            width=64,
            height=64,
            think=False,
        )
        assert "version" not in question.lower() and "think" not in question


def test_own_template_by_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{% if phrase %}look for {{ phrase | upper }}{% endif %}\n", encoding="utf-8")
    template = load_template(file)
    assert template.name == "mine"
    assert template.render(phrase="ein Bär") == "look for EIN BÄR"


def test_missing_file_names_the_built_in_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.*shapes_global"):
        load_template(tmp_path / "nowhere.jinja")
    with pytest.raises(UserError, match=r"shapes_globl.*shapes_global"):
        load_template("shapes_globl")


def test_missing_variable_is_named() -> None:
    template = load_template("shapes_local")
    with pytest.raises(UserError, match="shapes_local uses phrase.*available: prompt"):
        template.render(prompt="a circle")
    with pytest.raises(UserError, match="phrase"):
        template.render(prompt="a circle", phrase=None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("is this {{ phrase ?", "line 1"),
        ("ok\n{% if phrase %}", "line 2"),
        ("{{ nothing_known }}", "nothing_known"),
        ("{{ phrase.__class__.__mro__ }}", "unsafe|cannot be rendered"),
        ("{{ 1 / 0 }}", "cannot be rendered"),
        ("{# only a comment #}", "empty"),
    ],
)
def test_broken_template_is_a_clear_error(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "broken.jinja"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        load_template(file).render(phrase="a circle", prompt="a circle")
    assert "broken" in str(caught.value)


def test_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "latin.jinja"
    file.write_bytes(b"is this a b\xe4r?")
    with pytest.raises(UserError, match="UTF-8"):
        load_template(file)
