"""What the documentation names is there: paths, links, commands, targets, settings, sources; and it is short."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from srum_ds.config.messages import is_options
from srum_ds.config.reading import known_keys
from tests.support.paths import ROOT

PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        ROOT / "benchmarks/README.md",
        ROOT / "srum_ds/models/README.md",
    ]
)
# Written of what is no longer there.
HISTORY = ("CHANGELOG.md",)

# Folders of the repository that a path in the text may begin with.
FOLDERS = ("srum_ds", "tests", "docs", "launch", "benchmarks", "ds_configs", "data_shards", ".ci")
SUFFIXES = ("md", "py", "yaml", "json", "jinja", "toml", "txt", "png", "sh", "sbatch", "jsonl", "tar")
# What commands in the text write: beginnings of paths, and whole paths.
WRITTEN = (
    "runs/",
    "rollouts",
    "rescored",
    "samples/",
    "phrases/",
    "data_shards/mine",
    "data_shards/compbench",
    "srum_ds/models/NAME",
)
WRITTEN_EXACTLY = ("benchmarks/ablation", "benchmarks/gpu.json")


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_the_pages_are_there() -> None:
    names = {str(page.relative_to(ROOT)) for page in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/development.md", "docs/notation.md"} <= names


def test_pages_are_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    assert len((ROOT / "docs/development.md").read_text().splitlines()) <= 90


def test_paths_and_modules_in_the_text_exist(page: Path) -> None:
    if page.name not in HISTORY:
        assert missing_paths(page.read_text(), page.parent) == []


def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page.read_text(), page) == []


def test_commands_are_known(page: Path) -> None:
    assert unknown_commands(page.read_text()) == []


def test_settings_are_known(page: Path) -> None:
    assert unknown_settings(page.read_text()) == []


def test_every_page_of_docs_is_linked_from_another() -> None:
    linked = {(page.parent / target).resolve() for page in PAGES for target, _ in links(page.read_text()) if target}
    for page in (ROOT / "docs").glob("*.md"):
        assert page in linked, f"no page links to {page.name}"


def test_every_paper_named_in_the_code_is_listed() -> None:
    listed = set(re.findall(r"arxiv\.org/abs/(\d{4}\.\d{5})", (ROOT / "docs/papers.md").read_text()))
    named = {
        paper
        for path in (ROOT / "srum_ds").rglob("*.py")
        for paper in re.findall(r"arXiv\s+(\d{4}\.\d{5})", path.read_text())
    }
    assert named == listed


def test_every_function_of_a_paper_stands_where_it_is_said() -> None:
    """A row names functions and after them their file: `name` in `file.py`."""
    for names, file in re.findall(r"((?:`\w+`(?: and )?)+) in `(srum_ds/[\w/]+\.py)`", papers := _papers()):
        for name in re.findall(r"`(\w+)`", names):
            pattern = rf"^\s*(def|class) {name}\b|^{name}\b.*="
            assert re.search(pattern, (ROOT / file).read_text(), re.MULTILINE), f"{name} is not in {file}"
    assert papers.count("srum_ds/") > 15


def test_what_is_wrong_is_found() -> None:
    """The checks above see a wrong path, link, command, target and setting."""
    page = ROOT / "docs" / "x.md"
    assert missing_paths("`srum_ds/train.py` `srum_ds/no_such.py`", page.parent) == ["srum_ds/no_such.py"]
    assert missing_paths("python benchmarks/none.py --quick", page.parent) == ["benchmarks/none.py"]
    assert missing_paths("`models/none.py`", page.parent) == ["models/none.py"]
    assert missing_paths("python -m tests.none; python -m srum_ds.train", page.parent) == ["tests/none"]
    assert broken_links("[a](none.md) [b](../README.md#no-such-part) [c](../README.md)", page) == [
        "none.md",
        "../README.md#no-such-part",
    ]
    assert unknown_commands("```\nsrum-ds trian x\nmake tset\nsrum-ds eval\nmake test\n```") == [
        "srum-ds trian",
        "make tset",
    ]
    assert unknown_commands("`srum-ds config shwo` and `make lint`") == ["srum-ds config shwo"]
    assert unknown_settings("`train.stepz` train.steps=4 judge.readuot=x objective.options.mine=1 `objective.*`") == [
        "train.stepz",
        "judge.readuot",
    ]


def missing_paths(text: str, folder: Path) -> list[str]:
    """Paths in the text that are in none of: the repository, the package, its recipes, the page's folder."""
    roots = [ROOT, ROOT / "srum_ds", ROOT / "launch/recipes", ROOT / "srum_ds/engine", folder]
    names = [name for name in _paths(text) if not name.startswith(WRITTEN) and name not in WRITTEN_EXACTLY]
    names += [name.replace(".", "/") for name in re.findall(r"python -m ((?:srum_ds|tests)[\w.]*)", text)]
    return [name for name in names if not any(_exists(root / name) for root in roots)]


def _exists(path: Path) -> bool:
    return path.exists() or path.with_name(f"{path.name}.py").exists()


def _paths(text: str) -> Iterator[str]:
    """Words that look like paths: below a folder of the repository, or a file in backticks with a folder before it."""
    text = re.sub(r"https?://\S+", "", text)
    inside = "|".join(re.escape(folder) for folder in FOLDERS)
    for word in re.findall(rf"(?<![\w/.-])(?:{inside})/[\w./-]*", text):
        yield word.rstrip(".")
    suffixes = "|".join(SUFFIXES)
    for word in re.findall(rf"`((?:[\w-]+/)+[\w.-]+\.(?:{suffixes}))`", text):
        if not word.startswith(tuple(f"{folder}/" for folder in FOLDERS)):
            yield word


def links(text: str) -> list[tuple[str, str]]:
    """(path, anchor) of each relative link and image."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    return [(target.partition("#")[0], target.partition("#")[2]) for target in found if "://" not in target]


def broken_links(text: str, page: Path) -> list[str]:
    """Relative links to a file that is not there, or to a heading that it does not have."""
    broken = []
    for target, anchor in links(text):
        path = page.parent / target if target else page
        there = path.exists() and (not anchor or anchor in _anchors(path.read_text()))
        if not there:
            broken.append(f"{target}#{anchor}" if anchor else target)
    return broken


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def unknown_commands(text: str) -> list[str]:
    """`srum-ds ...` and `make ...` in code that the console script and the Makefile do not have."""
    from srum_ds.commands.main import app

    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    unknown = []
    for code in re.findall(r"```.*?```|`[^`\n]+`", text, flags=re.DOTALL):
        for words in re.findall(r"(?<![\w-])srum-ds((?: [a-z][a-z-]*)*)", code):
            known, named = app, []
            for word in words.split():
                subcommands = {name: known[name] for name in known if not name.startswith("-")}
                if not subcommands:
                    break
                named.append(word)
                if word not in subcommands:
                    if known.default_command is not None:
                        # `eval runs/tiny`: the group is a command too, and this is its argument.
                        break
                    unknown.append(" ".join(["srum-ds", *named]))
                    break
                known = subcommands[word]
        for line in code.strip("`").splitlines():
            found = re.match(r"\s*make ([a-z][a-z-]*)", line)
            if found and found[1] not in targets:
                unknown.append(f"make {found[1]}")
    return unknown


def unknown_settings(text: str) -> list[str]:
    """Words of the form ``section.name``, in code or before an equals sign, that are no setting."""
    sections = "|".join(sorted({key.partition(".")[0] for key in known_keys()}))
    text = re.sub(r"https?://\S+", "", text)
    words = re.findall(rf"`({sections})\.([a-z_]+)(?=[`=.])", text)
    words += re.findall(rf"(?<![\w./-])({sections})\.([a-z_]+)(?==)", text)
    # Names of files and of functions, such as `train.train` or `data.tar`.
    words += re.findall(rf"(?<![\w./-])({sections})\.([a-z]+_[a-z_]+)\b(?!\()", text)
    options = {key for key, kind in known_keys().items() if is_options(kind)}
    found = dict.fromkeys(f"{section}.{name}" for section, name in words)
    known = {*known_keys(), *options}
    known |= {"run.log"}  # a file of every run
    return [key for key in found if key not in known and key.partition(".")[2] not in SUFFIXES]


def _papers() -> str:
    return (ROOT / "docs/papers.md").read_text()
