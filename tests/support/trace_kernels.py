"""Traces every fused kernel as torch.compile does, without a GPU: `python -m tests.support.trace_kernels`.

Triton's driver is a stand-in that says what an H100's would, and what would be compiled is noted and not run. Prints a
JSON line for each kernel with the names of what its graph calls, or why it breaks. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget

from srum_ds.kernels.selfcheck import EXAMPLES, MODULES, load_kernel


class StandIn:
    """What tracing asks of a driver."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0


class Traced(Exception):
    """The graph is whole."""


def traced(name: str, with_gradient: bool) -> dict[str, Any]:
    """One kernel forward, or forward and backward."""
    calls: list[str] = []

    def note(graph: Any, _: Any) -> Callable[..., Any]:
        found = [graph, *(part for part in graph.modules() if part is not graph)]
        calls.extend(str(node.target) for part in found for node in part.graph.nodes if node.op == "call_function")
        raise Traced

    torch._dynamo.reset()
    function = torch.compile(load_kernel(name), backend=note, fullgraph=True)
    problem = None
    try:
        with torch.set_grad_enabled(with_gradient):
            function(*EXAMPLES[name](torch.bfloat16, torch.device("cpu")))
    except Exception as error:
        if not isinstance(getattr(error, "inner_exception", None), Traced):
            problem = f"{type(error).__name__}: {error}"
    return {"kernel": name, "with_gradient": with_gradient, "calls": calls, "problem": problem}


def main() -> int:
    triton.runtime.driver.set_active(StandIn())
    with patch("torch.utils._triton.has_triton", lambda *_: True):
        for name in MODULES:
            for with_gradient in (False, True):
                print(json.dumps(traced(name, with_gradient)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
