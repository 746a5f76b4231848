"""``srum-ds eval draw``: fills folders with pictures of prompts, by all ranks of a job or all cores of a machine.

Pictures are drawn in batches that follow from the prompts alone, each picture seeded by (seed, prompt's id, sample):
its bytes depend neither on ranks and processes nor on what was drawn before. Whatever is there is not drawn again.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from srum_ds.common import ranks
from srum_ds.common.errors import WRONG_INPUT, UserError
from srum_ds.common.files import weights_sha256
from srum_ds.common.phases import PHASES
from srum_ds.engine import compute_device, leave_distributed, start_distributed
from srum_ds.evaluation.draw_pictures import PictureBatch, draw_pictures
from srum_ds.evaluation.draw_request import DrawRequest
from srum_ds.evaluation.layout_paths import write_beside
from srum_ds.evaluation.picture_folder import LAYOUT, OWN, PictureFolder, read_drawn, write_drawn, write_index
from srum_ds.evaluation.processes import default_processes, drawing_processes, model_of, release_model
from srum_ds.evaluation.scored import DRAWN, IMAGES, PROMPTS
from srum_ds.models import default_dtype
from srum_ds.models.fused import start_kernels
from srum_ds.monitoring.run_folder import locked
from srum_ds.monitoring.watchdog import Watchdog
from srum_ds.prompts.records import write_records
from srum_ds.prompts.shards import fingerprint

FREE = ("schema", "model", "prompts")
"""Entries of ``drawn.json`` that may differ from call to call: what they mean is compared by its hash."""
SECONDS_BETWEEN_LINES = 60.0


def draw_folders(
    plan: Callable[[], Sequence[DrawRequest]],
    processes: int | None = None,
    console: Console | None = None,
    device: str | None = None,
) -> bool:
    """Draws what is missing in each folder; all ranks of a job call it, and leave the job's group together.

    plan: gives the requests, the same on every rank. processes: on this rank; default one a GPU, or its share of this
    machine's cores. device: where, unless a launcher says it; default the GPUs where there are some, all of them as
    "cuda". Returns whether this is rank 0, which alone prints. Raises UserError, on rank 0, for a folder that
    holds other pictures and where drawing fails on any rank; the other ranks then leave with the same exit status.
    """
    console = console or Console()
    launched = "RANK" in os.environ
    if launched:
        start_distributed()
    rank = ranks.rank()
    try:
        if launched:
            device = str(compute_device())
        elif device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        requests: list[DrawRequest] = []
        ranks.run_on_all_ranks(lambda: requests.extend(plan()))
        for request in requests:
            _draw_folder(request, device, processes or _own_processes(device, launched), console)
    except UserError:
        if launched:
            leave_distributed()
        if rank != 0:
            sys.exit(WRONG_INPUT)
        raise
    if launched:
        # A group that it did not join stays: one process goes on to train (a notebook).
        leave_distributed()
    return rank == 0


def _own_processes(device: str, launched: bool) -> int:
    """How many processes of a rank draw: one on a GPU of its own; on CPUs, its share of the machine's cores."""
    if not launched:
        return default_processes(device)
    if device != "cpu":
        return 1
    cores = default_processes(device)
    if os.environ.get("SRUM_DS_LAUNCHER") == "slurm":
        # The job script's tasks have cores of their own, bound to them or not.
        return max(1, min(int(os.environ.get("SLURM_CPUS_PER_TASK", "1")), cores))
    # DeepSpeed and torchrun call the number of ranks on this machine differently.
    beside = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or "1")
    return max(1, cores // beside)


def _draw_folder(request: DrawRequest, device: str, processes: int, console: Console) -> None:
    started = time.monotonic()
    if request.drawing.told and ranks.rank() == 0:
        console.print(request.drawing.told, soft_wrap=True, highlight=False, markup=False)
    with _only_drawer(request.out), _looked_after(request):
        size, todo = ranks.run_on_all_ranks(lambda: _prepare(request, device, processes), rank_zero=True)[0]
        batches = _batches(request, device, size, todo)
        drawn = sum(number for number in _rounds(request, batches, device, processes, console))
    if ranks.rank() != 0:
        return
    folder = PictureFolder.open(request.out)
    there = len(folder.pictures())
    source = request.choice.files if request.index else request.choice.benchmark
    said = f"{request.out}: {there} pictures of {len(request.prompts)} prompts of {source}"
    said += f", {drawn} of them drawn now in {time.monotonic() - started:.0f} s" if drawn else ", nothing to draw"
    console.print(said, soft_wrap=True, highlight=False, markup=False)
    if request.index:
        write_index(folder, request.drawing.seed)
    for line in folder.lines():
        console.print(line, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def _looked_after(request: DrawRequest) -> Iterator[None]:
    """Ends this rank where it hangs, or the job waits for another one, as in training; alone it waits for nobody."""
    if ranks.world_size() == 1:
        yield
        return
    dog = Watchdog(request.out, ranks.rank(), request.drawing.limits)
    dog.start()
    status = 1
    try:
        yield
        status = 0
    finally:
        dog.stop(status)
    dog.leave_nothing()


@contextmanager
def _only_drawer(out: Path) -> Iterator[None]:
    """Holds the folder for this job; UserError on all ranks where another job draws there."""
    with ExitStack() as held:
        ranks.run_on_all_ranks(lambda: _hold(held, out), rank_zero=True)
        yield


def _hold(held: ExitStack, out: Path) -> None:
    held.enter_context(locked(out, "drawing"))


# ---- what is to be done


def _prepare(request: DrawRequest, device: str, processes: int) -> tuple[tuple[int, int], dict[int, tuple[int, ...]]]:
    """The pictures' size, and the numbers of the batches to draw, each with which of its pictures are missing.

    Writes ``prompts.jsonl`` and ``drawn.json``, or compares them. UserError for a folder of other pictures.
    """
    out, drawing = request.out, request.drawing
    known = read_drawn(out)
    weights = weights_sha256(drawing.model)
    size = drawing.image_size
    if size is None and known is not None and known.get("weights_sha256") == weights:
        height, width = known["image_size"]
        size = (height, width)
    if size is None:
        size = model_of(drawing.model, drawing.kind, device).default_size()
        if processes > 1:
            release_model()
    facts = drawn_facts(request, weights, size, device)
    begun = any(path.exists() for path in request.places.values()) or any((out / IMAGES).glob("*.png"))
    if begun and known is None:
        raise UserError(f"{out}: holds pictures that another tool made (no {DRAWN}); give another --out")
    if known is None or not begun:
        # A call that failed before the first picture binds nobody to its settings.
        write_records(out / PROMPTS, request.prompts)
        write_drawn(out, facts)
    else:
        refuse_other_pictures(out, known, facts)
    write_beside(request.layout, out, request.prompts)
    for place in {path.parent for path in request.places.values()}:
        for left in place.glob(".*.png.*.tmp"):
            left.unlink(missing_ok=True)
    folder = PictureFolder.open(out)
    if folder.layout != request.layout and folder.found:
        raise UserError(f"{out}: holds pictures that another tool made; give another --out")
    missing = {(prompt.id, sample) for prompt, sample in folder.missing()}
    todo = {}
    for number, members in enumerate(_members(request)):
        places = tuple(i for i, (prompt, sample) in enumerate(members) if (prompt.id, sample) in missing)
        if places:
            todo[number] = places
    return size, todo


def drawn_facts(request: DrawRequest, weights: str, size: tuple[int, int], device: str) -> dict[str, Any]:
    """What ``drawn.json`` says: all that a picture depends on, as JSON has it."""
    drawing = request.drawing
    sampling = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(drawing.sampling).items()}
    return {
        "benchmark": request.choice.benchmark,
        "version": request.benchmark.version,
        "model": str(drawing.model),
        "weights_sha256": weights,
        "kind": drawing.kind,
        "seed": drawing.seed,
        "samples": request.samples,
        "image_size": list(size),
        "sampling": sampling,
        "batch": drawing.batch,
        "prompts": len(request.prompts),
        "prompts_sha256": fingerprint(request.prompts),
        "limit": request.choice.limit,
        "categories": sorted(request.choice.categories),
        "dtype": str(default_dtype(device)).removeprefix("torch."),
        "torch": torch.__version__,
        **({} if request.layout == OWN else {LAYOUT: request.layout}),
    }


def refuse_other_pictures(out: Path, known: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """UserError naming each entry of a folder's ``drawn.json`` that differs from ``facts``."""
    before, now = _flat(known), _flat(facts)
    changed = [name for name in sorted(before | now) if name not in FREE and before.get(name) != now.get(name)]
    if not changed:
        return
    listed = "; ".join(f"{name} was {before.get(name)!r} and is now {now.get(name)!r}" for name in changed)
    raise UserError(f"{out}: holds other pictures: {listed}. Draw with the same settings, or give another --out.")


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The entries with the sampler's settings among them, as ``sampling.name``."""
    sampling = facts.get("sampling")
    own = {f"sampling.{name}": value for name, value in sampling.items()} if isinstance(sampling, dict) else {}
    return {name: value for name, value in facts.items() if name != "sampling"} | own


def _members(request: DrawRequest) -> list[tuple[tuple[Any, int], ...]]:
    """(prompt, sample) of all pictures, in batches that are the same whatever is there already."""
    pairs = [(prompt, sample) for prompt in request.prompts for sample in range(request.samples)]
    step = request.drawing.batch
    return [tuple(pairs[start : start + step]) for start in range(0, len(pairs), step)]


def _batches(
    request: DrawRequest, device: str, size: tuple[int, int], todo: Mapping[int, tuple[int, ...]]
) -> list[PictureBatch]:
    members = _members(request)
    return [
        PictureBatch(
            request.drawing,
            device,
            size,
            members[number],
            tuple(request.places[prompt.id, sample] for prompt, sample in members[number]),
            places,
        )
        for number, places in sorted(todo.items())
    ]


# ---- doing it


def _rounds(
    request: DrawRequest, batches: Sequence[PictureBatch], device: str, processes: int, console: Console
) -> Iterator[int]:
    """Draws this rank's share, and gives after each round how many pictures all ranks have written in it.

    Ranks meet after each round, so that none goes on where another has failed.
    """
    world = ranks.world_size()
    if world > 1:
        start_kernels(request.drawing.fused, torch.device(device))
    share = -(-len(batches) // world)
    # Machines of a job may have different numbers of cores.
    width = max(1, min(*ranks.run_on_all_ranks(lambda: processes), share))
    own = list(batches[ranks.rank() :: world])
    # Each process has its model check all prompts before it draws the first of them.
    own[:width] = [replace(batch, check=request.prompts) for batch in own[:width]]
    with drawing_processes(device, width) as run, _progress(batches, request.out, console) as tell:
        if world == 1:
            for number in run(draw_pictures, own):
                tell(number)
                yield number
            return
        for number, start in enumerate(range(0, share, width), start=1):
            PHASES.enter("rollout", number)
            part = own[start : start + width]
            drawn = sum(_together(partial(_draw_part, run, part)))
            tell(drawn)
            yield drawn


def _draw_part(run: Callable[..., Iterator[int]], part: Sequence[PictureBatch]) -> int:
    drawn = sum(run(draw_pictures, part))
    # Here the ranks meet.
    PHASES.enter("save")
    return drawn


def _together(work: Callable[[], int]) -> list[int]:
    """What each rank's work returned. Where one fails, each rank ends with the same status, and that one says why."""
    crashes: list[Exception] = []

    def attempt() -> int | None:
        try:
            return work()
        except (UserError, OSError):
            raise
        except Exception as error:
            crashes.append(error)
            return None

    outcomes: list[int | None] = ranks.run_on_all_ranks(attempt)
    if crashes:
        raise crashes[0]
    if None in outcomes:
        sys.exit(1)
    return [number for number in outcomes if number is not None]


@contextmanager
def _progress(batches: Sequence[PictureBatch], out: Path, console: Console) -> Iterator[Callable[[int], None]]:
    """Yields what is told of pictures that are written: rank 0 says how many of all, in a log now and then."""
    total, done, said = sum(len(batch.todo) for batch in batches), 0, time.monotonic()
    with ExitStack() as held:
        shown = ranks.rank() == 0
        status = held.enter_context(console.status("")) if shown and total else None

        def tell(number: int) -> None:
            nonlocal done, said
            done += number
            if status is None:
                return
            words = f"{out}: {done} of {total} pictures drawn"
            status.update(escape(words))
            if not console.is_terminal and time.monotonic() - said > SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                console.print(words, soft_wrap=True, highlight=False, markup=False)

        yield tell
