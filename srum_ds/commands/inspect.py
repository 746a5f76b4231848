"""`srum-ds inspect`: what a checkpoint folder holds, as its design tells it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def inspect(folder: Path, *, json_: Annotated[bool, Parameter(name="--json", negative=())] = False) -> None:
    """Say what a checkpoint folder holds, and refuse it where a number of its weights is not finite.

    Parameters
    ----------
    folder
        Checkpoint folder of any known design.
    json_
        Print JSON.
    """
    from srum_ds.common.model_files import refuse_special_files, refuse_wild_sizes
    from srum_ds.models import family_of
    from srum_ds.models.library.files import finite_files

    refuse_special_files(folder)
    refuse_wild_sizes(folder)
    facts, text = family_of(folder).inspect(folder)
    finite_files(folder)
    print(json.dumps(facts, indent=2) if json_ else text)
