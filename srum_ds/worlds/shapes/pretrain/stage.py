"""What the stages of pretraining share: the schedule, the optimizers, averages, the curve, save and resume."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from srum_ds.common.errors import UserError

SAVE_EVERY = 300
NOTE_EVERY = 50


@dataclass(frozen=True)
class Schedule:
    """Sizes of the drawing batch, and rates.

    captions pictures, each noised noise_copies times, make a step's drawing batch. altered: the share of
    captions that say something slightly different; caption_dropout: of copies that see no caption.
    """

    steps: int
    captions: int
    noise_copies: int
    lr: float
    warmup: int
    flat_share: float
    altered: float
    caption_dropout: float
    ema_decay: float
    max_grad_norm: float
    seed: int

    def rate(self, step: int) -> float:
        """The learning rate of a step: warm-up, flat, then linear down to a fiftieth."""
        done = step / self.steps
        fall = 1.0 if done < self.flat_share else (1 - done) / (1 - self.flat_share)
        return self.lr * min(1.0, (step + 1) / self.warmup) * (0.02 + 0.98 * fall)


def optimizers(live: Mapping[str, nn.Parameter], lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the transformers' matrices, AdamW for everything else."""
    matrices = [p for name, p in live.items() if ".layers." in name and p.ndim == 2]
    rest = [p for name, p in live.items() if not (".layers." in name and p.ndim == 2)]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


class Stage:
    """The parameters that a stage trains, their averages, and how far it has come.

    Everything is in ``out/NAME.safetensors``, replaced as one every 300 steps: live and averaged weights and the
    optimizers' momenta, with plan and progress as metadata (``out/NAME.json`` is a readable copy). A stage that
    finds the file goes on from there, to the same bits. UserError where the file was made by another plan.
    Every ``snapshot_every`` steps (0: never) the averages are kept as ``out/NAME-STEP.safetensors`` too.
    """

    def __init__(
        self, name: str, live: Mapping[str, nn.Parameter], plan: Schedule, out: Path, snapshot_every: int = 0
    ) -> None:
        self.name, self.live, self.plan, self.out = name, live, plan, out
        self.snapshot_every = snapshot_every
        self.averaged = {key: p.detach().clone() for key, p in live.items()}
        self.optimizers = optimizers(live, plan.lr)
        self.step = 0
        self.curve: list[dict[str, float]] = []
        seconds = self._load() if (out / f"{name}.safetensors").exists() else 0.0
        self._start = time.time() - seconds
        self._sums: dict[str, float] = {}

    def begin_step(self) -> torch.Generator:
        """Sets the step's learning rate; returns the step's own random numbers."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.plan.rate(self.step)
        return torch.Generator().manual_seed(self.plan.seed * 1_000_003 + self.step)

    def end_step(self, values: Mapping[str, float]) -> None:
        """Updates weights and averages from the gradients, notes the step's values, and saves now and then."""
        begun = time.time()
        norm = torch.nn.utils.clip_grad_norm_(self.live.values(), self.plan.max_grad_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        # Early steps are averaged over less.
        decay = min(self.plan.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.values()), [self.live[k] for k in self.averaged], 1 - decay)
        self.step += 1
        for key, value in {**values, "grad_norm": float(norm), "t_opt": time.time() - begun}.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
        if self.step % NOTE_EVERY == 0:
            point = {"step": self.step, "seconds": round(time.time() - self._start, 1)}
            point |= {key: round(total / NOTE_EVERY, 4) for key, total in self._sums.items()}
            self.curve.append(point)
            self._sums = {}
            print(json.dumps(point), flush=True)
        if self.step % SAVE_EVERY == 0 or self.step == self.plan.steps:
            self._save()
        if self.snapshot_every and self.step % self.snapshot_every == 0:
            kept = {key: average.to(torch.bfloat16) for key, average in self.averaged.items()}
            save_file(kept, self.out / f"{self.name}-{self.step}.safetensors")

    @torch.no_grad()
    def finish(self) -> None:
        """Puts the averages in the place of the live weights."""
        for key, parameter in self.live.items():
            parameter.copy_(self.averaged[key])

    def _load(self) -> float:
        path = self.out / f"{self.name}.safetensors"
        with safe_open(path, "pt") as stored:
            metadata = stored.metadata()
        plan, progress = json.loads(metadata["plan"]), json.loads(metadata["progress"])
        # As the file has it: a tuple has become a list.
        own = json.loads(json.dumps(asdict(self.plan)))
        changed = [key for key, value in own.items() if plan.get(key) != value]
        if changed:
            raise UserError(f"{path} was made with another {', '.join(changed)}: choose another --work folder.")
        tensors = load_file(path)
        for key, parameter in self.live.items():
            parameter.data.copy_(tensors["live/" + key])
            self.averaged[key].copy_(tensors["ema/" + key])
        for key, (state, entry) in self._momenta(tensors).items():
            state[entry] = tensors[key]
        self.step, self.curve = progress["step"], progress["curve"]
        return float(progress["seconds"])

    def _momenta(self, stored: Mapping[str, Tensor] | None = None) -> dict[str, tuple[Any, str]]:
        """Where each of the optimizers' tensors lives, by a name: those that there are, or those of ``stored``."""
        names = {parameter: key for key, parameter in self.live.items()}
        found: dict[str, tuple[Any, str]] = {}
        for number, optimizer in enumerate(self.optimizers):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    state = optimizer.state[parameter]
                    begin = f"optimizer{number}/{names[parameter]}/"
                    if stored is None:
                        found.update({begin + entry: (state, entry) for entry in state})
                    else:
                        own = [key for key in stored if key.startswith(begin)]
                        found.update({key: (state, key.removeprefix(begin)) for key in own})
        return found

    def _save(self) -> None:
        tensors: dict[str, Tensor] = {"live/" + key: p.detach().clone() for key, p in self.live.items()}
        tensors |= {key: state[entry].contiguous() for key, (state, entry) in self._momenta().items()}
        tensors |= {"ema/" + key: average for key, average in self.averaged.items()}
        progress = {"step": self.step, "seconds": round(time.time() - self._start, 1), "curve": self.curve}
        record = {"plan": asdict(self.plan), "progress": progress}
        partial = self.out / f"{self.name}.partial"
        save_file(tensors, partial, metadata={key: json.dumps(value) for key, value in record.items()})
        partial.replace(self.out / f"{self.name}.safetensors")
        (self.out / f"{self.name}.json").write_text(json.dumps(record) + "\n")


def averaged_weights(out: Path, name: str) -> dict[str, Tensor]:
    """The averages that a stage saved; UserError where it has saved nothing yet."""
    path = out / f"{name}.safetensors"
    if not path.exists():
        raise UserError(f"{path} is missing: that stage of pretraining has saved nothing yet.")
    return {key.removeprefix("ema/"): t for key, t in load_file(path).items() if key.startswith("ema/")}
