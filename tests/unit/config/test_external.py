"""``judge.external``: one name as before, or a list of judges."""

from __future__ import annotations

from pathlib import Path

import pytest

from srum_ds.common.errors import UserError, guarded
from srum_ds.config import diff_configs, externals_of, load_config, save_config
from srum_ds.rewards.judge.outside import Externals
from tests.support.paths import MODEL

RECIPE = "launch/recipes/tiny.yaml"

RECIPE_WITH_LIST = """
base: launch/recipes/tiny.yaml
judge:
  external_weight: 0.1
  external:
    - mine.py:score
    - {kind: http, url: "http://host:8000/v1", model: Qwen/Qwen2.5-VL-7B-Instruct, weight: 0.25, concurrency: 4}
    - kind: http
      url: http://other/v1
      model: Qwen/Qwen2.5-VL-7B-Instruct
      template: global_layout_score.jinja
      timeout: 5
"""


def test_a_single_name_has_the_weight_of_its_setting(tmp_path: Path) -> None:
    assert externals_of(load_config(RECIPE).judge) == ()
    cfg = load_config(RECIPE, ["judge.external=mine.py:score", "judge.external_weight=0.3"])
    [one] = externals_of(cfg.judge)
    assert (one.kind, one.function, one.weight, one.name) == ("function", "mine.py:score", 0.3, "score")
    [one] = externals_of(load_config(RECIPE, [f"judge.external={MODEL}"]).judge)
    assert (one.kind, one.path, one.weight, one.name) == ("checkpoint", str(MODEL), 0.5, "tiny_bagel")
    # as a former run's config.yaml has it
    save_config(cfg, tmp_path / "config.yaml")
    assert "external: mine.py:score\n  external_weight: 0.3" in (tmp_path / "config.yaml").read_text()
    assert diff_configs(cfg, load_config(tmp_path / "config.yaml")) == []


def test_a_secret_stands_in_no_name_and_no_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JUDGE", "fjudge:hunter2")
    cfg = load_config(RECIPE, ["judge.external=${oc.env:JUDGE}"])
    assert cfg.reads_environment("judge.external")
    [one] = externals_of(cfg.judge, secret=True)
    assert (one.name, one.function) == ("function", "fjudge:hunter2")
    assert guarded(lambda: Externals(cfg)) == 2
    said = capsys.readouterr().err
    assert "judge.external=${oc.env:JUDGE}" in said and "hunter2" not in said
    assert not load_config(RECIPE).reads_environment("judge.external")


def test_a_list_of_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(RECIPE_WITH_LIST)
    cfg = load_config(recipe)
    function, first, second = externals_of(cfg.judge)
    assert (function.kind, function.weight, function.name) == ("function", 0.1, "score")
    assert (first.weight, first.concurrency, first.name) == (0.25, 4, "Qwen2.5-VL-7B-Instruct")
    assert (second.weight, second.timeout, second.name) == (0.1, 5.0, "Qwen2.5-VL-7B-Instruct_2")
    assert second.template == "global_layout_score" and second.what == "http://other/v1 Qwen/Qwen2.5-VL-7B-Instruct"
    save_config(cfg, tmp_path / "config.yaml")
    assert diff_configs(cfg, load_config(tmp_path / "config.yaml")) == []
    # an address from the environment stays as it was written in what is saved
    monkeypatch.setenv("JUDGE_HOST", "secret-host")
    words = ["judge.external=[{kind: http, url: 'http://${oc.env:JUDGE_HOST}/v1', weight: 0.5}]"]
    cfg = load_config(RECIPE, words)
    assert externals_of(cfg.judge)[0].url == "http://secret-host/v1"
    save_config(cfg, tmp_path / "config.yaml")
    assert "secret-host" not in (tmp_path / "config.yaml").read_text()
    assert diff_configs(cfg, load_config(tmp_path / "config.yaml")) == []


@pytest.mark.parametrize(
    "value, message",
    [
        ("[{kind: http, weight: 0.1}]", r"judge.external\[0\]: a judge of the kind http needs url"),
        ("[a:b, {kind: http, url: u, wieght: 1}]", r"judge.external\[1\]: unknown key 'wieght'.*did you mean weight"),
        ("[{kind: htp, url: u}]", r"judge.external\[0\].kind: Input should be 'function', 'checkpoint' or 'http'"),
        ("[{kind: http, url: u, weight: 2}]", r"judge.external\[0\].weight: .*less than or equal to 1"),
        ("[{kind: function, function: 'a:b', url: u}]", "a judge of the kind function does not read url"),
        ("[a:b, c:d, e:f]", r"the weights 0.5 \+ 0.5 \+ 0.5 sum to 1.5"),
        ("[3]", r"judge.external\[0\] is 3; expected a name, or settings"),
        ("3", "judge.external=3: expected a name, or a list"),
        ("''", "judge.external is empty"),
    ],
)
def test_what_is_no_list_of_judges_is_refused(value: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(RECIPE, [f"judge.external={value}"])
