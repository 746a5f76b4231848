"""`srum-ds config show` and `srum-ds config schema`: what a run would be configured with."""

from __future__ import annotations

import json

from cyclopts import App

app = App(name="config", help="Show what a run would be configured with.")


@app.command
def show(*arguments: str) -> None:
    """Print the whole configuration, defaults included, as a recipe.

    Parameters
    ----------
    arguments
        [RECIPE] [key=value ...], as for train.
    """
    from omegaconf import OmegaConf

    from srum_ds.config import load_config, plain_config, split_arguments

    recipe, overrides = split_arguments(arguments)
    print(OmegaConf.to_yaml(OmegaConf.create(plain_config(load_config(recipe, overrides)))), end="")


@app.command
def schema() -> None:
    """Print a JSON Schema of recipes, for editors."""
    from srum_ds.config import config_schema

    print(json.dumps(config_schema(), indent=2))
