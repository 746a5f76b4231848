"""Runs a conformance set (a checkpoint with the official code's inputs and outputs) against this model.

    python -m tests.conformance DIR [--json FILE]

Prints ``case/name  max_abs_error  ok|FAIL`` for every output tensor of the set, and exits with 1 when one
differs or was not computed. FILE receives {"case/name": error}; an output that was not computed, has another
shape or is not finite has the error 1e30.
"""

from __future__ import annotations

import argparse
import dataclasses
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
from srum_ds.models.bagel.adapter import BagelAdapter, load_bagel
from srum_ds.models.bagel.config import ImageTransform
from tests.numerics.conformance_cases import RUNNERS
from tests.numerics.conformance_set import INPUTS, Case, Outputs, is_input, kind_of

TOLERANCE = 1e-4
NOT_COMPUTED = 1e30
EXACT = r"vit_patches|resized_uint8|tokens"


@dataclass(frozen=True)
class ConformanceSet:
    """A set split into what the model may see and what it is compared with."""

    folder: Path
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
    tensors = load_file(str(folder / "cases.safetensors"))
    declared = {key: tuple(entry["shape"]) for key, entry in facts.get("tensors", {}).items()}
    declared |= {key: tuple(tensor.shape) for key, tensor in tensors.items() if key not in declared}
    outputs = listed_outputs(folder)
    if outputs is None:
        outputs = {key for key in declared if not is_input(key)}
    # An output that neither file holds has no shape; it is reported as missing.
    shapes = {key: declared.get(key, ()) for key in sorted(outputs)}
    expected = {key: tensors[key] for key in shapes if key in tensors}
    inputs = {key: tensor for key, tensor in tensors.items() if is_input(key) and key not in shapes}
    return ConformanceSet(folder, facts["cases"], inputs, expected, shapes)


def load_set_model(data: ConformanceSet) -> BagelAdapter:
    """The set's checkpoint with the image transforms that the set was made with."""
    model = load_bagel(data.folder / "checkpoint")
    given = data.settings.get("_global", {})
    transforms: dict[str, Any] = {
        name: ImageTransform(**given[f"{part}_image_transform"])
        for part, name in (("vae", "vae_transform"), ("vit", "vit_transform"))
        if f"{part}_image_transform" in given
    }
    model.reader.config = dataclasses.replace(model.reader.config, **transforms)
    return model


def tolerance_of(key: str, expected: Tensor) -> float:
    """Largest allowed difference: 0 for what must be exact, 1 for the 8-bit edited picture."""
    name = key.partition("/")[2]
    if key.startswith("edit_image") and name == "image_uint8":
        return 1.0
    if re.fullmatch(EXACT, name) or not expected.is_floating_point():
        return 0.0
    return TOLERANCE


def compare(key: str, found: Tensor | None, expected: Tensor | None) -> Result:
    """The largest absolute difference; shapes must be equal."""
    if expected is None:
        return Result(key, NOT_COMPUTED, 0.0, "missing in cases.safetensors")
    tolerance = tolerance_of(key, expected)
    if found is None:
        return Result(key, NOT_COMPUTED, tolerance, "not computed")
    if found.shape != expected.shape:
        note = f"shape {list(found.shape)}, expected {list(expected.shape)}"
        return Result(key, NOT_COMPUTED, tolerance, note)
    if found.numel() == 0:
        return Result(key, 0.0, tolerance)
    error = (found.detach().double() - expected.double()).abs().max().item()
    if error != error or error == float("inf"):
        return Result(key, NOT_COMPUTED, tolerance, "not finite")
    return Result(key, error, tolerance)


def run_case(model: BagelAdapter, data: ConformanceSet, name: str) -> list[Result]:
    """Runs one case and compares all its outputs."""
    prefix = name + "/"
    wanted = {key.removeprefix(prefix): shape for key, shape in data.shapes.items() if key.startswith(prefix)}
    outputs: Outputs = {}
    kind = kind_of(name)
    if kind is not None and name in data.settings:
        try:
            outputs = RUNNERS[kind](model, Case(name, data.settings[name], data.inputs, wanted))
        except Exception:
            # The other cases are still worth running; this one's outputs count as not computed.
            traceback.print_exc()
    return [compare(prefix + n, outputs.get(n), data.expected.get(prefix + n)) for n in sorted(wanted)]


def check_tokenizer(model: BagelAdapter, data: ConformanceSet) -> list[str]:
    """What the tokenizer turns into other ids than the set says, in words."""
    problems = []
    for text, ids in data.settings.get("tokenizer", {}).get("pairs", []):
        found = model.reader.tokenizer.encode(text)
        if found != ids:
            problems.append(f"{text!r} becomes {found}, expected {ids}")
    special = model.module.special
    names = {"bos": "bos_token_id", "eos": "eos_token_id"}
    names |= {"image_start": "start_of_image", "image_end": "end_of_image"}
    expected = data.settings.get("_global", {}).get("new_token_ids", {})
    for ours, theirs in names.items():
        if expected.get(theirs, getattr(special, ours)) != getattr(special, ours):
            problems.append(f"{theirs} is {getattr(special, ours)}, expected {expected[theirs]}")
    return problems


def case_names(data: ConformanceSet) -> list[str]:
    """Every case of cases.json, and every case that only has tensors."""
    with_tensors = {key.partition("/")[0] for key in data.shapes}
    named = [name for name in data.settings if name not in ("_global", "tokenizer")]
    return named + sorted(with_tensors - set(named))


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder with checkpoint/, cases.json, cases.safetensors")
    parser.add_argument("--json", type=Path, help="where to write the errors")
    options = parser.parse_args(arguments)
    try:
        data = read_set(options.folder)
        model = load_set_model(data)
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
    problems = check_tokenizer(model, data)
    print(f"tokenizer  {len(problems)}  {'FAIL' if problems else 'ok'}")
    for problem in problems:
        print(f"  {problem}")
    for name in idle:
        print(f"{name}  not run: it has no outputs, or its kind is none of {', '.join(INPUTS)}  FAIL")
    if options.json:
        options.json.write_text(json.dumps({r.key: r.error for r in results}, indent=1) + "\n")
    failed = [result for result in results if not result.ok]
    print(f"{len(results) - len(failed)} of {len(results)} outputs agree")
    return 1 if failed or problems or idle or not results else 0


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(main())
