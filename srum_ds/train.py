"""The training loop: generate, judge, weigh, backpropagate.

    deepspeed launch/train.sh launch/recipes/tiny.yaml key=value ...

One step of ``train`` below is one step of SRUM (arXiv 2510.12784), online: the model draws K pictures a
prompt, its frozen understanding half scores them whole and by region, the scores become a map of
weights over the latent tokens, and the weighted velocity loss trains the generation half.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from srum_ds import run_folder
from srum_ds.config import Config, check_world, find_path, load_config, split_arguments
from srum_ds.data.reader import PromptReader
from srum_ds.engine import Engine, read_ds_config, start_distributed
from srum_ds.environment import write_environment
from srum_ds.errors import UserError
from srum_ds.evaluation.report import show_result
from srum_ds.models import load_model
from srum_ds.models.base import Judge, Prompt, Regions, Rollout, Sampling, Scores, Status
from srum_ds.monitor import Monitor
from srum_ds.objectives import compute_losses, get_objective
from srum_ds.pictures import boxes_by_picture
from srum_ds.rewards.diagnostics import reward_std_zero_share
from srum_ds.rewards.judge import judge_rollout
from srum_ds.rewards.regions import no_regions, propose
from srum_ds.rewards.reward_map import dense_weights, paper_map
from srum_ds.rewards.templates import Template, load_template
from srum_ds.rollout import Noised, add_noise, roll_out

STOPPED = 75
"""Exit status of a run that was asked to stop, saved and can go on (EX_TEMPFAIL)."""

MAX_BAD_STEPS = 3
SHOWN_PROMPTS = 8


@dataclass(frozen=True)
class Batch:
    """One micro-batch on its way through a step."""

    rollout: Rollout
    regions: Regions
    scores: Scores
    noised: Noised
    old_NMTC: Tensor | None


def train(cfg: Config, run_dir: Path) -> int:
    """Trains from where ``run_dir`` stands to ``train.steps`` and exports; returns the exit status."""
    reader = PromptReader(find_path(cfg.data.shards), cfg.data.split)
    ask = Questions(cfg)
    model = load_model(find_path(cfg.model.path), cfg.model.kind)
    judge = choose_judge(cfg, model)
    start_distributed()
    engine = create_engine(cfg, model)
    objective = get_objective(cfg.objective.name)
    with_reference = cfg.objective.constraint == "reference" and cfg.objective.constraint_weight > 0
    for name in ("old", "ema", "reference"):
        engine.add_weights(name)

    resumed = engine.load(run_dir / run_folder.CHECKPOINTS)
    start = resumed[0] if resumed is not None else 0
    monitor = Monitor(run_dir, engine.rank, cfg.log.tensorboard, cfg.log.progress, cfg.train.steps)
    monitor.truncate(start)
    if engine.rank == 0:
        write_environment(run_dir, engine.world_size, sharded_share=engine.sharded_share())
    announce(monitor, cfg, engine, judge is model, start)
    stop = StopSignal()
    sampling = sampling_of(cfg)
    bad_steps = 0

    for step in range(start, cfg.train.steps):
        clock = Clock()
        with clock("data"):
            prompts = reader.batch(step, cfg.rollout.prompts_per_step, cfg.run.seed, engine.rank, engine.world_size)
        batches: list[Batch] = []
        with engine.gathered(cfg.rollout.weights):
            for group in micro_batches(prompts, cfg.rollout.micro_batch_prompts):
                with clock("rollout"):
                    rollout = generate(cfg, model, group, sampling, step)
                with clock("judge"):
                    regions = propose_regions(cfg, rollout)
                    scores = ask.about(judge, rollout, regions)
                batches.append(Batch(rollout, regions, scores, noise(cfg, rollout, step), None))
        with clock("train"):
            if objective.needs_old:
                with engine.gathered("old"):
                    old = [velocity(model.module, model, b).detach() for b in batches]
            else:
                old = [None] * len(batches)
            if with_reference:
                with engine.gathered("reference"):
                    reference = [velocity(model.module, model, b).detach() for b in batches]
            else:
                reference = [None] * len(batches)
            weights = [reward_weights(cfg, objective.weights, b) for b in batches]
            masks = [token_mask(b) for b in batches]
            count = float(engine.all_reduce(sum_of(masks).to(engine.device)))
            total = torch.zeros((), dtype=torch.float64, device=engine.device)
            for batch, weight, mask, v_old, v_ref in zip(batches, weights, masks, old, reference, strict=True):
                v = velocity(engine, model, batch)
                loss = token_losses(cfg, v, batch, weight, mask, v_old, v_ref).sum()
                engine.backward(loss, max(count, 1.0), micro_batches=len(batches))
                total += loss.detach().double()
            grad_norm = engine.step()
            engine.update_weights("old", cfg.train.old_decay)
            engine.update_weights("ema", min(cfg.train.ema_decay, (1 + step) / (10 + step)))

        record = measure(engine, batches, total, count, clock, stop.asked)
        record |= {"step": step, "grad_norm": grad_norm}
        monitor.step({key: value for key, value in record.items() if key != "stop"})
        refuse_broken_judge(cfg, record)
        bad_steps = bad_steps + 1 if grad_norm != grad_norm else 0
        if bad_steps >= MAX_BAD_STEPS:
            raise UserError(
                f"the gradient was not finite for {bad_steps} steps in a row, the last being {step}: nothing is "
                f"learnt any more. Lower train.lr or use train.precision=fp32; the last checkpoint is untouched."
            )
        last = step + 1 == cfg.train.steps
        stopping = record["stop"] > 0 and not last
        if cfg.log.tensorboard and (last or step % cfg.log.image_every == 0):
            show_pictures(cfg, engine, model, judge, ask, sampling, monitor, step)
        if last or stopping or (step + 1) % cfg.train.save_every == 0:
            monitor.sync()
            engine.save(run_dir / run_folder.CHECKPOINTS, step + 1, {}, keep=cfg.train.keep_checkpoints)
        if stopping:
            monitor.message(f"stopped after step {step + 1}, as asked; the same command goes on from there.")
            monitor.close()
            return STOPPED

    export(cfg, engine, model, run_dir)
    monitor.message(f"trained model: {run_dir / run_folder.EXPORT}")
    monitor.close()
    return 0


# ---- the pieces of a step


def generate(cfg: Config, model: Any, prompts: Sequence[Prompt], sampling: Sampling, step: int) -> Rollout:
    """K pictures of each prompt; see ``roll_out``."""
    return roll_out(
        model,
        prompts,
        cfg.rollout.images_per_prompt,
        model.grid_of(*cfg.rollout.image_size),
        model.config.token_channels,
        sampling,
        cfg.run.seed,
        step,
    )


def propose_regions(cfg: Config, rollout: Rollout) -> Regions:
    """Boxes over the pictures; none where local rewards are switched off."""
    r = cfg.regions
    if r.kind == "none":
        return no_regions()
    return propose(
        rollout.images_NCHW,
        r.kind,
        max_count=r.max_count,
        min_area=r.min_area,
        pad=r.pad,
        threshold=r.threshold,
        grid_side=r.grid_side,
    )


class Questions:
    """What the judge is asked, loaded once."""

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.whole: Template = load_template(find_path(cfg.judge.global_template))
        self.crop: Template = load_template(find_path(cfg.judge.local_template))

    def about(self, judge: Judge, rollout: Rollout, regions: Regions) -> Scores:
        """Global and local scores of a rollout."""
        return judge_rollout(
            judge,
            rollout,
            regions,
            self.whole,
            self.crop,
            self.cfg.judge.answers,
            crop_size=self.cfg.judge.crop_size,
            batch=self.cfg.judge.batch,
            surplus_penalty=self.cfg.reward.surplus_penalty,
            min_mass=self.cfg.judge.min_mass,
        )


def noise(cfg: Config, rollout: Rollout, step: int) -> Noised:
    """The noised copies that this step trains on."""
    t = cfg.train
    return add_noise(
        rollout,
        t.timesteps_per_image,
        t.timestep_distribution,
        t.timestep_shift,
        t.caption_dropout,
        cfg.run.seed,
        step,
    )


def velocity(forward: Any, model: Any, batch: Batch) -> Tensor:
    """Velocities [N, M, T, C] of a micro-batch's noised copies, through the engine or a gathered module."""
    groups = batch.rollout.group_N.tolist()
    ids = model.prompt_ids([batch.rollout.prompts[g] for g in groups])
    length_N = torch.tensor([len(i) for i in ids], device=ids[0].device)
    ids_NL = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    n = batch.noised
    grid_2 = torch.tensor(batch.rollout.grid)
    return forward("denoise", ids_NL, length_N, n.dropped_NM, n.x_NMTC, n.t_NM, grid_2)


def reward_weights(cfg: Config, kind: str, batch: Batch) -> Tensor | None:
    """The map of weights over latent tokens [N, h, w]: signed, positive (the paper's), or none."""
    scores, regions, rollout = batch.scores, batch.regions, batch.rollout
    if kind == "none":
        return None
    if kind == "positive":
        height, width = cfg.rollout.image_size
        return paper_map(
            regions.owner_R, regions.boxes_R4, scores.local_R, scores.global_N, (height, width), rollout.grid
        )[1]
    return dense_weights(
        scores.global_N,
        scores.local_R,
        regions.owner_R,
        regions.boxes_R4,
        rollout.group_N,
        rollout.grid,
        missing_N=scores.missing_N,
        global_weight=cfg.reward.global_weight,
        local_weight=cfg.reward.local_weight,
        missing_penalty=cfg.reward.missing_penalty,
        combine=cfg.reward.combine,
    )


def token_mask(batch: Batch) -> Tensor:
    """bool [N, M, T]: pictures whose global score failed are left out of the loss."""
    n, m, t, _ = batch.noised.x_NMTC.shape
    return torch.isfinite(batch.scores.global_N)[:, None, None].expand(n, m, t)


def token_losses(
    cfg: Config,
    velocity_NMTC: Tensor,
    batch: Batch,
    weights_Nhw: Tensor | None,
    mask_NMT: Tensor,
    old_NMTC: Tensor | None,
    reference_NMTC: Tensor | None,
) -> Tensor:
    """Losses [N * M, T] of the recipe's objective, 0 where masked."""
    n, m, t, _ = velocity_NMTC.shape
    device = velocity_NMTC.device

    def flat(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(device).reshape(n * m, t, -1)

    weights_BT = None
    if weights_Nhw is not None:
        weights_BT = weights_Nhw.reshape(n, 1, t).expand(n, m, t).reshape(n * m, t).to(device)
    options = {"nft": {"beta": cfg.objective.beta}, "signed": {"bound": cfg.objective.bound}}
    options["group"] = {"clip": cfg.objective.clip}
    return compute_losses(
        cfg.objective.name,
        velocity_NMTC.reshape(n * m, t, -1),
        batch.noised.target_NMTC.to(device).reshape(n * m, t, -1),
        weights_BT=weights_BT,
        old_velocity_BTC=flat(old_NMTC),
        reference_velocity_BTC=flat(reference_NMTC),
        constraint=cfg.objective.constraint,
        constraint_weight=cfg.objective.constraint_weight,
        mask_BT=mask_NMT.reshape(n * m, t).to(device),
        options=options.get(cfg.objective.name, {}),
    )


# ---- around the step


def create_engine(cfg: Config, model: Any) -> Engine:
    """The DeepSpeed engine over the model's module, with what ``model.trains`` names trainable."""
    t = cfg.train
    return Engine.create(
        model.module,
        set(model.trainable(cfg.model.trains)),
        read_ds_config(find_path(cfg.deepspeed.config)),
        lr=t.lr,
        betas=t.betas,
        eps=t.eps,
        weight_decay=t.weight_decay,
        max_grad_norm=t.max_grad_norm,
        warmup_steps=t.warmup_steps,
        precision=t.precision,
        seed=cfg.run.seed,
        leaf_modules=model.leaf_modules(),
    )


def choose_judge(cfg: Config, model: Any) -> Any:
    """The live model where training provably leaves understanding untouched, else a frozen copy."""
    unchanged = model.judge_unchanged_by(cfg.model.trains)
    if cfg.model.judge == "shared" and not unchanged:
        raise UserError(
            f"model.judge=shared, but model.trains={cfg.model.trains} changes the understanding half: the judge "
            f"would drift with what it judges. Use model.judge=frozen_copy."
        )
    if cfg.model.judge == "frozen_copy" or not unchanged:
        return load_model(find_path(cfg.model.path), cfg.model.kind)
    return model


def sampling_of(cfg: Config) -> Sampling:
    """The sampler that rollouts use."""
    r = cfg.rollout
    return Sampling(
        num_timesteps=r.num_timesteps,
        timestep_shift=r.timestep_shift,
        text_scale=r.text_scale,
        interval=r.interval,
        renorm=r.renorm,
        renorm_min=r.renorm_min,
    )


def micro_batches(prompts: Sequence[Prompt], size: int) -> Iterator[Sequence[Prompt]]:
    """Consecutive groups of ``size`` prompts."""
    for start in range(0, len(prompts), size):
        yield prompts[start : start + size]


def sum_of(masks: Sequence[Tensor]) -> Tensor:
    """How many tokens count, as a float64 scalar."""
    return torch.stack([mask.double().sum() for mask in masks]).sum()


class Clock:
    """Seconds of a step by phase."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("data", "rollout", "judge", "train"), 0.0)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[phase] += time.perf_counter() - begin


class StopSignal:
    """Remembers SIGTERM, so that all ranks can finish the step, save, and stop together."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def measure(
    engine: Engine, batches: Sequence[Batch], loss: Tensor, count: float, clock: Clock, stop: bool
) -> dict[str, float]:
    """A step's figures over all ranks: sums by one all-reduce, phases as the slowest rank's seconds."""
    zero_share = [reward_std_zero_share(b.scores.global_N, b.rollout.group_N) for b in batches]
    groups = [len(b.rollout.prompts) for b in batches]

    def parts(x: Tensor) -> list[float]:
        finite = x[torch.isfinite(x)].double()
        return [float(finite.sum()), float(finite.numel())]

    globals_N = torch.cat([b.scores.global_N for b in batches])
    locals_R = torch.cat([b.scores.local_R for b in batches])
    failed = sum(int((s == Status.FAILED).sum()) for b in batches for s in (b.scores.global_status_N, b.scores.local_status_R))
    latents = torch.cat([b.rollout.targets_NTC for b in batches]).double()
    sums = [
        float(loss),
        *parts(globals_N),
        *parts(locals_R),
        sum(z * g for z, g in zip(zero_share, groups, strict=True)),
        float(sum(groups)),
        float(failed),
        float(globals_N.numel() + locals_R.numel()),
        float(latents.sum()),
        float(latents.square().sum()),
        float(latents.numel()),
        float(stop),
    ]
    s = engine.all_reduce(torch.tensor(sums, dtype=torch.float64, device=engine.device)).tolist()
    phases = torch.tensor(list(clock.seconds.values()), dtype=torch.float64, device=engine.device)
    slowest = engine.all_reduce(phases, "max").tolist()
    mean = s[9] / s[11]
    record = {
        "loss": s[0] / max(count, 1.0),
        "reward_global": s[1] / s[2] if s[2] else float("nan"),
        "reward_local": s[3] / s[4] if s[4] else float("nan"),
        "reward_std_zero_share": s[5] / s[6],
        "parse_failures": int(s[7]),
        "judged": int(s[8]),
        "regions": int(s[8]) - int(s[6]) * (globals_N.numel() // max(1, sum(groups))),
        "latent_std": max(0.0, s[10] / s[11] - mean**2) ** 0.5,
        "stop": s[12],
    }
    return record | {f"time_{name}": value for name, value in zip(clock.seconds, slowest, strict=True)}


def refuse_broken_judge(cfg: Config, record: dict[str, float]) -> None:
    """Raises UserError, on every rank alike, when too many of the judge's answers were unusable."""
    share = record["parse_failures"] / max(1, record["judged"])
    if share > cfg.judge.max_failed_share:
        raise UserError(
            f"step {record['step']}: {share:.0%} of the judge's answers could not be used, more than "
            f"judge.max_failed_share={cfg.judge.max_failed_share:.0%}. Try its questions with `srum-ds ask`: neither "
            f"of judge.answers={list(cfg.judge.answers)} gets a probability of judge.min_mass."
        )


def show_pictures(
    cfg: Config,
    engine: Engine,
    model: Any,
    judge: Any,
    ask: Questions,
    sampling: Sampling,
    monitor: Monitor,
    step: int,
) -> None:
    """Draws the fixed prompts with the averaged weights, boxes coloured by their scores."""
    reader = PromptReader(find_path(cfg.data.shards), "validation")
    fixed = [reader[i] for i in range(min(SHOWN_PROMPTS, len(reader)))]
    with engine.gathered("ema"):
        if engine.rank > 0:
            return
        grid = model.grid_of(*cfg.rollout.image_size)
        rollout = roll_out(model, fixed, 1, grid, model.config.token_channels, sampling, cfg.run.seed, 0)
        regions = propose_regions(cfg, rollout)
        scores = ask.about(judge, rollout, regions)
    boxes, local = boxes_by_picture(regions, scores.local_R, len(fixed))
    captions = [f"{p.text}  ({s:+.2f})" for p, s in zip(fixed, scores.global_N.tolist(), strict=True)]
    monitor.images("fixed", rollout.images_NCHW, boxes, local, captions, step)


def export(cfg: Config, engine: Engine, model: Any, run_dir: Path) -> None:
    """Writes the trained model as a checkpoint folder of its design, one gathered tensor at a time."""
    weights = "ema" if cfg.eval.weights == "ema" else "live"
    partial = run_dir / (run_folder.EXPORT + ".partial")
    names = [name for name, p in model.module.named_parameters() if p.requires_grad]
    tensors = engine.consolidate(weights)
    if engine.rank == 0:
        model.export(partial, names, ((n, t) for n, t in tensors if t is not None), torch.float32)
        run_folder.publish_export(partial, run_dir)
    else:
        for _ in tensors:
            pass
    engine.barrier()


def announce(monitor: Monitor, cfg: Config, engine: Engine, shared: bool, start: int) -> None:
    """What the run is, in three lines."""
    where = f"goes on after step {start}" if start else "starts"
    judge = "the live model (its understanding half does not train)" if shared else "a frozen copy"
    monitor.message(f"{cfg.run.dir} {where}: {cfg.train.steps} steps on {engine.world_size} rank(s), {cfg.train.precision}")
    monitor.message(f"trains {cfg.model.trains} with objective {cfg.objective.name}; the judge is {judge}")
    monitor.message(f"sharded: {engine.sharded_share():.1%} of the parameters")


def main(arguments: Sequence[str]) -> int:
    """One rank of a run: RECIPE key=value ...; returns the exit status."""
    import os

    recipe, overrides = split_arguments(arguments)
    cfg = load_config(recipe, overrides)
    check_world(cfg, int(os.environ.get("WORLD_SIZE", "1")))
    run_dir = Path(cfg.run.dir)
    first = int(os.environ.get("RANK", "0")) == 0
    with ExitStack() as held:
        if first:
            held.enter_context(run_folder.locked(run_dir))
            run_folder.prepare(run_dir, cfg)
        if run_folder.is_finished(run_dir):
            if first:
                show_result(run_dir, Console())
            return 0
        return train(cfg, run_dir)
