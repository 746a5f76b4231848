"""Writes docs/notebook.ipynb anew: the blocks of docs/python.md as cells, run in an empty folder, with what they show.

    python -m tests.support.notebook

Without Jupyter, which nothing here needs: a cell is run as Python runs it, and its last expression is shown.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import os
import re
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from tests.support.pages import NOTEBOOK, PYTHON

END = "## What to know"
"""The page's part behind it is no part of the notebook."""


def parts(page: str) -> list[tuple[str, str]]:
    """("markdown" or "code", text) of the page, in order; links lead to where the notebook lies too."""
    found = []
    for number, text in enumerate(re.split(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)):
        if text.strip():
            found.append(("code" if number % 2 else "markdown", text.strip()))
    return found


def run_cell(source: str, namespace: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """Runs a cell; its outputs, as a notebook keeps them."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    value = None
    with redirect_stdout(printed):
        exec(compile(tree, f"cell {number}", "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(printed.getvalue())})
    if value is not None:
        data: dict[str, Any] = {"text/plain": _lines(repr(value))}
        if hasattr(value, "_repr_png_"):
            data["image/png"] = base64.b64encode(value._repr_png_()).decode()
        outputs.append({"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": data})
    return outputs


def build(page: str) -> dict[str, Any]:
    """The notebook of a page, run here."""
    cells: list[dict[str, Any]] = []
    namespace: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    for position, (kind, text) in enumerate(parts(page.partition(END)[0])):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{position}", "metadata": {}, "source": _lines(text)}
        if kind == "code":
            count += 1
            cell |= {"execution_count": count, "outputs": run_cell(text, namespace, count)}
        cells.append(cell)
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": python}, "nbformat": 4, "nbformat_minor": 5}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        notebook = build(PYTHON.read_text())
        os.chdir(here)
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
