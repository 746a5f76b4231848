"""Runs a conformance set (a checkpoint with recorded inputs and outputs of the official code) against its adapter.

    python -m tests.conformance DIR [--json FILE]

Prints ``case/name  max_abs_error  ok|FAIL`` for every output tensor of the set, and exits with 1 when one
differs or was not computed. The set's checkpoint folder says which design it is of. FILE receives
{"case/name": error}; an output that was not computed, has another shape or is not finite has the error 1e30.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from srum_ds.common.errors import UserError
from tests.numerics import bagel_design, blip3o_dit_cases, janus_cases, qwen_image_cases, showo_cases
from tests.numerics.conformance_set import OPEN, Case, ConformanceDesign, Outputs

TOLERANCE = 1e-4
NOT_COMPUTED = 1e30

DESIGNS = (
    bagel_design.DESIGN,
    blip3o_dit_cases.DESIGN,
    janus_cases.DESIGN,
    qwen_image_cases.DESIGN,
    showo_cases.DESIGN,
)


@dataclass(frozen=True)
class ConformanceSet:
    """A set split into what the model may see and what it is compared with."""

    folder: Path
    design: ConformanceDesign
    settings: Mapping[str, Mapping[str, Any]]
    inputs: Mapping[str, Tensor]
    expected: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Result:
    """One output tensor's comparison. ``note`` says why there is no number."""

    key: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance


def listed_outputs(folder: Path) -> set[str] | None:
    """The outputs that outputs.md lists (``- case/name``); None where the set has no such file."""
    path = folder / "outputs.md"
    if not path.exists():
        return None
    lines = (line.strip() for line in path.read_text().splitlines())
    return {line.removeprefix("- ").strip("` ") for line in lines if line.startswith("- ")}


def read_set(folder: Path) -> ConformanceSet:
    """Reads cases.json, cases.safetensors and outputs.md.

    Inputs are known by their names alone, so that nothing else can reach the model. Outputs are what
    outputs.md lists; without it, all tensors that are not inputs.
    """
    facts = json.loads((folder / "cases.json").read_text())
    design = design_of(folder)
    tensors = load_file(str(folder / "cases.safetensors"))
    declared = {key: tuple(entry["shape"]) for key, entry in facts.get("tensors", {}).items()}
    declared |= {key: tuple(tensor.shape) for key, tensor in tensors.items() if key not in declared}
    outputs = listed_outputs(folder)
    if outputs is None:
        outputs = {key for key in declared if not design.is_input(key)}
    # An output that neither file holds has no shape; it is reported as missing.
    shapes = {key: declared.get(key, ()) for key in sorted(outputs)}
    expected = {key: tensors[key] for key in shapes if key in tensors}
    inputs = {
        key: tensor
        for key, tensor in tensors.items()
        if design.is_input(key) and (key not in shapes or re.fullmatch(design.given, key))
    }
    return ConformanceSet(folder, design, facts["cases"], inputs, expected, shapes)


def design_of(folder: Path) -> ConformanceDesign:
    """The design of a set's checkpoint. ValueError where it is none or several of those that can be run."""
    found = [design for design in DESIGNS if design.matches(folder / "checkpoint")]
    if len(found) != 1:
        names = ", ".join(design.name for design in found or DESIGNS)
        raise ValueError(f"{folder / 'checkpoint'} is of {'several' if found else 'none'} of the designs {names}")
    return found[0]


def tolerance_of(design: ConformanceDesign, key: str, expected: Tensor) -> float:
    """Largest allowed difference: 0 for what must be exact."""
    case, _, name = key.partition("/")
    for listed, tolerance in design.loose.items():
        if name == listed.partition("/")[2] and case.startswith(listed.partition("/")[0]):
            return tolerance
    if re.fullmatch(design.exact, name) or not expected.is_floating_point():
        return 0.0
    return TOLERANCE


def compare(
    design: ConformanceDesign,
    key: str,
    found: Tensor | None,
    expected: Tensor | None,
    left_open: Tensor | None = None,
) -> Result:
    """The largest absolute difference; shapes must be equal.

    A number that the set records as NaN, such as the norm of a gradient that there is none of, must be NaN.
    left_open: where an 8-bit number may also be its neighbour (``conformance_set.OPEN``).
    """
    if expected is None:
        return Result(key, NOT_COMPUTED, 0.0, "missing in cases.safetensors")
    tolerance = tolerance_of(design, key, expected)
    if found is None:
        return Result(key, NOT_COMPUTED, tolerance, "not computed")
    if found.shape != expected.shape:
        note = f"shape {list(found.shape)}, expected {list(expected.shape)}"
        return Result(key, NOT_COMPUTED, tolerance, note)
    if found.numel() == 0:
        return Result(key, 0.0, tolerance)
    ours, theirs = found.detach().double().cpu(), expected.double()
    absent = theirs.isnan()
    if not torch.equal(ours.isnan(), absent):
        return Result(key, NOT_COMPUTED, tolerance, "not a number in other places than expected")
    off = (ours - theirs).masked_fill(absent, 0.0).abs()
    if left_open is not None:
        off = off.masked_fill(left_open & (off <= 1), 0.0)
    error = off.max().item()
    if error != error or error == float("inf"):
        return Result(key, NOT_COMPUTED, tolerance, "not finite")
    return Result(key, error, tolerance)


def run_case(model: Any, data: ConformanceSet, name: str) -> list[Result]:
    """Runs one case and compares all its outputs."""
    prefix = name + "/"
    wanted = {key.removeprefix(prefix): shape for key, shape in data.shapes.items() if key.startswith(prefix)}
    outputs: Outputs = {}
    design = data.design
    kind = design.kind_of(name)
    if wanted and kind is not None:
        try:
            outputs = design.runners[kind](model, Case(name, data.settings.get(name, {}), data.inputs, wanted))
        except Exception:
            # The other cases are still worth running; this one's outputs count as not computed.
            traceback.print_exc()
    return [
        compare(design, prefix + n, outputs.get(n), data.expected.get(prefix + n), outputs.get(n + OPEN))
        for n in sorted(wanted)
    ]


def case_names(data: ConformanceSet) -> list[str]:
    """Every case of cases.json, and every case that only has tensors."""
    with_tensors = {key.partition("/")[0] for key in data.shapes}
    named = [name for name in data.settings if name not in data.design.settings]
    return named + sorted(with_tensors - set(named))


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder with checkpoint/, cases.json, cases.safetensors")
    parser.add_argument("--json", type=Path, help="where to write the errors")
    options = parser.parse_args(arguments)
    try:
        data = read_set(options.folder)
        model = data.design.load(data.folder / "checkpoint", data.settings)
    except (UserError, OSError, KeyError, ValueError) as error:
        print(f"{options.folder}: not run: this is no whole conformance set ({error!r})", file=sys.stderr)
        return 2
    results: list[Result] = []
    idle: list[str] = []
    for name in case_names(data):
        found = run_case(model, data, name)
        results += found
        if not found:
            idle.append(name)
        for result in found:
            verdict = "ok" if result.ok else "FAIL"
            note = f"  ({result.note})" if result.note else ""
            print(f"{result.key}  {result.error:.3g}  {verdict}{note}")
    problems = data.design.problems(model, data.settings)
    print(f"tokenizer  {len(problems)}  {'FAIL' if problems else 'ok'}")
    for problem in problems:
        print(f"  {problem}")
    for name in idle:
        print(f"{name}  not run: it has no outputs, or its kind is none of {', '.join(data.design.inputs)}  FAIL")
    if options.json:
        options.json.write_text(json.dumps({r.key: r.error for r in results}, indent=1) + "\n")
    failed = [result for result in results if not result.ok]
    print(f"{len(results) - len(failed)} of {len(results)} outputs agree")
    return 1 if failed or problems or idle or not results else 0


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(main())
