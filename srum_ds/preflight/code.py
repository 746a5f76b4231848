"""Looks at code of the user's own: whether what a setting names can be imported, and is of the right kind.

The names of objectives, readouts, region proposers, checkers, benchmarks and designs are looked up with the settings.
"""

from __future__ import annotations

from collections.abc import Iterator

from srum_ds.common.registry import load_attribute
from srum_ds.config import Config, externals_of, flat_config, known_keys
from srum_ds.config.marks import OneOf
from srum_ds.config.messages import marks
from srum_ds.preflight.findings import Finding, error, ok

_FUNCTIONS = {
    "judge.readout": "a function of the configuration (docs/extending.md)",
    "regions.kind": "a function of the configuration (docs/extending.md)",
    "watch.checker": "a function from prompts and images to truth values (docs/own_code.md)",
}


def look_at_code(cfg: Config) -> Iterator[Finding]:
    """Functions that ``judge.external`` names, and what else is code of the user's own."""
    for key, value in flat_config(cfg).items():
        if (
            isinstance(value, str)
            and ":" in value
            and any(isinstance(mark, OneOf) for mark in marks(known_keys()[key]))
        ):
            found = load_attribute(value, key)
            if key in _FUNCTIONS and not callable(found):
                yield error(key, f"{key}={value} is {type(found).__name__}, expected {_FUNCTIONS[key]}.")
            else:
                yield ok(key, value)
    for judge in externals_of(cfg.judge, cfg.reads_environment("judge.external")):
        if judge.kind == "function":
            found = load_attribute(judge.function, "judge.external")
            if not callable(found):
                yield error(
                    "judge.external",
                    f"judge.external={judge.function}: is {type(found).__name__}, expected a function "
                    "(docs/judging.md).",
                )
            else:
                yield ok("judge.external", f"{judge.name}: {judge.function}")
