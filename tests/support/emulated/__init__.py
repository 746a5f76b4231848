"""An accelerator that is not there: tensors on device ``emulated`` that compute on the CPU and behave like a GPU's.

    with emulation(), counted() as counts:
        model.to("emulated")
        ...
    assert counts.syncs == 0, counts.where("syncs")

Numbers are the CPU's. What a GPU refuses raises: operands on two devices, numpy. What would stall it is counted by
line of ``srum_ds``. docs/development.md, "Testing without a GPU", says what it cannot show.
"""

from tests.support.emulated.counts import AttentionCall, Counts, Download, Line, Tally, counted
from tests.support.emulated.device import emulation, register
from tests.support.emulated.dispatch import CurrentDevice
from tests.support.emulated.tensor import NAME, EmulatedTensor

__all__ = [
    "NAME",
    "AttentionCall",
    "Counts",
    "CurrentDevice",
    "Download",
    "EmulatedTensor",
    "Line",
    "Tally",
    "counted",
    "emulation",
    "register",
]
