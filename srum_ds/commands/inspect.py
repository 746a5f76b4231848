"""`srum-ds inspect`: what a checkpoint folder holds, as its design tells it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def inspect(folder: Path, *, json_: Annotated[bool, Parameter(name="--json", negative=())] = False) -> None:
    """Say what a checkpoint folder holds, without loading its weights.

    Parameters
    ----------
    folder
        Checkpoint folder of any known design.
    json_
        Print JSON.
    """
    from srum_ds.models import family_of

    facts, text = family_of(folder).inspect(folder)
    print(json.dumps(facts, indent=2) if json_ else text)
