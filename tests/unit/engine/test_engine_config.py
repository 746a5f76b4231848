"""DeepSpeed's configuration files: which are accepted, and what is said of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from srum_ds.common.errors import UserError
from srum_ds.engine.config import frozen_config, read_ds_config
from tests.support.paths import ROOT


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda path: path.name)
def test_shipped_configs_are_accepted(path: Path) -> None:
    config = read_ds_config(path)["zero_optimization"]
    assert config["stage"] == (2 if path.name == "zero2.json" else 3)
    if config["stage"] == 3:
        assert config["stage3_param_persistence_threshold"] == 0


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object"),
        ('{"zero_optimization": {"stage": 0}}', "it must be 1, 2 or 3"),
        ("{}", "it must be 1, 2 or 3"),
        ('{"zero_optimization": true}', "zero_optimization must be an object"),
        (
            '{"zero_optimization": {"stage": 3}, "fp16": {}}',
            "remove 'fp16'; the recipe sets it .train.precision",
        ),
        ('{"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}', "nvme is not supported"),
    ],
)
def test_bad_config_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(UserError, match=f"deepspeed.config: .*{message}"):
        read_ds_config(tmp_path / "ds.json")


def test_absent_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read .*absent.json"):
        read_ds_config(tmp_path / "absent.json")


def test_a_frozen_engines_config_makes_no_optimizer() -> None:
    ours = read_ds_config(ROOT / "ds_configs/cpu.json")
    ours["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    config = frozen_config(ours, "bf16")
    assert not {"optimizer", "scheduler"} & config.keys()
    assert "offload_optimizer" not in config["zero_optimization"]
    assert config["bf16"]["enabled"]
    assert "offload_optimizer" in ours["zero_optimization"], "the given config is not changed"


@pytest.mark.parametrize("key, value", [("zero_hpz_partition_size", 2), ("zero_quantized_weights", True)])
def test_second_copies_of_shards_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, key: value}}))
    with pytest.raises(UserError, match=f"remove zero_optimization.{key}"):
        read_ds_config(path)
