"""DeepSpeed's configuration files: which are accepted, and what is said of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from srum_ds.common.errors import UserError
from srum_ds.config.deepspeed_json import OFFLOADS
from srum_ds.engine.base import Settings
from srum_ds.engine.config import frozen_config, full_config, read_ds_config
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
        ('{"zero_optimization": {"stage": 3, "offload_param": "cpu"}}', "offload_param is 'cpu'; it must be an object"),
        ('{"zero_optimization": {"stage": 3, "zero_quantized_weights": "yes"}}', "'yes', expected a number"),
        ('{"zero_optimization": {"stage": true}}', "it must be 1, 2 or 3"),
        ('{"zero_optimization": null}', "it must be 1, 2 or 3"),
    ],
)
def test_bad_config_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(UserError, match=f"deepspeed.config: .*{message}"):
        read_ds_config(tmp_path / "ds.json")


@pytest.mark.parametrize("offload", [None, {}, {"device": "none"}, {"device": None, "pin_memory": True}])
def test_what_says_nothing_counts_as_absent(tmp_path: Path, offload: Any) -> None:
    zero = {"stage": 3, "offload_param": offload, "offload_optimizer": offload, "zero_hpz_partition_size": None}
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": zero, "optimizer": None}))
    config = read_ds_config(tmp_path / "ds.json")
    assert config == {"zero_optimization": {"stage": 3}}
    settings = Settings(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, max_grad_norm=1.0, warmup_steps=0)
    full = full_config({"zero_optimization": zero}, settings, "fp32")
    assert full["optimizer"]["params"]["torch_adam"], "nothing is offloaded, so torch's AdamW steps"


def test_masters_in_the_hosts_memory_have_deepspeeds_own_step_where_there_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offload = read_ds_config(ROOT / "ds_configs/zero3_offload.json")
    assert {offload["zero_optimization"][part]["device"] for part in OFFLOADS} == {"cpu"}
    settings = Settings(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, max_grad_norm=1.0, warmup_steps=0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert full_config(offload, settings, "fp32")["optimizer"]["params"]["torch_adam"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert "torch_adam" not in full_config(offload, settings, "bf16")["optimizer"]["params"]


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
