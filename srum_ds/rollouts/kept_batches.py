"""A rank's batch of one training step on the disk, exactly as the step had it: ``srum-ds replay`` runs it again.

    RUN/crash/step_000012_rank_00000.json          what the step was: run, settings, checkpoint, prompts, seeds, replies
              step_000012_rank_00000.safetensors   its tensors: images, tokens, boxes, scores, views, token weights

Nothing is pickled. Numbers that are not finite are kept as they are, in the tensors alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.files import write_atomic
from srum_ds.common.finite import is_finite
from srum_ds.common.texts import parse_json
from srum_ds.objectives.apply import Batch
from srum_ds.prompts.shards import prompt_from_json, prompt_to_json
from srum_ds.types import Failure, Prompt, Regions, Samples, Scores, TokenWeights, TrainView

FORMAT = "srum-ds-step"
VERSION = 1
_SCORES = ("global_N", "global_status_N", "local_R", "local_status_R", "phrase_R", "missing_N", "status_Q")


def keep_batches(folder: Path, step: int, rank: int, batches: Sequence[Batch], facts: Mapping[str, Any]) -> Path:
    """Writes a rank's micro-batches; returns the JSON file, which names the other. Raises UserError, OSError.

    step: from 0, as its randomness is numbered; the file's name counts from 1, as the console does. facts: what else
    is to be known of the step, as JSON has it; ``run_seed`` among it.
    """
    path = folder / f"step_{step + 1:06d}_rank_{rank:05d}.json"
    tensors: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        for name, tensor in _tensors(batch):
            # Views of one storage would be refused, and hold more than is shown of them.
            tensors[f"{number}/{name}"] = tensor.detach().cpu().contiguous().clone()
    told = [_told(batch, step, facts["run_seed"]) for batch in batches]
    record = {"format": FORMAT, "version": VERSION, "step": step, "rank": rank, **facts, "micro_batches": told}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path.with_suffix(".safetensors"), save(tensors))
    write_atomic(path, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def read_batches(path: Path) -> tuple[list[Batch], dict[str, Any]]:
    """What ``keep_batches`` wrote, tensors on the CPU, and its facts. UserError for a file that is none of its."""
    try:
        facts: dict[str, Any] = parse_json(path.read_bytes())
        if facts["format"] != FORMAT or facts["version"] > VERSION:
            raise ValueError(f"format {facts['format']!r}, version {facts['version']!r}")
        tensors = load_file(path.with_suffix(".safetensors"))
        return [_batch(told, number, tensors) for number, told in enumerate(facts.pop("micro_batches"))], facts
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); give the .json of a step, from RUN/crash/.") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise UserError(
            f"{path}: not a step that was kept for a replay ({error!r}); give the .json of one, from RUN/crash/, with "
            "the .safetensors beside it."
        ) from error


def _tensors(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    samples, scores, view, weights = batch.samples, batch.scores, batch.view, batch.weights
    found: dict[str, Tensor | None] = {
        "samples.group_N": samples.group_N,
        "samples.sample_N": samples.sample_N,
        "samples.images_NCHW": samples.images_NCHW,
        "samples.tokens": samples.tokens,
        "regions.owner_R": batch.regions.owner_R,
        "regions.boxes_R4": batch.regions.boxes_R4,
        **{f"scores.{name}": getattr(scores, name) for name in _SCORES},
        **{f"scores.by_judge.{name}": said for name, said in scores.by_judge.items()},
        **{f"view.inputs.{name}": tensor for name, tensor in view.inputs.items()},
        "view.target": view.target,
        "view.counts_NMT": view.counts_NMT,
        "view.time_NM": view.time_NM,
        "weights.map_Nhw": weights.map_Nhw,
        "weights.counts_N": weights.counts_N,
        "weights.partner_N": weights.partner_N,
    }
    yield from ((name, tensor) for name, tensor in found.items() if tensor is not None)


def _told(batch: Batch, step: int, seed: int) -> dict[str, Any]:
    samples = batch.samples
    names = zip(samples.prompt_of_each(), samples.sample_N.tolist(), strict=True)
    return {
        "prompts": [{**json.loads(prompt_to_json(prompt)), "epoch": prompt.epoch} for prompt in samples.prompts],
        "seeds": [[seed, "rollout", step, prompt.name, sample] for prompt, sample in names],
        "grid": list(samples.grid),
        "answers_of_regions": [batch.regions.asked, batch.regions.failed],
        "replies": list(batch.scores.raw),
        "failures": [asdict(failure) for failure in batch.scores.failures],
    }


def _batch(told: Mapping[str, Any], number: int, tensors: Mapping[str, Tensor]) -> Batch:
    own = {key.removeprefix(f"{number}/"): t for key, t in tensors.items() if key.startswith(f"{number}/")}

    def under(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): tensor for key, tensor in own.items() if key.startswith(prefix)}

    samples = under("samples.")
    return Batch(
        Samples(prompts=tuple(_prompts(told["prompts"])), grid=tuple(told["grid"]), **samples),
        Regions(own["regions.owner_R"], own["regions.boxes_R4"], *map(int, told["answers_of_regions"])),
        Scores(
            **{name: own.get(f"scores.{name}") for name in _SCORES},  # type: ignore[arg-type]
            raw=tuple(told["replies"]),
            failures=tuple(Failure(**failure) for failure in told["failures"]),
            by_judge=under("scores.by_judge."),
        ),
        TrainView(under("view.inputs."), own["view.target"], own["view.counts_NMT"].bool(), own.get("view.time_NM")),
        TokenWeights(own.get("weights.map_Nhw"), own["weights.counts_N"].bool(), own.get("weights.partner_N")),
    )


def _prompts(told: Sequence[Mapping[str, Any]]) -> Iterator[Prompt]:
    for record in told:
        fields = {key: value for key, value in record.items() if key != "epoch"}
        prompt = prompt_from_json(json.dumps(fields).encode(), "a kept step")
        yield Prompt(prompt.id, prompt.text, prompt.category, prompt.phrases, prompt.meta, epoch=int(record["epoch"]))


def first_not_finite(batch: Batch) -> str | None:
    """The first tensor of a batch, of those that training computes with, that is not finite; None where all are.

    Images and scores may hold NaN, which means that there is none: they are masked.
    """
    for name, tensor in _tensors(batch):
        if name == "weights.map_Nhw":
            tensor = tensor[batch.weights.counts_N.to(tensor.device)]
        if name.startswith(("view.", "weights.")) and not is_finite(tensor):
            return name
    return None
