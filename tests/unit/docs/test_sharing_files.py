"""CITATION.cff, the Dockerfile and .dockerignore: as their formats want them, and true of this tree."""

from __future__ import annotations

import re
from datetime import date
from pathlib import PurePosixPath

import yaml

from srum_ds import __version__
from tests.support.paths import ROOT

KNOWN = {"ARG", "CMD", "COPY", "ENV", "FROM", "RUN", "SHELL", "USER", "WORKDIR"}


def instructions() -> list[tuple[str, str]]:
    """(instruction, its arguments in one line) of the Dockerfile, comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    found = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(word.upper(), " ".join(rest[0].split()) if rest else "") for word, *rest in found]


def ignored() -> list[str]:
    """The patterns of .dockerignore."""
    return [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


def test_the_citation_names_this_version_and_the_papers_authors() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    required = {"cff-version", "message", "title", "authors", "type", "version", "license", "references"}
    assert required <= cited.keys() and cited["cff-version"] == "1.2.0" and cited["type"] == "software"
    assert str(cited["version"]) == __version__ and cited["license"] == "Apache-2.0"
    assert all(author.keys() <= {"name", "family-names", "given-names"} and author for author in cited["authors"])
    (paper,) = cited["references"]
    assert paper["type"] == "article" and date(paper["year"], paper["month"], 1) == date(2025, 10, 1)
    names = [author["family-names"] for author in paper["authors"]]
    assert names == ["Jin", "Niu", "Liao", "Duan", "Li", "Gao", "Liu"]
    assert paper["url"].endswith("/2510.12784") and paper["identifiers"][0]["value"] == "arXiv:2510.12784"


def test_the_image_installs_what_is_locked_and_runs_without_root() -> None:
    found = instructions()
    assert {word for word, _ in found} <= KNOWN
    words = [word for word, _ in found]
    assert words.index("FROM") < words.index("USER") < words.index("CMD") and words.count("USER") == 1
    arguments = dict(text.split("=", 1) for word, text in found if word == "ARG")
    user = next(text for word, text in found if word == "USER")
    assert user == "${USER_ID}:${GROUP_ID}" and int(arguments["USER_ID"]) > 0
    # torch brings its CUDA libraries, and what is compiled beside them must be of the same major version.
    locked = re.search(r"^cuda-toolkit==(\d+)\.", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    image = re.fullmatch(r"nvidia/cuda:(\d+)\.\d+\.\d+-devel-ubuntu[\d.]+", arguments["CUDA_IMAGE"])
    assert locked is not None and image is not None and image[1] == locked[1]
    commands = " && ".join(text for word, text in found if word == "RUN")
    assert "--require-hashes --requirement requirements.lock" in commands and "make setup" in commands
    for word, text in found:
        if word == "COPY":
            names = [name for name in text.split()[:-1] if not name.startswith("--")]
            assert names and all((ROOT / name).exists() for name in names)
    assert found[-1] == ("CMD", '["srum-ds", "train", "tiny"]')


def test_the_images_context_holds_neither_history_nor_secrets_and_all_that_is_needed() -> None:
    patterns = ignored()
    assert {".git", ".venv", "runs", ".env", "**/__pycache__"} <= set(patterns)
    needed = ("srum_ds/train.py", "requirements.lock", "Makefile", "launch/recipes/tiny.yaml", "tests/conftest.py")
    for name in needed:
        assert (ROOT / name).exists()
        parents = [str(parent) for parent in PurePosixPath(name).parents]
        assert not any(PurePosixPath(name).match(pattern) or pattern in parents for pattern in patterns), name
