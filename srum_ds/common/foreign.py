"""Code that a setting names and somebody else wrote: whatever it raises or gives ends in a UserError that names it.

``run`` calls it. It cannot end the process by ``sys.exit`` or ``os._exit`` meanwhile; where it hangs, ``running`` tells
the watchdog its name. ``Thread`` runs it beside everything else, and nobody waits for one that hangs.
"""

from __future__ import annotations

import copy
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from types import CodeType
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from srum_ds.common.errors import UserError

if TYPE_CHECKING:
    # A name is looked up before anything computes: torch takes a second or two to import.
    from torch import Tensor

T = TypeVar("T")
_SHOWN = 80
_OWN = "srum_ds."


class ForeignError(UserError):
    """What somebody else's code did wrong. Its cause, where there is one, is the error that it raised."""


class _Left(BaseException):
    """Somebody else's code called ``os._exit``."""


_running: dict[int, list[tuple[str, int]]] = {}
_exit = os._exit

on_enter: Callable[[], None] | None = None
"""Called in the thread that enters foreign code, just before."""


def run(name: str, work: Callable[[], T]) -> T:
    """What ``work`` gives, which calls the code that ``name`` names (``judge.external=judge.py:fullness``).

    Raises ForeignError, with the place in that code, for whatever is raised there, ``SystemExit``, ``os._exit`` and
    ``KeyboardInterrupt`` included; a UserError of its own keeps its text. Ctrl-C itself comes through.
    """
    with _named(name):
        try:
            return work()
        except UserError as error:
            if isinstance(error, ForeignError) or name in str(error):
                raise
            raise ForeignError(f"{name}: {error}") from error
        except KeyboardInterrupt as error:
            if _is_ctrl_c():
                raise
            raise ForeignError(_told(name, error)) from error
        except BaseException as error:
            raise ForeignError(_told(name, error)) from error


def running() -> str:
    """The names of the foreign code that this process is in now, of all threads; empty where there is none."""
    return ", ".join(dict.fromkeys(stack[-1][0] for stack in list(_running.values()) if stack))


def is_own(thing: object) -> bool:
    """Whether a function, class or instance is this package's own code."""
    return str(getattr(thing, "__module__", None) or type(thing).__module__).startswith(_OWN)


def shown(value: object) -> str:
    """What a value is, in a few words that none of its own methods writes."""
    if _is_tensor(value) and value.is_nested:
        return "a nested tensor"
    if _is_tensor(value):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')} on {value.device}"
    if type(value).__module__ == "numpy" and hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array {list(value.shape)} of {value.dtype}" if value.shape else f"the {value.dtype} {value}"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a whole number of {value.bit_length()} bits"
    if value is None or isinstance(value, bool | int | float | complex):
        return str(value)
    if isinstance(value, str | bytes):
        return f"the text {value[:_SHOWN]!r}{'' if len(value) <= _SHOWN else ' ...'}"
    if isinstance(value, list | tuple | dict | set | frozenset):
        first = f", the first {shown(value[0])}" if isinstance(value, list | tuple) and value else ""
        return f"a {type(value).__name__} of {len(value)}{first}"
    return f"a {type(value).__name__}"


def wrong(name: str, value: object, expected: str) -> ForeignError:
    """The error for what came back from ``name`` and is not what was ``expected``."""
    return ForeignError(f"{name} returned {shown(value)}; expected {expected}")


def numbers(name: str, value: object, count: int, expected: str) -> Tensor:
    """A foreign function's ``count`` real numbers as float32 [count] on the CPU, without a gradient; NaN may be there.

    They come as a tensor, an array or a list, on any device. Raises ForeignError for anything else: truth values,
    texts, complex or infinite numbers, tuples, another shape.
    """
    import torch

    found = _tensor(value)
    if found is None or found.is_nested or found.is_quantized or found.is_complex() or found.dtype == torch.bool:
        raise wrong(name, value, expected)
    if tuple(found.shape) != (count,):
        raise wrong(name, value, f"{expected}, as many as there are images")
    # Finite in 64 bits is not yet finite in 32.
    score_N = found.float()
    if bool(score_N.isinf().any()):
        at = int(score_N.isinf().nonzero()[0])
        raise ForeignError(
            f"{name} returned {float(found[at])} for image {at} of {count}; expected {expected}: an infinite number is "
            f"no score"
        )
    return score_N


def truths(name: str, value: object, count: int, expected: str) -> list[bool]:
    """A foreign function's ``count`` truth values, from a list, tensor or array of them; ForeignError otherwise."""
    import torch

    found = _tensor(value)
    if found is None or found.dtype != torch.bool or tuple(found.shape) != (count,):
        raise wrong(name, value, expected)
    return [bool(one) for one in found.tolist()]


def items(name: str, value: object, count: int | None, expected: str) -> list[Any]:
    """The members of a list, tuple or other sequence, ``count`` of them where it is given; ForeignError otherwise."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise wrong(name, value, expected)
    found = run(name, lambda: list(value))
    if count is not None and len(found) != count:
        raise wrong(name, value, expected)
    return found


def copied(things: Sequence[T]) -> list[T]:
    """Deep copies, so that foreign code may do with them what it likes; what occurs twice is copied once."""
    return copy.deepcopy(list(things))


def _tensor(value: Any) -> Tensor | None:
    """A plain tensor on the CPU from a tensor, an array or a list of numbers; None for anything else."""
    try:
        return _converted(value)
    except Exception:
        # On no real device, too large for any number, or of a class whose methods fail.
        return None


def _converted(value: Any) -> Tensor | None:
    import torch

    if _is_tensor(value):
        return value.detach().to_dense().cpu() if value.layout is not torch.strided else value.detach().cpu().clone()
    if type(value).__module__ == "numpy" and hasattr(value, "shape"):
        return torch.as_tensor(value.copy()) if value.dtype.kind in "biufc" else None
    if not isinstance(value, list):
        return None
    items = [one.item() if _is_scalar(one) else one for one in value]
    if not all(isinstance(one, bool | int | float | complex) for one in items):
        return None
    if any(isinstance(one, bool) for one in items) and not all(isinstance(one, bool) for one in items):
        return None
    # Python's floats have 64 bits.
    return torch.tensor(items, dtype=None if items and not isinstance(items[0], float) else torch.float64)


def _is_tensor(value: object) -> TypeGuard[Tensor]:
    """Whether a value is a tensor; where nobody has imported torch, there is none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _is_scalar(value: Any) -> bool:
    return (_is_tensor(value) or type(value).__module__ == "numpy") and not tuple(getattr(value, "shape", (1,)))


class Thread:
    """Calls functions one after the other in a thread of its own, which does not keep the process from ending."""

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, work: Callable[..., T], *given: Any) -> Future[T]:
        """What ``work(*given)`` will give, or raise."""
        future: Future[T] = Future()
        self._work.put((future, lambda: work(*given)))
        return future

    def _run(self) -> None:
        while True:
            future, work = self._work.get()
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
            del future, work


@contextmanager
def _named(name: str) -> Iterator[None]:
    if os._exit is not _leave:
        setattr(os, "_exit", _leave)  # noqa: B010 - its type says that it never returns
    stack = _running.setdefault(threading.get_ident(), [])
    stack.append((name, os.getpid()))
    if on_enter is not None and len(stack) == 1:
        on_enter()
    try:
        yield
    finally:
        stack.pop()
        if not stack:
            _running.pop(threading.get_ident(), None)


def _leave(status: int) -> None:
    """``os._exit``, but for the very thread and process that foreign code runs in."""
    stack = _running.get(threading.get_ident())
    if not stack or stack[-1][1] != os.getpid():
        _exit(status)
    raise _Left(str(status))


def _is_ctrl_c() -> bool:
    """Whether a KeyboardInterrupt may be the user's: the main thread gets it, where nobody else takes the signal.

    Nor does whoever hands a second one on (``stopping.StopSignal.interrupts``).
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    hands_on = getattr(getattr(handler, "__self__", None), "interrupts", False) is True
    return main and (handler is signal.default_int_handler or hands_on)


def _told(name: str, error: BaseException) -> str:
    place = _place(error)
    if isinstance(error, _Left | SystemExit):
        how = f"os._exit({error})" if isinstance(error, _Left) else f"sys.exit({_text(error)})"
        return f"{name} tried to end the process by {how}{place}; it must return or raise an error"
    text = _text(error)
    return f"{name} raised {type(error).__name__}{': ' if text else ''}{text}{place}; correct it"


def _text(error: BaseException) -> str:
    """The start of what an error says, on one line; an error's own method may fail too."""
    with suppress(Exception):
        return " ".join(str(error).split())[:300]
    return ""


def _place(error: BaseException) -> str:
    """The file, line and function where the foreign code was, in brackets."""
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
    frames: list[tuple[CodeType, int]] = [
        (frame.f_code, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith((ours, sys.prefix + os.sep, sys.base_prefix + os.sep))
    ]
    if not frames:
        return ""
    code, line = frames[-1]
    return f" ({os.path.basename(code.co_filename)}, line {line}, in {code.co_name})"
