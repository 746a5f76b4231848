"""The whole tree of settings: ``Config``, whose sections stand in ``schema``. What takes a recipe takes one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from srum_ds.config.limits import LimitsConfig
from srum_ds.config.schema import (
    DataConfig,
    DeepSpeedConfig,
    EvalConfig,
    JudgeConfig,
    KernelsConfig,
    LogConfig,
    LoraConfig,
    ModelConfig,
    ObjectiveConfig,
    RegionsConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    TrainConfig,
    WatchConfig,
)


@dataclass(frozen=True)
class Config:
    """The whole tree."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    regions: RegionsConfig = field(default_factory=RegionsConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    log: LogConfig = field(default_factory=LogConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    # Key -> (as written, as resolved) of what reads the environment and of paths. No setting: it lets saved copies
    # say `${oc.env:NAME}` again rather than the secret, and a path as it was given.
    expressions: dict[str, tuple[str, Any]] = field(
        default_factory=dict,
        repr=False,
        compare=False,
        metadata={"omegaconf_ignore": True},
    )

    def reads_environment(self, key: str) -> bool:
        """Whether the setting ``section.name`` may hold a secret: as written it is an expression."""
        return "${" in repr(self.written(key))

    def written(self, key: str) -> Any:
        """The setting ``section.name`` as it was written: a path as given, an expression with its `${...}`."""
        section, name = key.split(".")
        value = getattr(getattr(self, section), name)
        written, resolved = self.expressions.get(key, (value, value))
        return written if resolved == value else value
