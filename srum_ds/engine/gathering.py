"""Gathering sharded parameters whole, and keeping DeepSpeed's module hooks away meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from srum_ds.engine.distributed import ZeroParamStatus

# One all-gather holds its whole buffer twice, so a big model is gathered in slices of this many elements.
GATHER_NUMEL = 1 << 28


@contextmanager
def whole(parameters: Sequence[Any], lent: AbstractContextManager[Any] | None = None) -> Iterator[None]:
    """All parameters gathered inside, only this rank's shards of them afterwards, whatever happens.

    lent: a context under which the shards hold other values; left as soon as they are gathered.
    """
    try:
        with lent or nullcontext():
            all_gather(parameters)
        yield
    finally:
        gathered = [p for p in parameters if p.ds_status == ZeroParamStatus.AVAILABLE]
        if gathered:
            gathered[0].partition(param_list=gathered, has_been_updated=False)


def all_gather(parameters: Sequence[Any]) -> None:
    """Gathers sharded parameters in as few all-gathers as memory allows; the same on every rank."""
    ordered = sorted(parameters, key=lambda p: p.ds_id)
    for batch in batches(ordered, [parameter.ds_numel for parameter in ordered]):
        batch[0].all_gather_coalesced(batch).wait()


def batches(items: list[Any], numels: list[int]) -> Iterator[list[Any]]:
    """Splits items into runs of at most ``GATHER_NUMEL`` elements (or one item)."""
    batch: list[Any] = []
    total = 0
    for item, numel in zip(items, numels, strict=True):
        if batch and total + numel > GATHER_NUMEL:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += numel
    if batch:
        yield batch


@contextmanager
def without(handles: Sequence[Any]) -> Iterator[None]:
    """Takes hooks off their modules and puts them back in their old order, whoever else has hooks there.

    Removing and registering them again, as DeepSpeed does itself, would renumber the modules and throw
    its recorded trace away.
    """
    ours: dict[int, tuple[Any, set[int]]] = {}
    for handle in handles:
        for reference in (handle.hooks_dict_ref, *handle.extra_dict_ref):
            hooks = reference()
            if hooks is not None:
                ours.setdefault(id(hooks), (hooks, set()))[1].add(handle.id)
    saved = [(hooks, dict(hooks), keys) for hooks, keys in ours.values()]
    try:
        for hooks, _, keys in saved:
            for key in keys & hooks.keys():
                del hooks[key]
        yield
    finally:
        for hooks, before, _ in saved:
            added = {key: hook for key, hook in hooks.items() if key not in before}
            hooks.clear()
            hooks.update(before)
            hooks.update(added)
