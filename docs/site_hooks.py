"""What MkDocs does beside its own to make the site (`make docs`), so that pages read alike there and in a repository.

- The menu is the list in docs/README.md: a section for each of its lines, a page for each link.
- A link to what lies outside docs/ (README.md, a recipe, a benchmark's table) leads to a copy of it in the site, under
  ``repository/``. Pages of Markdown become pages, folders become a page with their files, everything else is copied.
  A link that leads nowhere stays as it is, which the strict build takes for an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
DOCS = PurePosixPath("docs")
LIST = ROOT / DOCS / "README.md"
COPIES = PurePosixPath("repository")
"""Folder of the site for what lies outside docs/."""

# [text](target) and src="target", but not in code.
_FENCE = re.compile(r"(^ *```.*?^ *```[^\n]*$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_TARGET = re.compile(r"(\]\(|src=\")([^)\s\"#]+)([^)\s\"]*)")


def on_config(config: Any) -> Any:
    """Makes the menu of docs/README.md."""
    config["nav"] = [{"Overview": "README.md"}, *menu(LIST.read_text(encoding="utf-8"))]
    return config


def menu(text: str) -> Iterator[dict[str, list[str]]]:
    """Sections with their pages from lines such as ``- Use it: [training](training.md), [commands](commands.md)``."""
    for line in re.findall(r"^- ([^:\n]+):(.*(?:\n  .+)*)", text, re.MULTILINE):
        yield {line[0]: re.findall(r"\]\(([\w/-]+\.md)\)", line[1])}


def on_files(files: Files, config: Any) -> Files:
    """Adds what pages link to outside docs/, and what these link to in turn."""
    waiting = [PurePosixPath(DOCS / file.src_uri) for file in files.documentation_pages()]
    seen = set(waiting)
    while waiting:
        page = waiting.pop()
        for target in sorted(targets(page)):
            if target in seen:
                continue
            seen.add(target)
            path = ROOT / target
            place = str(site_uri(target))
            if target.is_relative_to(DOCS) and files.get_file_from_path(place) is not None:
                continue
            if path.is_dir():
                files.append(File.generated(config, place, content=folder_page(path)))
            else:
                files.append(File.generated(config, place, abs_src_path=str(path)))
                if path.suffix == ".md":
                    waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Has the links of a page lead to where the site has their targets."""
    return with_links(markdown, source_of(page.file.src_uri))


def source_of(uri: str) -> PurePosixPath:
    """The path in the repository of a page of the site."""
    place = PurePosixPath(uri)
    return place.relative_to(COPIES) if place.is_relative_to(COPIES) else DOCS / place


def site_uri(target: PurePosixPath) -> PurePosixPath:
    """Where the site has a file or folder of the repository."""
    path = ROOT / target
    if path.is_dir():
        return COPIES / target / "index.md"
    return target.relative_to(DOCS) if target.is_relative_to(DOCS) and path.suffix != ".py" else COPIES / target


def targets(page: PurePosixPath) -> set[PurePosixPath]:
    """What a page of Markdown links to, as paths in the repository that are there."""
    found: set[PurePosixPath] = set()

    def note(target: PurePosixPath) -> str:
        found.add(target)
        return ""

    rewritten((ROOT / page).read_text(encoding="utf-8"), page, note)
    return found


def with_links(text: str, page: PurePosixPath) -> str:
    """The text of a page with its links as the site needs them."""
    folder = site_uri(page).parent
    return rewritten(text, page, lambda target: os.path.relpath(site_uri(target), folder))


def rewritten(text: str, page: PurePosixPath, link: Callable[[PurePosixPath], str]) -> str:
    """The text with each link to a file or folder of the repository as ``link`` makes it of the path."""

    def replace(match: re.Match[str]) -> str:
        start, given, rest = match.groups()
        target = PurePosixPath(os.path.normpath(page.parent / given))
        if "://" in given or given.startswith("mailto:") or not (ROOT / target).exists():
            return match[0]
        return f"{start}{link(target)}{rest}"

    parts = _FENCE.split(text)
    # Every other part is code.
    return "".join(part if number % 2 else _TARGET.sub(replace, part) for number, part in enumerate(parts))


def folder_page(folder: Path) -> str:
    """A page that shows the text files of a folder."""
    parts = [f"# {folder.relative_to(ROOT)}"]
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".py", ".md", ".toml", ".yaml", ".json", ".txt"):
            text = path.read_text(encoding="utf-8").rstrip("\n")
            parts.append(f"## {path.relative_to(folder)}\n\n````{path.suffix[1:]}\n{text}\n````")
    return "\n\n".join(parts) + "\n"
