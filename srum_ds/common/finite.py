"""Whether tensors hold numbers that are not finite, without a second tensor of their size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from srum_ds.common.errors import UserError


def is_finite(tensor: Tensor) -> bool:
    """Whether every number of a tensor of any shape and dtype is finite; True for an empty one.

    ``tensor.isfinite()`` makes the tensor's absolute values first, as large as the tensor; its extremes take nothing.
    """
    if not tensor.is_floating_point():
        return True if not tensor.is_complex() else is_finite(torch.view_as_real(tensor.resolve_conj()))
    if tensor.numel() == 0:
        return True
    if tensor.element_size() == 1:
        # torch finds no extremes of 8-bit floats.
        tensor = tensor.detach().to(torch.bfloat16)
    return bool(torch.stack(tensor.detach().aminmax()).isfinite().all())


def are_finite(tensors: Sequence[Tensor]) -> list[bool]:
    """The same of each tensor, all on one device, with one look at it where all of them are."""
    plain = [tensor.detach() for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    others = any(tensor.is_complex() or tensor.element_size() == 1 for tensor in tensors)
    if not others and (not plain or bool(torch.nn.utils.get_total_norm(plain, float("inf")).isfinite())):
        return [True] * len(tensors)
    return [is_finite(tensor) for tensor in tensors]


class Stored:
    """Pairs (name, tensor) as they are read from files; each pass over them reads anew.

    read: yields (name, tensor, its file, its key in the file). A plain iterable of pairs may stand wherever one of
    these does; messages then name no file.
    """

    def __init__(self, read: Callable[[], Iterator[tuple[str, Tensor, Path, str]]]) -> None:
        self._read = read
        self.place = ""

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor, path, key in self._read():
            self.place = f"{path}: {key}"
            yield name, tensor


def refuse_not_finite(part: Tensor, name: str, stored: object = None) -> None:
    """Raises UserError where a tensor that was read, or a part of it, holds numbers that are not finite.

    name: of the tensor. stored: what it came from; a ``Stored`` tells the file. A number of 64 bits that no model's
    type holds counts as infinite, which it would become.
    """
    if not is_finite(part.float() if part.dtype == torch.float64 else part):
        raise UserError(bad_weight(stored.place if isinstance(stored, Stored) else name))


def bad_weight(place: str) -> str:
    """The message about a stored tensor; place: its file and key."""
    return (
        f"{place} holds numbers that are not finite (NaN or infinite), so these weights are broken and nothing is done "
        "with them: copy the file again, or export the model from an earlier checkpoint."
    )


def refuse_module(module: nn.Module, folder: Path | str) -> None:
    """Raises UserError naming the first tensor of a module, just read by a library from a folder, not finite."""
    tensors = dict(module.named_parameters())
    for (name, _), good in zip(tensors.items(), are_finite(list(tensors.values())), strict=True):
        if not good:
            raise UserError(bad_weight(f"{folder}: {name}"))
