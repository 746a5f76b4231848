"""From what a Python program says of settings to a ``Config``: a recipe, a mapping or a Config, and overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.config import Config
from srum_ds.config.loading import config_of, plain_config

Settings = str | Path | Mapping[str, Any] | Config
"""A recipe by name or path, its content (sections, or full keys; ``base`` names a recipe below it), or a ``Config``."""
Overrides = Mapping[str, Any] | Sequence[str]
"""``{"train.steps": 3}``, nested sections, or texts as on the command line: ``["train.steps=3"]``."""


def resolve(settings: Settings, overrides: Overrides = ()) -> Config:
    """The checked configuration. UserError as ``load_config``, and for settings of another kind."""
    if isinstance(settings, Config):
        layer: Mapping[str, Any] = plain_config(settings)
    elif isinstance(settings, str | Path):
        layer = {"base": str(settings)}
    elif isinstance(settings, Mapping):
        layer = settings
    else:
        raise UserError(
            f"config is {type(settings).__name__}; expected a recipe's name or path, a dict of settings, or a Config"
        )
    if isinstance(overrides, Mapping):
        return config_of([layer, overrides])
    if isinstance(overrides, str) or not all(isinstance(word, str) for word in overrides):
        raise UserError(f"overrides={overrides!r}: expected a dict, or a list of texts such as ['train.steps=3']")
    return config_of([layer], overrides)
