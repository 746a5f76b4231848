"""``srum-ds rollout`` and ``srum-ds rescore``: images drawn and judged ahead of training, by any number of ranks.

    deepspeed [launcher flags] --module srum_ds.rollouts.worker rollout DIR RECIPE key=value ...
    deepspeed [launcher flags] --module srum_ds.rollouts.worker rescore DIR DIR2 key=value ...

Nothing trains here, so that every rank holds the whole model and no optimiser; ranks meet only to commit a
step. Whatever step the folder holds already is not made again. A rank that hangs ends the job as in training
(``limits.*``), with heartbeats and stacks in the folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from srum_ds.common import ranks
from srum_ds.common.clock import Clock
from srum_ds.common.errors import UserError, guarded
from srum_ds.common.files import weights_sha256
from srum_ds.common.phases import PHASES
from srum_ds.config import Config, check_world, load_config, save_config, split_arguments
from srum_ds.config.messages import refuse_others
from srum_ds.engine import choose_device, compute_device, leave_distributed, start_distributed
from srum_ds.engine.base import DTYPES
from srum_ds.models import load_model
from srum_ds.models.fused import start_kernels
from srum_ds.models.protocol import UnifiedModel
from srum_ds.monitoring import run_folder
from srum_ds.monitoring.watchdog import watched
from srum_ds.prompts.prompt_set import prompt_folder
from srum_ds.prompts.reader import PromptReader
from srum_ds.rewards.judge.host import JudgeHost
from srum_ds.rewards.judge.pipeline import JudgePipeline
from srum_ds.rollouts.choose import check_prompts
from srum_ds.rollouts.collect import Collector, sampling_of, to_device
from srum_ds.rollouts.counting import tell_losses
from srum_ds.rollouts.header import rollout_header
from srum_ds.rollouts.rescoring import KEPT as KEPT
from srum_ds.rollouts.rescoring import RESCORABLE as RESCORABLE
from srum_ds.rollouts.shards import RolloutReader, RolloutWriter
from srum_ds.types import Judged


@torch.no_grad()
def rollout(cfg: Config, out: Path) -> None:
    """Draws and judges ``train.steps`` steps of the recipe's prompts with the weights of ``model.path``.

    A step's images are those that an online run draws in it as long as its weights are these: same
    prompts, same seeds. Raises UserError on bad input and for a folder of other settings.
    """
    check_world(cfg, int(os.environ.get("WORLD_SIZE", "1")))
    prompts = PromptReader(prompt_folder(cfg), cfg.data.split)
    judging = JudgePipeline(cfg, out).ready()
    device = join_ranks()
    with only_writer(out), watched(out, ranks.rank(), cfg.limits) as dog:
        collector = whole_collector(cfg, judging, device)
        check_prompts(collector.model, [prompts])
        writer = open_writer(collector, out)
        for step in unfinished(writer, range(cfg.train.steps)):
            PHASES.enter("data", step + 1)
            own = prompts.batch(step, cfg.rollout.prompts_per_step, cfg.run.seed, ranks.rank(), ranks.world_size())
            with ExitStack() as held:
                batches = collector.collect(own, step, Clock(), held)
            # Here the ranks meet.
            PHASES.enter("save")
            tell_losses(step, batches, cfg.judge.max_failed_share, judging.cure, say)
            writer.write(step, 0, batches)
        dog.stop(0)
        dog.leave_nothing()


@torch.no_grad()
def rescore(source: Path, out: Path, overrides: Sequence[str]) -> None:
    """Judges the images of ``source`` again, under its settings with ``overrides`` on top, into ``out``.

    Images and latents are carried over bit for bit; boxes too, unless a ``regions`` setting is given.
    Raises UserError for settings that would draw other images, and where the model is another one.
    """
    refuse_others(overrides, RESCORABLE, KEPT)
    cfg = load_config(source / run_folder.CONFIG, overrides)
    check_world(cfg, int(os.environ.get("WORLD_SIZE", "1")))
    reader = RolloutReader(source)
    reader.check(range(0))
    judging = JudgePipeline(cfg)
    device = join_ranks()
    with only_writer(out), watched(out, ranks.rank(), cfg.limits) as dog:
        ranks.run_on_all_ranks(lambda: check_model(cfg, reader), rank_zero=True)
        collector = whole_collector(cfg, judging, device)
        writer = open_writer(collector, out)
        anew = any(word.startswith("regions.") for word in overrides)
        for step in unfinished(writer, sorted(reader.index.steps)):
            PHASES.enter("data", step + 1)
            kept = read_together(cfg, reader, step)
            PHASES.enter("judge")
            batches = judge_again(collector, kept, anew)
            PHASES.enter("save")
            tell_losses(step, batches, cfg.judge.max_failed_share, judging.cure, say)
            writer.write(step, reader.policy(step), batches)
        dog.stop(0)
        dog.leave_nothing()


# ---- the pieces


def join_ranks() -> torch.device:
    """Joins the other ranks where a launcher has started some; returns this rank's device."""
    if "RANK" in os.environ:
        start_distributed()
    else:
        choose_device()
    return compute_device()


def whole_collector(cfg: Config, judging: JudgePipeline, device: torch.device) -> Collector:
    """What draws and judges: ``model.path`` whole on this rank's device, its weights in ``train.precision``."""
    start_kernels(cfg.kernels.fused, device)
    # A GPU would have to hold it in float32 for a moment; on a CPU only the parameters are cast, as the engines do.
    dtype = torch.float32 if device.type == "cpu" else DTYPES[cfg.train.precision]
    model = load_model(cfg.model.path, cfg.model.kind, dtype, device)
    for parameter in model.module.parameters():
        parameter.data = parameter.data.to(DTYPES[cfg.train.precision])
    return Collector(cfg, model, JudgeHost(model), judging, sampling_of(cfg))


def open_writer(collector: Collector, out: Path) -> RolloutWriter:
    """The folder, begun or gone on with, and the settings beside it."""
    header = ranks.run_on_all_ranks(lambda: rollout_header(collector), rank_zero=True)[0]
    writer = RolloutWriter(out, header)
    ranks.run_on_all_ranks(lambda: save_config(collector.cfg, out / run_folder.CONFIG), rank_zero=True)
    return writer


def read_together(cfg: Config, reader: RolloutReader, step: int) -> list[Judged]:
    """This rank's micro-batches of a step; fails on all ranks where it fails on one."""
    found: list[Judged] = []

    def read() -> None:
        found.extend(reader.batches(step, cfg.rollout.micro_batch_prompts, ranks.rank(), ranks.world_size()))

    ranks.run_on_all_ranks(read)
    return found


def judge_again(collector: Collector, kept: Sequence[Judged], anew: bool) -> list[Judged]:
    """The same images with other scores, and with other boxes where ``anew``, or with none where nobody judges any."""
    model: UnifiedModel = collector.model
    kept = [to_device(old, model.device) for old in kept]
    with model.judging():
        if anew or not collector.judging.judges_regions:
            return collector.judging.judged_together(model, [old.samples for old in kept])
        scores = collector.judging.scores_together(model, [(old.samples, old.regions) for old in kept])
    return [replace(old, scores=said) for old, said in zip(kept, scores, strict=True)]


def check_model(cfg: Config, reader: RolloutReader) -> None:
    """Raises UserError where ``model.path`` is not the model that drew and judged."""
    if weights_sha256(Path(cfg.model.path)) != reader.header.model:
        raise UserError(
            f"model.path={cfg.written('model.path')} is another model than the one that {reader.folder} was made "
            f"with (SHA-256 {reader.header.model}): give its folder as model.path=..."
        )


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Holds the folder for this job; UserError on all ranks where another job writes there."""
    with ExitStack() as held:
        ranks.run_on_all_ranks(lambda: held.enter_context(run_folder.locked(out)), rank_zero=True)
        yield


def unfinished(writer: RolloutWriter, steps: Sequence[int]) -> Iterator[int]:
    """The steps still to be made, and a line now and then that says how far they are."""
    todo = [step for step in steps if step not in writer.index.steps]
    every = max(1, len(todo) // 20)
    for done, step in enumerate(todo, start=1):
        yield step
        if ranks.rank() == 0 and (done % every == 0 or done == len(todo)):
            say(f"{writer.folder}: {done} of {len(todo)} steps written")
    if ranks.rank() == 0:
        say(f"{writer.folder}: holds {len(writer.index.steps)} steps")


def say(text: str) -> None:
    """One line for the user."""
    Console().print(text, soft_wrap=True, highlight=False, markup=False)


def main(arguments: Sequence[str]) -> int:
    """One rank: ``rollout DIR [RECIPE] [key=value ...]`` or ``rescore DIR DIR2 [key=value ...]``."""
    words = [word for word in arguments if not word.startswith("--local_rank")]
    command, first, rest = words[0], Path(words[1]), words[2:]
    if command == "rescore":
        out, overrides = Path(rest[0]), rest[1:]
        rescore(first, out, overrides)
    else:
        recipe, overrides = split_arguments(rest)
        rollout(load_config(recipe, overrides), first)
    leave_distributed()
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
