"""The documentation's site: its menu, its links, and that the strict build sees one that leads nowhere."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import pytest

pytest.importorskip("mkdocs", reason="`make docs` installs it")

from click import ClickException  # noqa: E402
from mkdocs.commands.build import build  # noqa: E402
from mkdocs.config import load_config  # noqa: E402

from docs import site_hooks  # noqa: E402
from tests.support.paths import ROOT  # noqa: E402


def test_every_page_stands_in_the_menu_once() -> None:
    menu = list(site_hooks.menu((ROOT / "docs/README.md").read_text()))
    pages = [page for section in menu for names in section.values() for page in names]
    assert sorted(pages) == sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name != "README.md")
    assert all(len(section) == 1 for section in menu)


def test_the_menu_follows_the_list() -> None:
    text = "# T\n\n- Use it:\n  [a b](a.md),\n  [c](sub/c.md)\n- Work: [d](d.md)\n\nThe [README](../README.md) says.\n"
    assert list(site_hooks.menu(text)) == [{"Use it": ["a.md", "sub/c.md"]}, {"Work": ["d.md"]}]


@pytest.mark.parametrize(
    "page, text, expected",
    [
        ("docs/training.md", "[a](../README.md#training)", "[a](repository/README.md#training)"),
        ("docs/training.md", "[a](rollouts.md) `[a](../README.md)`", "[a](rollouts.md) `[a](../README.md)`"),
        ("docs/models.md", "[a](examples/palette)", "[a](repository/docs/examples/palette/index.md)"),
        ("README.md", "[a](docs/training.md#hangs)", "[a](../training.md#hangs)"),
        ("README.md", '<img src="docs/images/eval_grid.png">', '<img src="../images/eval_grid.png">'),
        ("benchmarks/README.md", "[a](../docs/watch.md)", "[a](../../watch.md)"),
        ("docs/x.md", "[a](none.md) [b](https://x.org/README.md)", "[a](none.md) [b](https://x.org/README.md)"),
        ("docs/x.md", "```\n[a](../README.md)\n```\n", "```\n[a](../README.md)\n```\n"),
    ],
)
def test_links_lead_to_where_the_site_has_their_targets(page: str, text: str, expected: str) -> None:
    assert site_hooks.with_links(text, PurePosixPath(page)) == expected


def built(folder: Path, page: str) -> Any:
    """A site of one page, with this repository's settings but for its API pages."""
    docs = folder / "docs"
    docs.mkdir()
    (docs / "README.md").write_text("- All: [a](a.md)\n")
    (docs / "a.md").write_text(page)
    config = load_config(str(ROOT / "mkdocs.yml"), docs_dir=str(docs), site_dir=str(folder / "site"), strict=True)
    config.plugins.pop("mkdocstrings", None)
    return config


@pytest.mark.parametrize("link, lost", [("b.md", True), ("a.md#no-such", True), ("a.md#a-heading", False)])
def test_a_link_that_leads_nowhere_ends_the_build(
    link: str, lost: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = built(tmp_path, f"# A heading\n\n[here]({link})\n")
    # MkDocs has loaded them once more, under a name of its own.
    (hooks,) = config.hooks.values()
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    monkeypatch.setattr(hooks, "LIST", tmp_path / "docs/README.md")
    if lost:
        with pytest.raises(ClickException):
            build(config)
    else:
        build(config)
        assert "A heading" in (tmp_path / "site/a.html").read_text()
