"""Somebody else's code: whatever it raises or returns is told by its name, and it cannot end the process."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from srum_ds.common import foreign
from srum_ds.common.errors import UserError, concealed, hide
from srum_ds.common.registry import load_attribute

NAME = "judge.external=judge.py:score"


def endless() -> Any:
    return endless()


def raising(error: BaseException) -> Callable[[], Any]:
    def work() -> Any:
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (raising(ValueError("two\nlines")), r"raised ValueError: two lines \(test_foreign.py, line \d+, in work\)"),
        (raising(SystemExit(0)), r"tried to end the process by sys.exit\(0\) \(test_foreign.py"),
        (lambda: os._exit(0), r"tried to end the process by os._exit\(0\) \(test_foreign.py"),
        (lambda: next(iter([])), r"raised StopIteration \("),
        (endless, "raised RecursionError"),
        (raising(GeneratorExit()), "raised GeneratorExit"),
        (raising(MemoryError()), "raised MemoryError"),
        (raising(UserError("no such lamp")), "no such lamp"),
    ],
)
def test_whatever_it_raises_is_told_by_its_name(work: Callable[[], Any], said: str) -> None:
    with pytest.raises(foreign.ForeignError, match=said) as caught:
        foreign.run(NAME, work)
    assert str(caught.value).startswith(NAME) and caught.value.__cause__ is not None
    assert foreign.running() == ""


def test_an_interrupt_of_its_own_is_an_error_and_the_users_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(foreign.ForeignError, match="raised KeyboardInterrupt"):
        foreign.Thread("judge").submit(foreign.run, NAME, raising(KeyboardInterrupt())).result(timeout=20)
    with pytest.raises(KeyboardInterrupt):
        foreign.run(NAME, raising(KeyboardInterrupt()))


def test_a_child_that_it_forks_ends_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(foreign, "_exit", ended.append)

    def in_a_child() -> None:
        with monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: -1)
            os._exit(7)

    with pytest.raises(foreign.ForeignError, match=r"os._exit\(7\)"):
        foreign.run(NAME, in_a_child)
    assert ended == [7]


def test_what_runs_is_known_meanwhile() -> None:
    assert foreign.run("outer", lambda: foreign.run("inner", foreign.running)) == "inner"
    assert foreign.run("outer", foreign.running) == "outer"


def test_a_thread_that_hangs_does_not_keep_the_process() -> None:
    let_go = threading.Event()
    future = foreign.Thread("a judge that hangs").submit(let_go.wait)
    (thread,) = (one for one in threading.enumerate() if one.name == "a judge that hangs")
    assert thread.daemon and not future.done()
    let_go.set()
    assert future.result(timeout=20)


class Strange:
    def __repr__(self) -> str:
        raise RuntimeError("no words")

    def __float__(self) -> float:
        raise RuntimeError("no number")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "None"),
        ((0.5, 0.5), "a tuple of 2, the first 0.5"),
        (["good", "bad"], "a list of 2, the first the text 'good'"),
        ("0.5", "the text '0.5'"),
        ([0.5 + 1j, 0.5], r"a list of 2, the first \(0.5\+1j\)"),
        (torch.zeros(2, dtype=torch.complex64), r"a tensor \[2\] of complex64 on cpu"),
        (np.zeros(2, dtype=complex), r"an array \[2\] of complex128"),
        ([True, False], "a list of 2, the first True"),
        (torch.tensor([True, False]), r"a tensor \[2\] of bool"),
        (np.array(["a", "b"]), r"an array \[2\] of <U1"),
        (np.array([None, 1.0]), r"an array \[2\] of object"),
        (torch.zeros(2, 1), r"a tensor \[2, 1\]"),
        (torch.zeros(3), r"a tensor \[3\].*as many as there are images"),
        (0.5, "0.5"),
        ([[0.5], [0.5]], "a list of 2, the first a list of 1, the first 0.5"),
        ([Strange(), Strange()], "a list of 2, the first a Strange"),
        ({"a": 1.0}, "a dict of 1"),
        ((x for x in (0.5, 0.5)), "a generator"),
        ([0.5, math.inf], "inf for image 1 of 2.*no score"),
        (torch.tensor([-math.inf, 0.0]), "-inf for image 0 of 2"),
        ([10**400, 0], "a list of 2, the first a whole number of 1329 bits"),
        (torch.zeros(2, device="meta"), r"a tensor \[2\] of float32 on meta"),
    ],
)
def test_what_is_no_list_of_numbers_is_shown(value: object, shown: str) -> None:
    with pytest.raises(foreign.ForeignError, match=shown) as caught:
        foreign.numbers(NAME, value, 2, "a list of 2 scores")
    assert str(caught.value).startswith(NAME)


@pytest.mark.parametrize(
    "value",
    [
        [1, 0],
        [1.0, 0],
        torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True),
        torch.tensor([1, 0]),
        torch.tensor([1.0, 0.0], dtype=torch.bfloat16),
        np.array([1.0, 0.0], dtype=np.float16),
        [np.float32(1), torch.tensor(0.0)],
        torch.tensor([1.0, 0.0]).to_sparse(),
    ],
)
def test_numbers_of_any_real_kind_are_taken(value: object) -> None:
    found = foreign.numbers(NAME, value, 2, "a list of 2 scores")
    assert found.dtype == torch.float32 and found.tolist() == [1.0, 0.0] and not found.requires_grad


def test_truths_are_truth_values_alone() -> None:
    for good in ([True, False], torch.tensor([True, False]), np.array([True, False]), [np.True_, torch.tensor(False)]):
        assert foreign.truths(NAME, good, 2, "truths") == [True, False]
    for bad in ([1.0, 0.0], [True], None, "ab", [None, True], (True, False), [1, True]):
        with pytest.raises(foreign.ForeignError, match=f"^{NAME} returned"):
            foreign.truths(NAME, bad, 2, "truths")


def test_a_file_that_ends_the_process_when_it_is_imported(tmp_path: Path) -> None:
    for line, said in (("import sys; sys.exit(0)", "SystemExit: 0"), ("import os; os._exit(0)", "Left: 0")):
        path = tmp_path / f"{said[:4]}.py"
        path.write_text(line + "\n")
        with pytest.raises(UserError, match=f"judge.external={path}:x: .* cannot be imported \\({said}\\)"):
            load_attribute(f"{path}:x", "judge.external")


def test_a_file_that_the_environment_names_is_a_secret_in_a_stack_too() -> None:
    hide("/home/me/zebra_judge.py:score", "${oc.env:JUDGE}")
    said = concealed('File "/home/me/zebra_judge.py", line 3 (zebra_judge.py, line 3) /home/me/zebra_judge.py:score')
    assert said == 'File "${oc.env:JUDGE}", line 3 (${oc.env:JUDGE}, line 3) ${oc.env:JUDGE}'


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (np.array([1e300, 0.0]), r"returned 1e\+300 for image 0"),
        (torch.tensor([0.0, -1e300], dtype=torch.float64), r"returned -1e\+300 for image 1"),
        (torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8), r"returned a tensor \[2\] of qint8"),
        (torch.nested.nested_tensor([torch.zeros(1), torch.zeros(1)]), "returned a nested tensor"),
    ],
    ids=["array", "tensor", "quantised", "nested"],
)
def test_numbers_that_would_become_others_are_refused(value: object, shown: str) -> None:
    with pytest.raises(foreign.ForeignError, match=shown):
        foreign.numbers(NAME, value, 2, "a list of 2 scores")
