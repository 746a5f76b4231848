"""Every name of code that a setting may take: one line for each built-in extension.

Adding an objective, a readout, a region proposer, a model, a checker, a benchmark or a tracker is one file and one
line here. The lines are data: nothing is imported before a recipe asks for it. What an entry must be is said by the
class or protocol named above its table; CONTRIBUTING.md shows one of each.
"""

from __future__ import annotations

from typing import Any

from srum_ds.common.registry import Registry

# An objectives.registry.Objective.
OBJECTIVES: Registry[Any] = Registry(
    "objective.name",
    "objective",
    "srum_ds.objectives",
    {
        "nft": "srum_ds.objectives.losses:NFT",
        "weighted": "srum_ds.objectives.losses:WEIGHTED",
        "sft": "srum_ds.objectives.losses:SFT",
        "signed": "srum_ds.objectives.losses:SIGNED",
        "group": "srum_ds.objectives.losses:GROUP",
        "awm": "srum_ds.objectives.losses:AWM",
        "dpo": "srum_ds.objectives.losses:DPO",
    },
)

# From the configuration to a rewards.judge.readouts.Readout.
READOUTS: Registry[Any] = Registry(
    "judge.readout",
    "readout",
    "srum_ds.readouts",
    {
        "logprob": "srum_ds.rewards.judge.readouts:logprob_readout",
        "likelihood": "srum_ds.rewards.judge.readouts:likelihood_readout",
        "generate": "srum_ds.rewards.judge.readouts:generate_readout",
    },
)

# From the configuration to a rewards.regions.boxes.Proposer.
REGION_PROPOSERS: Registry[Any] = Registry(
    "regions.kind",
    "region proposer",
    "srum_ds.region_proposers",
    {
        "components": "srum_ds.rewards.regions.components:components_proposer",
        "sam": "srum_ds.rewards.regions.sam:sam_proposer",
        "ground": "srum_ds.rewards.regions.ground:ground_proposer",
        "grid": "srum_ds.rewards.regions.components:grid_proposer",
        "none": "srum_ds.rewards.regions.boxes:no_proposer",
    },
)

# A models.protocol.ModelFamily.
MODELS: Registry[Any] = Registry(
    "model.kind",
    "design of a model",
    "srum_ds.models",
    {
        "bagel": "srum_ds.models.bagel:FAMILY",
        "janus": "srum_ds.models.janus:FAMILY",
        "showo": "srum_ds.models.showo:FAMILY",
        "blip3o": "srum_ds.models.blip3o:FAMILY",
        "vlm_dit": "srum_ds.models.vlm_dit:FAMILY",
    },
    parts=("kind", "modes", "sampling_type", "matches", "load", "costs", "refuses_size", "trained"),
    expected="a srum_ds.models.protocol.ModelFamily; see docs/own_code.md",
)

# (prompts, images) -> whether each image is exact: evaluation.checkers.Checker.
CHECKERS: Registry[Any] = Registry(
    "watch.checker",
    "checker",
    "srum_ds.checkers",
    {
        "shapes": "srum_ds.worlds.shapes.benchmark:exact",
    },
)

# An evaluation.benchmarks.Benchmark, or an object with the methods of evaluation.benchmarks.Checks.
BENCHMARKS: Registry[Any] = Registry(
    "eval.benchmark",
    "benchmark",
    "srum_ds.benchmarks",
    {
        "geneval": "srum_ds.evaluation.benchmarks.geneval:BENCHMARK",
        "geneval2": "srum_ds.evaluation.benchmarks.geneval2:BENCHMARK",
        "dpg": "srum_ds.evaluation.benchmarks.dpg:BENCHMARK",
        "unigenbench": "srum_ds.evaluation.benchmarks.unigenbench:BENCHMARK",
        "shapes": "srum_ds.worlds.shapes.benchmark:BENCHMARK",
        "compbench": "srum_ds.evaluation.benchmarks.compbench:BENCHMARK",
        "own": "srum_ds.evaluation.benchmarks.own:BENCHMARK",
        "compbench_yes": "srum_ds.evaluation.benchmarks.compbench_yes:BENCHMARK",
        "reasonbench": "srum_ds.evaluation.benchmarks.reasonbench:BENCHMARK",
        "wise": "srum_ds.evaluation.benchmarks.wise:WISE",
        "wise_verified": "srum_ds.evaluation.benchmarks.wise:WISE_VERIFIED",
    },
)

# From settings (judges.protocol.JudgeSettings) to a judges.PictureJudge.
JUDGES: Registry[Any] = Registry(
    "--judge",
    "judge",
    "srum_ds.judges",
    {
        "http": "srum_ds.judges.http:http_judge",
        "transformers": "srum_ds.judges.local:local_judge",
        "self": "srum_ds.judges.own:own_judge",
        "replay": "srum_ds.judges.replay:replay_judge",
    },
)

# From a monitoring.trackers.TrackerRun to a monitoring.trackers.Tracker.
TRACKERS: Registry[Any] = Registry(
    "log.trackers",
    "tracker",
    "srum_ds.trackers",
    {
        "wandb": "srum_ds.monitoring.trackers.to_wandb:WandbTracker",
        "mlflow": "srum_ds.monitoring.trackers.to_mlflow:MlflowTracker",
        "trackio": "srum_ds.monitoring.trackers.to_trackio:TrackioTracker",
    },
)
