"""Code that pages of the documentation show, as a reader would copy it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

OWN_CODE = ROOT / "docs" / "own_code.md"
PYTHON = ROOT / "docs" / "python.md"
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def blocks(page: Path, language: str = "python") -> list[str]:
    """The code of the page's blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def files(page: Path) -> dict[str, str]:
    """Name -> code of the blocks that begin with a file's name in a comment."""
    named = ((re.match(r"# (\w+\.py)\n", code), code) for code in blocks(page))
    return {found[1]: code for found, code in named if found}


def write_files(page: Path, folder: Path) -> None:
    """Copies the page's files into a folder."""
    for name, code in files(page).items():
        (folder / name).write_text(code)


def cells(notebook: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook: their source as one text, and their outputs."""
    found = json.loads(notebook.read_text())["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in found if cell["cell_type"] == "code"]
