"""Which source a run's images come from, by ``train.mode``; the job calls it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from srum_ds.common import ranks
from srum_ds.common.errors import UserError
from srum_ds.config import Config, save_config
from srum_ds.engine import Engine
from srum_ds.models.protocol import UnifiedModel
from srum_ds.monitoring import run_folder
from srum_ds.prompts.prompt_set import prompt_folder
from srum_ds.prompts.reader import PromptReader
from srum_ds.rollouts.ahead import AheadSource
from srum_ds.rollouts.collect import Collector
from srum_ds.rollouts.header import check_rollouts, rollout_header
from srum_ds.rollouts.shards import RolloutReader, RolloutWriter
from srum_ds.rollouts.sources import OfflineSource, OnlineSource, RecordingSource, RoundSource, Source, round_length
from srum_ds.types import Prompt

SHOWN_PROBLEMS = 20


def open_data(cfg: Config) -> PromptReader | RolloutReader:
    """The prompts to draw, or offline the rollouts to read. UserError where the folder is not whole."""
    if cfg.train.mode == "offline":
        return RolloutReader(Path(cfg.data.rollouts or ""))
    return PromptReader(prompt_folder(cfg), cfg.data.split)


def check_prompts(model: UnifiedModel, readers: Sequence[PromptReader]) -> None:
    """Reads every prompt that a run could come to and has the model look at it; all ranks call it, the first looks.

    So that a run stops before its first step and not in its thousandth. Raises UserError on all ranks, naming every
    prompt that is empty or too long for the model, and for a shard that is not what its index says.
    """

    def look() -> None:
        problems: list[str] = []
        for reader in readers:
            prompts = list(reader)
            reader.close()
            try:
                model.check_prompts(prompts)
            except UserError:
                problems += [f"{reader.folder}, {reader.split}: {text}" for text in _refusals(model, prompts)]
        if problems:
            more = [f"and {len(problems) - SHOWN_PROBLEMS} more"] if len(problems) > SHOWN_PROBLEMS else []
            raise UserError("\n".join([*problems[:SHOWN_PROBLEMS], *more]))

    ranks.run_on_all_ranks(look, rank_zero=True)


def _refusals(model: UnifiedModel, prompts: Sequence[Prompt]) -> list[str]:
    """What the model says against each prompt that it does not take."""
    found = []
    for prompt in prompts:
        try:
            model.check_prompts([prompt])
        except UserError as error:
            found.append(str(error))
    return found


def choose_source(
    collector: Collector,
    engine: Engine,
    run_dir: Path,
    data: PromptReader | RolloutReader,
    start: int,
    stop_asked: Callable[[], bool],
    tell: Callable[[str], None],
) -> Source:
    """The source that ``train.mode`` names, for a run that goes on at step ``start``; all ranks call it.

    stop_asked: whether this rank was asked to stop. tell: shows a line to the user.
    Raises UserError for rollouts that do not fit the settings.
    """
    cfg = collector.cfg
    if isinstance(data, RolloutReader):
        reader = data
        other = ranks.run_on_all_ranks(lambda: check_rollouts(collector, reader), rank_zero=True)[0]
        tell(f"images and scores are those of {reader.folder}")
        for difference in other:
            tell(f"there, unlike in these settings: {difference}")
        return OfflineSource(cfg, engine, reader)
    check_pool(collector)
    online = OnlineSource(collector, engine, data)
    if cfg.train.mode == "online" and not cfg.rollout.keep:
        return online
    # What later steps drew came from weights that this process will compute anew.
    kept = start + 1 if cfg.train.mode == "ahead" else start
    if cfg.train.mode == "rounds":
        kept = (start // round_length(cfg) + 1) * round_length(cfg)
    folder = run_dir / run_folder.ROLLOUTS
    header = ranks.run_on_all_ranks(lambda: rollout_header(collector), rank_zero=True)[0]
    writer = RolloutWriter(folder, header, range(kept))
    ranks.run_on_all_ranks(lambda: save_config(cfg, folder / run_folder.CONFIG), rank_zero=True)
    if cfg.train.mode == "online":
        return RecordingSource(online, writer)
    if cfg.train.mode == "ahead":
        return AheadSource(online, writer)
    return RoundSource(online, writer, start, stop_asked, tell)


def check_pool(collector: Collector) -> None:
    """UserError where ``rollout.pool`` is set, and the judge is a copy or the sampler has no number of steps."""
    r = collector.cfg.rollout
    if r.pool and collector.host.engine is not None:
        raise UserError(
            f"rollout.pool={r.pool}: its images are judged by the model that draws, but here a frozen copy is the "
            f"judge (model.trains={collector.cfg.model.trains}, model.judge={collector.cfg.model.judge}): set "
            "rollout.pool=0."
        )
    if r.pool and not hasattr(collector.sampling, "num_timesteps"):
        raise UserError(
            f"rollout.pool={r.pool}: the sampler of this design has no num_timesteps that could be lowered for a pool: "
            "set rollout.pool=0."
        )
