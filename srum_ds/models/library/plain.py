"""What a design with nothing special can take over: no adapter, no plans, no edits, one folder of weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from srum_ds.common.errors import UserError
from srum_ds.models.library.building import fill
from srum_ds.models.library.folder import FolderWeights, Streamed
from srum_ds.models.lora import Binding
from srum_ds.models.protocol import Materialise
from srum_ds.types import Prompt


class PlainModel:
    """The rest of a ``UnifiedModel`` for a design that judges, draws and predicts, and asks for no more.

    It is loaded whole or by an engine's ``materialise``, trains parameters by the beginnings of their names, and is
    exported in the layout of its folder.

    weights: of the folder. module: made by ``meta_module``; it is filled here. trains: for each mode, how the names of
    the parameters that it trains begin. judges: how the names of those begin that are read when it judges.
    """

    lora: Binding | None = None

    def __init__(
        self,
        weights: FolderWeights,
        module: nn.Module,
        trains: Mapping[str, tuple[str, ...]],
        judges: tuple[str, ...],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        materialise: Materialise | None = None,
    ) -> None:
        self.weights = weights.settle_ties(module)
        self.weights.check(module)
        if materialise is None:
            fill(module, self.weights.stored(), dtype, device)
        else:
            materialise(module, self.weights.stored())
        self.plain_module = module.eval().requires_grad_(False)
        self.trains, self.judges = trains, judges

    @property
    def folder(self) -> Path:
        """The checkpoint folder that it was loaded from."""
        return self.weights.folder

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.plain_module.parameters()).device

    def trainable(self, mode: str) -> list[str]:
        """Names of the parameters that ``mode`` trains. UserError for a mode that the design does not have."""
        if mode not in self.trains:
            raise UserError(f"model.trains={mode}: this design has {', '.join(self.trains)}")
        return [name for name, _ in self.plain_module.named_parameters() if name.startswith(self.trains[mode])]

    def judge_unchanged_by(self, mode: str) -> bool:
        """Whether nothing that ``mode`` trains is read when it judges."""
        return not any(name.startswith(self.judges) for name in self.trainable(mode))

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Nothing needs a switch."""
        yield

    def add_lora(self, rank: int, alpha: float, targets: Sequence[str], seed: int) -> Binding:
        """UserError: there is no such mode."""
        raise UserError(f"model.trains=lora: this design has {', '.join(self.trains)}")

    def enable_checkpointing(self, enabled: bool = True) -> None:
        """UserError where it is wanted: nothing here recomputes."""
        if enabled:
            raise UserError("train.activation_checkpointing: this design recomputes nothing; set it to false")

    def compile_blocks(self) -> None:
        """Nothing is repeated."""

    def shard_units(self) -> list[type[nn.Module]]:
        """No class: every module is gathered by itself."""
        return []

    def stored(self) -> Iterable[tuple[str, Tensor]]:
        """The folder's tensors under the module's names, memory-mapped."""
        return self.weights.stored()

    def export(self, folder: Path, names: Sequence[str], tensors: Streamed, dtype: torch.dtype | None = None) -> None:
        """Writes the folder it came from with some tensors replaced."""
        self.weights.export(folder, names, tensors, dtype)

    def plan(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        edits: Sequence[Tensor] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """UserError: it writes no plans."""
        raise UserError("this design writes no plans (rollout.think, generate --think)")
