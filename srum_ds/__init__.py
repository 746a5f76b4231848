"""srum-ds: self-rewarding post-training of unified multimodal models on DeepSpeed.

From Python: ``from srum_ds import Trainer, load_model, judge, evaluate`` (docs/python.md). They are imported when they
are first asked for, since torch takes seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srum_ds.api import Judgement, Model, Pictures, Trainer, TrainResult, evaluate, judge, load_model

__version__ = "0.1.0"
__all__ = ["Judgement", "Model", "Pictures", "TrainResult", "Trainer", "evaluate", "judge", "load_model"]


def __getattr__(name: str) -> Any:
    """What ``srum_ds.api`` has, imported now (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module("srum_ds.api"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
