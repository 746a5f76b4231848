"""A tensor of the emulated device: a wrapper whose numbers lie in a CPU tensor beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from tests.support.emulated.counts import current_line, report_download

NAME = "emulated"
"""The type of the device, as in ``torch.device("emulated", 0)``."""


class EmulatedTensor(Tensor):
    """Looks like a tensor on ``emulated:<number>``; every operation goes to ``dispatch.run``.

    host: the CPU tensor with its numbers. number: of the device.
    """

    host: Tensor
    number: int

    @staticmethod
    def __new__(cls, host: Tensor, number: int) -> EmulatedTensor:
        made: EmulatedTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            layout=host.layout,
            device=torch.device(NAME, number),
            requires_grad=False,
        )
        made.host = host
        made.number = number
        return made

    def __init__(self, host: Tensor, number: int) -> None:
        super().__init__()

    # Functions of torch are not looked at, only the operations that they come down to.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"EmulatedTensor({self.host!r}, device='{NAME}:{self.number}')"

    @property
    def data(self) -> Tensor:
        """The same numbers without history; assigning moves this tensor to other numbers."""
        return EmulatedTensor(self.host.detach(), self.number)

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, EmulatedTensor):
            raise TypeError(f"the data of a tensor on {NAME} cannot lie on {value.device} (at {current_line()})")
        self.host = value.host
        self.number = value.number
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]

    def tolist(self) -> Any:
        """Its numbers as lists: a copy to the host."""
        report_download(self.host)
        return self.host.tolist()

    def numpy(self, *, force: bool = False) -> NoReturn:
        """Refused, as CUDA's tensors refuse it."""
        raise TypeError(
            f"can't convert a tensor on {NAME}:{self.number} to numpy. Use Tensor.cpu() first (at {current_line()})"
        )

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        self.numpy()


Run = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


def _not_set(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    raise RuntimeError("call tests.support.emulated.register() first")


_run: Run = _not_set


def on_operation(run: Run) -> None:
    """Says who computes the operations on emulated tensors."""
    global _run
    _run = run


def host_of(x: Any) -> Any:
    """The CPU tensor behind an emulated one; anything else as it is, lists and tuples element by element."""
    if isinstance(x, EmulatedTensor):
        return x.host
    if isinstance(x, (list, tuple)):
        return type(x)(host_of(each) for each in x)
    return x


def wrapped(x: Any, index: int) -> Any:
    """CPU tensors as tensors on ``emulated:<number>``; anything else as it is, lists and tuples element by element."""
    if isinstance(x, EmulatedTensor):
        return x
    if isinstance(x, Tensor):
        return EmulatedTensor(x, index)
    if isinstance(x, (list, tuple)):
        return type(x)(wrapped(each, index) for each in x)
    return x
