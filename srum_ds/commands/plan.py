"""`srum-ds plan`: whether a recipe fits its GPUs, and how long it takes, before any weights are there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from srum_ds.common.errors import UserError

if TYPE_CHECKING:
    from srum_ds.config import Config

DOES_NOT_FIT = 1
"""Exit status for a recipe that does not fit."""


def plan(
    *arguments: str,
    gpus: int,
    gpu: str = "h100-80g",
    nodes: int = 1,
    link: str = "400g",
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """Predict bytes, FLOPs and seconds of a recipe on a number of GPUs, from its shapes alone.

    Exit status: 0 where it fits, 1 where it does not, 2 for wrong input.

    Parameters
    ----------
    arguments
        RECIPE [key=value ...]: a recipe and settings on top of it. A model.path that is not on this machine stands for
        the released model of model.kind.
    gpus
        GPUs of the whole job.
    gpu
        Kind of GPU, such as h100-80g; a wrong one names them all.
    nodes
        Nodes that the GPUs are on, equally many on each.
    link
        Network of a node, all its adapters together, in Gbit/s.
    json_
        Print JSON.
    """
    from srum_ds.config import load_config, split_arguments
    from srum_ds.planning.hardware import gpu_named
    from srum_ds.planning.plan import advice_for, make_plan, work_of
    from srum_ds.planning.report import assumptions_text, plan_facts, plan_text
    from srum_ds.planning.seconds import Cluster
    from srum_ds.rollouts.collect import sampling_of

    recipe, overrides = split_arguments(arguments)
    if gpus < 1 or nodes < 1:
        raise UserError(f"--gpus {gpus} --nodes {nodes}: expected at least 1 of each.")
    cluster = Cluster(gpu_named(gpu), gpus, nodes, bytes_a_second(link))

    def load(more: Sequence[str]) -> Config:
        return load_config(recipe, [*overrides, *more])

    cfg = load(())
    work = work_of(cfg, sampling_of(cfg))
    found = make_plan(work, cluster)
    advice = [] if found.fits else advice_for(found, work.costs, load, sampling_of)
    if json_:
        print(json.dumps(plan_facts(found, advice), indent=2))
    else:
        print(plan_text(found, str(recipe), advice))
        print(assumptions_text(found), end="")
    return 0 if found.fits else DOES_NOT_FIT


def bytes_a_second(link: str) -> float:
    """Bytes/s of a network's rate in Gbit/s, such as ``400g``. UserError for another form."""
    number = link.lower().removesuffix("g")
    try:
        rate = float(number)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise UserError(f"--link {link}: expected Gbit/s of a node, such as 400g.")
    return rate * 1e9 / 8
