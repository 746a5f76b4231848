"""The DeepSpeed engine: ZeRO sharding, gathering, precision.

``gathered()`` is what plain ``deepspeed.zero.GatheredParameters`` does not give: all parameters gathered in
one all-gather, DeepSpeed's module hooks taken off so that no forward inside releases or fetches anything,
optionally with the values of a named copy, and everything put back whatever happens inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.engine.base import DTYPES, LIVE, Place, Settings, split_trainable, spoiling
from srum_ds.engine.checkpoints import CheckpointedEngine
from srum_ds.engine.config import full_config
from srum_ds.engine.distributed import (
    accelerator_headroom,
    compute_device,
    deepspeed,
    set_z3_leaf_modules,
    start_distributed,
)
from srum_ds.engine.gathering import GATHER_NUMEL, batches, whole, without
from srum_ds.engine.loading import held_part

_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


class Engine(CheckpointedEngine):
    """Trains the named parameters of a module under ZeRO-1, -2 or -3, on any number of ranks."""

    @classmethod
    def create(
        cls,
        module: torch.nn.Module,
        trainable_names: set[str],
        ds_config: Mapping[str, Any],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        max_grad_norm: float,
        warmup_steps: int,
        precision: str,
        seed: int,
        decay_steps: int = 0,
        leaf_modules: Sequence[type[torch.nn.Module]] = (),
        timeout_minutes: float = 30.0,
        stored: Iterable[tuple[str, Tensor]] = (),
    ) -> Engine:
        """Takes the module over: freezes all but ``trainable_names``, shards, makes fp32 masters.

        module: the same weights on every rank (rank 0's are broadcast). ds_config: a DeepSpeed config
        without the keys the recipe sets. precision: ``fp32`` or ``bf16`` (all parameters are cast; the
        masters keep the fp32 values the module came with). leaf_modules: classes whose instances ZeRO-3
        gathers as one unit, e.g. the transformer layer (far fewer hooks); they take their tensors by
        position. stored: (name, tensor) pairs that the module was loaded from into shards (``shard_loader``);
        the masters start from these values, unrounded. Raises UserError for a config that cannot work.
        """
        start_distributed(timeout_minutes)
        engine = cls()
        engine.rank = dist.get_rank()
        engine.world_size = dist.get_world_size()
        engine.compute_dtype = DTYPES[precision]
        engine.settings = Settings(lr, betas, eps, weight_decay, max_grad_norm, warmup_steps, decay_steps)
        engine.module = module
        engine._copies = {}
        engine._fixed = {}
        engine._stage = ds_config.get("zero_optimization", {}).get("stage", 0)
        config = full_config(ds_config, engine.settings, precision)
        torch.manual_seed((seed + engine.rank) % 2**64)

        for name, parameter in module.named_parameters():
            if parameter.dim() == 0:
                # DeepSpeed broadcasts parameters as bytes, which a tensor without dimensions cannot be.
                raise ValueError(f"parameter {name} has no dimensions; give it the shape [1]")
        trainable = split_trainable(module, trainable_names)
        engine._parameters = trainable
        engine._shapes = {name: getattr(p, "ds_shape", p.shape) for name, p in trainable.items()}
        originals = _unrounded(trainable, engine.compute_dtype)
        _cast_late_comers(module, engine.compute_dtype)
        try:
            engine._ds, _, _, _ = deepspeed.initialize(
                model=module,
                model_parameters=list(trainable.values()),
                config=config,
                dist_init_required=False,
            )
        except ValidationError as error:
            raise UserError(f"deepspeed.config: DeepSpeed does not accept it: {error}") from error
        engine.device = compute_device()
        if leaf_modules and engine._stage == 3:
            engine._gather_as_units(leaf_modules)
        engine._find_masters()
        engine._take_unrounded(originals.items())
        if engine.compute_dtype != torch.float32:
            engine._take_unrounded(stored)
        return engine

    _ds: Any
    _stage: int
    # torch.nn.Parameter, with the attributes DeepSpeed hangs on it.
    _parameters: dict[str, Any]
    _seen: int = 0
    _boundary: bool = False
    _open_graph: bool = False
    _is_gathered: bool = False
    _is_whole: bool = False

    # ---- training ----------------------------------------------------------------------------------

    def __call__(self, *args: Any) -> Any:
        if self._is_gathered:
            raise RuntimeError("inside gathered() call the module, not the engine")
        output = self._ds(*args)
        self._open_graph = torch.is_grad_enabled()
        return output

    def backward(self, loss_sum: Tensor, global_count: float, micro_batches: int) -> None:
        self._seen += 1
        if self._seen > micro_batches:
            raise RuntimeError(f"backward() called {self._seen} times for {micro_batches} micro-batches")
        self._boundary = self._seen == micro_batches
        self._ds.set_gradient_accumulation_boundary(self._boundary)
        # DeepSpeed averages over ranks; times the world size, it is the sum again.
        self._ds.backward(self.world_size * spoiling(loss_sum) / global_count, scale_wrt_gas=False)
        self._open_graph = False

    def step(self) -> float:
        if not self._boundary:
            raise RuntimeError(f"step() after {self._seen} micro-batches, before the last one announced")
        self._set_learning_rate()
        self._ds.step()
        norm = float(self._ds.get_global_grad_norm())
        if not self._ds.was_step_applied():
            norm = float("nan")
        if self._stage == 3 and self._zero.grad_partitions_flat_buffer is not None:
            # A parameter no micro-batch of the next step reaches would be updated by this step's gradient.
            self._zero.grad_partitions_flat_buffer.zero_()
        self._seen = 0
        self._boundary = False
        self.steps += 1
        return norm

    def all_reduce(self, tensor: Tensor, op: str = "sum") -> Tensor:
        dist.all_reduce(tensor, op=_OPERATIONS[op])
        return tensor

    def barrier(self) -> None:
        dist.barrier()

    def sharded_share(self) -> float:
        total = partial = 0
        parameters: list[Any] = list(self.module.parameters())
        for parameter in parameters:
            numel = getattr(parameter, "ds_numel", parameter.numel())
            held = parameter.ds_tensor.numel() if self._stage == 3 else numel
            total += numel
            partial += numel if held < numel else 0
        return partial / max(1, total)

    # ---- gathering ---------------------------------------------------------------------------------

    @contextmanager
    def gathered(self, weights: str = LIVE) -> Iterator[torch.nn.Module]:
        """The whole module on every rank: all parameters gathered once, no communication inside.

        Trainable parameters hold the values of ``weights`` (``live`` or a named copy) in the compute
        dtype. No gradients inside; not between a forward and its backward; not nested. Afterwards the
        live shards are bit for bit what they were.
        """
        flats = self._named(weights)
        self._begin_gathered()
        try:
            with self._whole(flats, weights == LIVE), without(self._deepspeed_hooks()), torch.no_grad():
                self._is_whole = True
                yield self.module
        finally:
            self._is_gathered = False
            self._is_whole = False

    @contextmanager
    def _whole(self, flats: list[Tensor], live: bool) -> Iterator[None]:
        if self._stage < 3:
            with self._replaced(flats, live):
                yield
            return
        # Prefetching and reuse leave some parameters whole or on their way after a backward.
        self._zero.parameter_offload.partition_all_parameters()
        with whole(list(self.module.parameters()), self._shards_of(flats, live)):
            yield

    @contextmanager
    def layer_by_layer(self, weights: str = LIVE) -> Iterator[torch.nn.Module]:
        """The module with each layer gathered when it runs and let go after it, where the whole does not fit.

        Every forward inside communicates: all ranks make the same ones, of whatever sizes. Trainable parameters have
        the values of ``weights``. No gradients inside; otherwise as ``gathered``. Stages 1 and 2 hold all anyway.
        """
        if self._stage < 3:
            with self.gathered(weights) as module:
                yield module
            return
        flats = self._named(weights)
        self._begin_gathered()
        offload = self._zero.parameter_offload
        try:
            offload.partition_all_parameters()
            with self._shards_of(flats, weights == LIVE), torch.no_grad():
                try:
                    yield self.module
                finally:
                    # What was fetched ahead holds the copy's values.
                    offload.partition_all_parameters()
        finally:
            self._is_gathered = False

    @contextmanager
    def gathered_frozen(self) -> Iterator[torch.nn.Module]:
        """Like ``gathered`` with the parameters alone that do not train: all that a judge needs which never changes."""
        self._begin_gathered()
        try:
            with ExitStack() as held:
                if self._stage == 3:
                    self._zero.parameter_offload.partition_all_parameters()
                    held.enter_context(whole([p for p in self.module.parameters() if not p.requires_grad]))
                held.enter_context(without(self._deepspeed_hooks()))
                held.enter_context(torch.no_grad())
                yield self.module
        finally:
            self._is_gathered = False

    def gathered_bytes(self) -> int:
        """What ``gathered`` takes on top of this rank's shards while it gathers, in bytes."""
        if self._stage < 3:
            return 0
        parameters: list[Any] = list(self.module.parameters())
        numel = sum(int(p.ds_numel) for p in parameters)
        return (numel + min(numel, GATHER_NUMEL)) * self.compute_dtype.itemsize

    def fits_gathered(self) -> bool:
        """Whether every rank has room for ``gathered`` now, with a tenth to spare; all ranks call it.

        Always where there is no accelerator: a CPU's memory is not counted.
        """
        free = accelerator_headroom()
        short = free is not None and free < 1.1 * self.gathered_bytes()
        return not bool(self.all_reduce(torch.tensor(float(short), device=self.device), "max"))

    @property
    def holds_whole(self) -> bool:
        """Whether the whole module is gathered just now."""
        return self._is_whole

    def _begin_gathered(self) -> None:
        if self._is_gathered:
            raise RuntimeError("gathered() inside gathered()")
        if self._open_graph:
            raise RuntimeError("gathered() between a training forward and its backward")
        self._is_gathered = True

    @contextmanager
    def _replaced(self, flats: list[Tensor], live: bool) -> Iterator[None]:
        """Stages 1 and 2: parameters are whole anyway, a named copy's values take their place."""
        originals = {name: parameter.data for name, parameter in self._parameters.items()}
        try:
            if not live:
                for batch in batches(list(self._shapes), [s.numel() for s in self._shapes.values()]):
                    for name, value in self._full(flats, batch).items():
                        self._parameters[name].data = value.to(self.compute_dtype)
            yield
        finally:
            for name, parameter in self._parameters.items():
                parameter.data = originals[name]

    @contextmanager
    def _shards_of(self, flats: list[Tensor], live: bool) -> Iterator[None]:
        """Stage 3: lets the sharded parameters' storage be the named copy's while they are gathered."""
        if live:
            yield
            return
        originals = {name: parameter.ds_tensor.data for name, parameter in self._parameters.items()}
        cast = [flat.detach().to(self.compute_dtype) for flat in flats]
        try:
            for name, parameter in self._parameters.items():
                place = self._places[name]
                shard = cast[place.flat].narrow(0, place.offset, parameter.ds_tensor.ds_numel)
                parameter.ds_tensor.data = shard.to(originals[name].device)
            yield
        finally:
            for name, parameter in self._parameters.items():
                parameter.ds_tensor.data = originals[name]

    def _deepspeed_hooks(self) -> list[Any]:
        hooks = [self._ds.module_forward_pre_hook, self._ds.module_forward_post_hook]
        if self._stage == 3:
            offload = self._zero.parameter_offload
            hooks += [*offload.forward_hooks, *offload.backward_hooks, offload.fwd_pre_hook]
        return hooks

    def _gather_as_units(self, classes: Sequence[type[torch.nn.Module]]) -> None:
        """Lets DeepSpeed hook instances of these classes as a whole, not each module in them.

        Marked before ``deepspeed.initialize`` they would be its "leaf modules", whose gradients are
        reduced by one hook a call: wrong where a module runs twice in a forward, or where none of its
        inputs carries a gradient. Marked now, only fetching is coarse; gradients keep a hook each.
        """
        offload = self._zero.parameter_offload
        offload._remove_module_hooks()
        offload.forward_hooks = []
        offload.backward_hooks = []
        set_z3_leaf_modules(self.module, list(classes))
        offload.setup_zero_stage3_hooks()

    def _full_frozen(self, name: str) -> Tensor:
        parameter = self.module.get_parameter(name)
        if self._stage < 3:
            return parameter.detach().clone()
        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

    # ---- masters -----------------------------------------------------------------------------------

    @property
    def _zero(self) -> Any:
        return self._ds.optimizer

    def _find_masters(self) -> None:
        """Says where DeepSpeed keeps this rank's fp32 masters."""
        zero = self._zero
        self._adam = zero.optimizer
        self._places = {}
        if self._stage == 3:
            self._flats = list(zero.fp32_partitioned_groups_flat)
            for name, parameter in self._parameters.items():
                flat, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
                self._places[name] = Place(flat, offset, *held_part(parameter))
            return
        bf16_optimizer = hasattr(zero, "fp32_groups_flat_partition")
        self._flats = list(zero.fp32_groups_flat_partition if bf16_optimizer else zero.single_partition_of_fp32_groups)
        for name, parameter in self._parameters.items():
            mapping = parameter._hp_mapping
            if mapping is None:
                self._places[name] = Place(0, 0, 0, 0)
                continue
            there = mapping.get_hp_fragment_address()
            start = mapping.lp_fragment_address.start
            self._places[name] = Place(mapping.param_group_index, there.start, start, there.numel)

    @torch.no_grad()
    def _take_unrounded(self, originals: Iterable[tuple[str, Tensor]]) -> None:
        for name, original in originals:
            place = self._places.get(name)
            if place is not None and place.numel:
                values = original.reshape(-1)[place.start : place.start + place.numel]
                self._piece(self._flats, name).copy_(values)

    @torch.no_grad()
    def _refresh_live(self) -> None:
        if self._stage == 3:
            for index, flat in enumerate(self._flats):
                self._zero.fp16_partitioned_groups_flat[index].data.copy_(flat.data)
            return
        for name, parameter in self._parameters.items():
            parameter.data.copy_(self._full(self._flats, [name])[name])

    def _gather_objects(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


def _unrounded(trainable: Mapping[str, torch.nn.Parameter], dtype: torch.dtype) -> dict[str, Tensor]:
    """The fp32 values of whole parameters about to be cast; nothing where no rounding happens."""
    return {
        name: parameter.detach().clone()
        for name, parameter in trainable.items()
        if parameter.dtype == torch.float32 and dtype != torch.float32 and not hasattr(parameter, "ds_id")
    }


def _cast_late_comers(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Casts what was added to a module after it was loaded into shards; DeepSpeed casts whole modules only."""
    parameters = list(module.parameters())
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        for parameter in parameters:
            parameter.data = parameter.data.to(dtype)
