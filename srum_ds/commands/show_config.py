"""`srum-ds config`: what a run would be configured with, and what each setting is."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import App, Parameter

app = App(name="config", help="Show what a run would be configured with.")


@app.command
def show(*arguments: str, comments: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Print the whole configuration, defaults included, as a recipe.

    Parameters
    ----------
    arguments
        [RECIPE] [key=value ...], as for train.
    comments
        Say of every setting what it is for.
    """
    from omegaconf import OmegaConf

    from srum_ds.config import load_config, plain_config, split_arguments
    from srum_ds.config.explain import commented

    recipe, overrides = split_arguments(arguments)
    if comments:
        print(commented(load_config(recipe, overrides)), end="")
        return
    print(OmegaConf.to_yaml(OmegaConf.create(plain_config(load_config(recipe, overrides)))), end="")


@app.command
def schema() -> None:
    """Print a JSON Schema of recipes, for editors: types, ranges, defaults and descriptions."""
    from srum_ds.config import config_schema

    print(json.dumps(config_schema(), indent=2))


@app.command
def explain(key: str) -> None:
    """Say what a setting is: its meaning, values and default, which recipes set it, what belongs to it.

    Parameters
    ----------
    key
        section.name, such as rollout.pool; a section alone lists its settings.
    """
    from srum_ds.config.explain import explain as explained

    print(explained(key), end="")


@app.command
def page() -> None:
    """Print docs/settings.md: every setting with its default, its values and what it is for."""
    from srum_ds.config.explain import settings_page

    print(settings_page(), end="")
