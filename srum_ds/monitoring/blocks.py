"""What a run says before its first step and after its last: a few aligned lines, and commands to type."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from srum_ds.common.texts import is_number
from srum_ds.monitoring.pace import duration

CALLER_PATH = "SRUM_DS_CALLER_PATH"
"""The PATH of whoever typed the command: a rank's own has the environment's programs in front."""
_LABEL = 11
_WIDTH = 79
_WHOLE: Any = {"break_long_words": False, "break_on_hyphens": False}
_LAST = 10
_CHANCE = 2.0
"""Standard errors from which on a difference is called more than chance: about one in twenty by chance."""


class Whole(str):
    """A text of a block that is to be copied, and so is never wrapped."""


def block(title: str, lines: Sequence[tuple[str, str]]) -> str:
    """A title, and below it labels with what they say, wrapped between words; who says nothing is left out."""
    shown = [title]
    for label, text in lines:
        if isinstance(text, Whole) and text:
            shown.append(f"  {label:<{_LABEL}}{text}")
        elif text:
            indent = " " * (_LABEL + 2)
            first = f"  {label:<{_LABEL}}"
            shown.append(textwrap.fill(text, _WIDTH, initial_indent=first, subsequent_indent=indent, **_WHOLE))
    return "\n".join(shown)


def program(name: str) -> str:
    """How a program of this environment is called from the user's shell: by its name where that finds it."""
    own = Path(sys.executable).parent / name
    found = shutil.which(name, path=os.environ.get(CALLER_PATH, os.environ.get("PATH")))
    if found is not None and (not own.exists() or os.path.realpath(found) == os.path.realpath(own)):
        return name
    if own.exists():
        return shlex.quote(_near(own))
    return f"{shlex.quote(_near(Path(sys.executable)))} -m {'srum_ds' if name == 'srum-ds' else name}"


def path_text(path: Path | str) -> str:
    """A path as one types it here."""
    return shlex.quote(str(path))


def tensorboard_command(folder: Path) -> str:
    """What shows a run's TensorBoard."""
    return f"{program('tensorboard')} --logdir {path_text(folder)}"


def rewards_told(records: Sequence[Mapping[str, Any]]) -> str:
    """The self-reward of the last steps against the first ones'; empty where nobody knows it."""
    values = [float(record["reward_global"]) for record in records if is_number(record.get("reward_global"))]
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:+.3f} in the only step"
    count = min(_LAST, len(values) // 2)
    first, last = fmean(values[:count]), fmean(values[-count:])
    steps = "step" if count == 1 else f"{count} steps"
    return f"{last:+.3f} in the last {steps}, {first:+.3f} in the first: {last - first:+.3f}"


def held_out_told(looks: Sequence[Mapping[str, Any]]) -> str:
    """The newest look against the base, and whether that is more than chance; empty where there was none."""
    look = looks[-1] if looks else None
    if look is None or look["step"] == 0 or look["reward"] is None:
        return ""
    text = f"{look['reward']:+.3f} after step {look['step']} on {look['prompts']} prompts"
    gained, spread = look["difference"], look["difference_se"]
    if gained is None:
        return f"{text}; the base was not looked at"
    text += f", base {look['reward'] - gained:+.3f}: {gained:+.3f}"
    if not spread:
        return f"{text}; too few prompts to tell from chance"
    errors = gained / spread
    if abs(errors) < _CHANCE:
        word = "no more than chance"
    else:
        word = "better, more than chance" if errors > 0 else "WORSE, more than chance"
    return f"{text} ± {spread:.3f}, {word} ({errors:+.1f} standard errors)"


def took(seconds: float, steps: int) -> str:
    """How long so many steps took."""
    return f"{steps} steps in {duration(seconds)}"


def _near(path: Path) -> str:
    """A path relative to the working directory, where it lies below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
