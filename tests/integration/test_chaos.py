"""A short campaign of faults (`make chaos`): one of most kinds, in less than three minutes on two busy cores."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from tests.chaos.campaign import carry_out, draw
from tests.chaos.doors import RANKS
from tests.chaos.fault import Fault
from tests.chaos.moments import SAVE
from tests.chaos.verdict import REFUSED, SAME
from tests.chaos.workshop import BEGUN, Workshop, open_workshop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return open_workshop(tmp_path_factory.mktemp("chaos") / "workshop", evaluates=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, wanted, outcome",
    [
        ("kill", lambda fault: fault.ranks == 2 and fault.moment.place == SAVE, SAME),
        ("stop", lambda fault: fault.ranks == 1 and fault.moment.place == SAVE, SAME),
        ("freeze", lambda fault: fault.moment.step > 0, SAME),
        ("checkpoint", lambda fault: fault.what.startswith("all"), REFUSED),
        ("prompts", lambda fault: fault.what == "train-000000.tar flipped bit", REFUSED),
        ("model", lambda fault: fault.what == "ema.safetensors key lost", REFUSED),
        ("disk", lambda fault: fault.what.startswith("files of at most 4 MB"), REFUSED),
        ("read", lambda fault: "state.json from call 1" in fault.what and fault.source == BEGUN, REFUSED),
        ("judge", lambda fault: " none in " in fault.what, REFUSED),
    ],
)
def test_a_fault_ends_in_the_same_weights(
    kind: str, wanted: Callable[[Fault], bool], outcome: str, shop: Workshop
) -> None:
    """The first of seed 0 of each, started as ranks alone, which is the fastest way."""
    faults = ((number, draw(0, number, shop, [kind])) for number in count())
    cheap = kind in ("kill", "freeze")
    number = next(n for n, fault in faults if fault.door == RANKS and (cheap or fault.ranks == 1) and wanted(fault))
    record = carry_out(0, number, shop, [kind])
    assert (record.outcome, record.why) == (outcome, []), record
    assert record.equal
    assert record.steps_lost <= 1
