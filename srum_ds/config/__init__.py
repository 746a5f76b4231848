"""A run's settings: ``schema`` lists them, ``reading`` reads recipes, ``loading`` checks, ``messages`` words errors."""

from srum_ds.config.explain import config_schema
from srum_ds.config.external import ExternalJudge, externals_of
from srum_ds.config.loading import check, diff_configs, flat_config, load_config, plain_config, save_config
from srum_ds.config.marks import ROOT, find_path
from srum_ds.config.reading import COMMAND_LINE, DEFAULT_RECIPE, known_keys, split_arguments
from srum_ds.config.relations import check_world
from srum_ds.config.tree import Config

__all__ = [
    "COMMAND_LINE",
    "DEFAULT_RECIPE",
    "ROOT",
    "Config",
    "ExternalJudge",
    "check",
    "check_world",
    "config_schema",
    "diff_configs",
    "externals_of",
    "find_path",
    "flat_config",
    "known_keys",
    "load_config",
    "plain_config",
    "save_config",
    "split_arguments",
]
