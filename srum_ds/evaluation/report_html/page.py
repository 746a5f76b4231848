"""Puts a page together: a template with its style and script inside, so that the file needs nothing else.

Everything that comes from prompts, replies and folders is escaped by Jinja, and the page's content security policy
lets no script run but its own one: a prompt with a script tag stays text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, context: Mapping[str, Any], styles: Sequence[str] = ("page.css",)) -> str:
    """The HTML of a file in ``templates``. A name that the context lacks is an error, not an empty place.

    styles: the style sheets that the page takes along, in their order.
    """
    script = _text("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _environment().get_template(template)
    style = Markup("\n".join(map(_text, styles)))
    return page.render(**context, style=style, script=Markup(script), script_sha256=digest)


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _text(name: str) -> str:
    # The digest of the policy is of the text between the tags, line ends included.
    return (TEMPLATES / name).read_text(encoding="utf-8").replace("\r\n", "\n")
