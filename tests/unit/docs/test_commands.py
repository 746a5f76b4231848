"""Every `srum-ds` line of the documentation is one that the console script takes: commands, options, their values."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import CycloptsError

from srum_ds.commands.main import app, main
from srum_ds.config import load_config
from tests.support.paths import ROOT
from tests.unit.docs.test_docs import PAGES

# A form with alternatives, or with what the reader fills in.
_FORM = re.compile(r"[\[\]{}|…]|\.\.\.|\bWORD\b|\$\w")


def command_lines(text: str) -> Iterator[str]:
    """The lines of a page's blocks of code that call `srum-ds`, continued ones joined, no comments and redirections."""
    for block in re.findall(r"^```(?:bash|sh)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = re.sub(r"\s(#|>>?)\s.*$", "", line).strip()
            if words.startswith("srum-ds ") and not _FORM.search(words):
                yield words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_is_taken(page: Path) -> None:
    wrong = []
    for line in command_lines(page.read_text()):
        try:
            app.parse_args(shlex.split(line)[1:], exit_on_error=False, print_error=False)
        except CycloptsError as error:
            wrong.append(f"{line}: {error}")
    assert wrong == []


@pytest.mark.parametrize("page", ["quickstart.md", "own_prompts.md"])
def test_the_pages_for_who_begins_work(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes no model is done; a training of the embedded one is taken as far as the launcher's command line."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a red circle\na blue square\n")
    Path("prompts.csv").write_text("caption\na red circle\na blue square\n")
    checkout = Path("T2I-CompBench/examples/dataset")
    checkout.mkdir(parents=True)
    (checkout / "color_train.txt").write_text("a green bench\n")
    done = set()
    for line in command_lines((ROOT / "docs" / page).read_text()):
        words = shlex.split(line)[1:]
        if words[:2] == ["train", "launch/recipes/bagel.yaml"]:
            # Its model is not here, and the preflight says so.
            load_config(ROOT / words[1], words[2:])
        elif words[0] in ("init", "config", "shards", "train"):
            assert main([*words, "--dry-run"] if words[0] == "train" else words) == 0, line
            done.add(words[0])
    assert done == {"quickstart.md": {"init", "config", "train"}, "own_prompts.md": {"shards", "train"}}[page]


def test_a_wrong_option_is_found() -> None:
    lines = [
        "srum-ds plan a.yaml --gpus 8 \\",
        "    --gpu h100-80g   # a comment",
        "srum-ds train [RECIPE] [key=value ...]",
    ]
    page = "\n".join(["```", *lines, "```", ""])
    assert [shlex.split(line) for line in command_lines(page)] == [
        ["srum-ds", "plan", "a.yaml", "--gpus", "8", "--gpu", "h100-80g"]
    ]
    with pytest.raises(CycloptsError):
        app.parse_args(["plan", "a.yaml", "--gpuz", "8"], exit_on_error=False, print_error=False)
