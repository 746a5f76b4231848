"""Who judges a run's images: the live model, or a frozen copy that an engine of its own holds."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from srum_ds.common.errors import UserError
from srum_ds.config import Config
from srum_ds.engine import Engine, FrozenEngine, compute_device, read_ds_config, shard_loader
from srum_ds.models import load_model
from srum_ds.models.protocol import UnifiedModel


@dataclass(frozen=True)
class JudgeHost:
    """A judge and its engine; without one, the judge is the live model, which the training engine (``live``) holds."""

    judge: UnifiedModel
    engine: FrozenEngine | None = None
    live: Engine | None = None

    def take(self, gathered: ExitStack) -> UnifiedModel:
        """The judge, ready to be asked, where ``gathered`` holds the live model whole.

        A frozen copy takes the live model's place there: two whole models are never held at once. The
        live model judges untrained (with LoRA: LoRA off) until ``gathered`` is left; where it was drawn with layer by
        layer, what does not train is gathered first, which is all that it judges with. All ranks call it.
        """
        if self.engine is None:
            if self.live is not None and not self.live.holds_whole:
                gathered.close()
                gathered.enter_context(self.live.gathered_frozen())
            gathered.enter_context(self.judge.judging())
        else:
            gathered.close()
            gathered.enter_context(self.engine.gathered())
        return self.judge


def choose_judge(cfg: Config, model: UnifiedModel, live: Engine | None = None) -> JudgeHost:
    """The live model where it judges as it did untrained (with LoRA: LoRA off), else a frozen copy.

    The copy is the understanding half of ``model.path`` as it was before training, under ZeRO-3 loaded straight into
    shards of its own. live: the engine that holds ``model``. All ranks call it. UserError where the recipe shares a
    judge that would change.
    """
    unchanged = model.judge_unchanged_by(cfg.model.trains)
    if cfg.model.judge == "shared" and not unchanged:
        raise UserError(
            f"model.judge=shared, but model.trains={cfg.model.trains} changes the understanding half: the judge "
            f"would drift with what it judges. Use model.judge=frozen_copy (or auto), or another model.trains."
        )
    if cfg.model.judge != "frozen_copy" and unchanged:
        return JudgeHost(model, live=live)
    ds_config = read_ds_config(Path(cfg.deepspeed.config))
    materialise = shard_loader(ds_config, cfg.train.precision)
    device = compute_device()
    copy = load_model(cfg.model.path, cfg.model.kind, device=device, materialise=materialise, only_judges=True)
    return JudgeHost(copy, FrozenEngine(copy.module, ds_config, cfg.train.precision))
