"""Judge questions as data files (``questions/*.jinja``, or the user's own), rendered by Jinja in a sandbox."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from jinja2 import meta

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes
from srum_ds.rewards.question_language import QuestionEnvironment, rendered

_VERSION = re.compile(r"\{#[^#]*?\bversion[ \t]+(?P<version>\d+(?:\.\d+)*)", re.IGNORECASE)
PROMPTS_FOLDER = Path(__file__).parent / "questions"

# It keeps a template that came with somebody's recipe from reaching Python, and from taking for ever.
_ENVIRONMENT = QuestionEnvironment()


@dataclass(frozen=True)
class Template:
    """A judge question.

    ``sha256`` is the hash of the file's bytes: it identifies what was asked in every result.
    ``version`` is what a comment in the text says ("version 2"), empty where none does. ``variables``
    are the names that the text uses.
    """

    text: str
    name: str
    sha256: str
    version: str = field(init=False, compare=False)
    variables: frozenset[str] = field(init=False, compare=False)
    _compiled: jinja2.Template = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            variables = frozenset(meta.find_undeclared_variables(_ENVIRONMENT.parse(self.text)))
            compiled = _ENVIRONMENT.from_string(self.text)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(
                f"judge template {self.name}, line {error.lineno}: {error.message}; correct the Jinja syntax"
            ) from error
        except (RecursionError, MemoryError, OverflowError, ValueError, SyntaxError) as error:
            raise UserError(
                f"judge template {self.name} cannot be compiled: {_said(error)}; correct the Jinja"
            ) from error
        said = _VERSION.search(self.text)
        object.__setattr__(self, "version", said["version"] if said else "")
        object.__setattr__(self, "variables", variables)
        object.__setattr__(self, "_compiled", compiled)

    @property
    def label(self) -> str:
        """Name, version and the start of the hash, such as ``shapes_global v1 3f2a9c01``."""
        version = f" v{self.version}" if self.version else ""
        return f"{self.name}{version} {self.sha256[:8]}"

    def described(self) -> dict[str, str]:
        """Name, version and hash, for a result's file."""
        return {"name": self.name, "version": self.version, "sha256": self.sha256}

    def render(self, **values: object) -> str:
        """The question with its variables filled in, stripped of surrounding white space.

        Pass ``prompt=`` (a whole prompt), ``phrase=`` (one object phrase), ``boxes=`` (pixels: x0, y0,
        x1, y1 each, with ``width`` and ``height``) and ``think=`` as they are known; None counts as not
        given, and values the text does not use are no error.

        Raises:
            UserError: a variable the text uses is missing, the text does something the sandbox
                forbids or that fails, or nothing remains.
        """
        given = {name: value for name, value in values.items() if value is not None}
        missing = sorted(self.variables - given.keys())
        if missing:
            raise UserError(
                f"judge template {self.name} uses {', '.join(missing)}, which is not given here; "
                f"available: {', '.join(sorted(given)) or 'nothing'}"
            )
        try:
            question = rendered(self._compiled, given).strip()
        except Exception as error:
            # Filters and methods of texts raise whatever suits them; a macro may call itself for ever.
            raise UserError(
                f"judge template {self.name} cannot be rendered: {_said(error)}; correct the Jinja"
            ) from error
        if not question:
            raise UserError(f"judge template {self.name} renders to an empty question")
        return question


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


def builtin_names() -> list[str]:
    """Names of the templates that come with the package, without suffix, sorted."""
    return sorted(path.stem for path in PROMPTS_FOLDER.glob("*.jinja"))


def load_template(path: str | Path) -> Template:
    """Reads a template from a file, or one of the package's own by its bare name.

    Args:
        path: a file's path, or a name such as ``shapes_global`` (with or without ``.jinja``). A
            file in the working directory comes before a built-in of the same name.

    Raises:
        UserError: no such file or name, unreadable, not UTF-8, or not valid Jinja.
    """
    file = Path(path)
    if not file.is_file() and file.name == str(path):
        own = PROMPTS_FOLDER / f"{file.name.removesuffix('.jinja')}.jinja"
        file = own if own.is_file() else file
    try:
        raw = file_bytes(file)
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"judge template {file} is not UTF-8 text: {error}") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"judge template {path}: {reason}; give a file's path or one of the built-in names "
            f"{', '.join(builtin_names())}"
        ) from error
    return Template(text=text, name=file.stem, sha256=hashlib.sha256(raw).hexdigest())
