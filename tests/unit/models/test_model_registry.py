"""Opening a folder: which design it is, and the settings of its sampler."""

from __future__ import annotations

from pathlib import Path

import pytest

from srum_ds.common.errors import UserError
from srum_ds.models import family_of, make_sampling
from srum_ds.models.flow import FlowSampling
from tests.support.paths import MODEL


def test_a_folder_says_which_design_it_is() -> None:
    family = family_of(MODEL)
    assert family.kind == "bagel" and "generation" in family.modes
    assert family_of(MODEL, "bagel") is family


def test_a_folder_of_no_known_design_says_what_was_found_and_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match=r"of no known design: it holds model_index\.json.*bagel: .*llm_config\.json"):
        family_of(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(UserError, match=r'its model_index\.json says _class_name "FluxPipeline"\. Known are'):
        family_of(tmp_path)
    (tmp_path / "model_index.json").unlink()
    (tmp_path / "config.json").write_text('{"architectures": ["LlavaForCausalLM"], "model_type": "llava"}')
    with pytest.raises(UserError, match=r'says architectures \["LlavaForCausalLM"\] and model_type "llava"'):
        family_of(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        family_of(tmp_path / "none")


def test_a_samplers_settings_are_its_familys_and_checked() -> None:
    family = family_of(MODEL)
    sampling = make_sampling(family, {"num_timesteps": 3, "interval": (0.0, 1.0)}, "rollout.{}")
    assert sampling == FlowSampling(num_timesteps=3, interval=(0.0, 1.0))
    with pytest.raises(UserError, match=r"rollout\.temperature: the sampler of bagel has no such setting"):
        make_sampling(family, {"temperature": 1.0}, "rollout.{}")
    with pytest.raises(UserError, match=r"did you mean rollout\.renorm"):
        make_sampling(family, {"renrom": "global"}, "rollout.{}")
    for name, value, said in (
        ("num_timesteps", 1, "at least 2"),
        ("text_scale", -1.0, "from 0"),
        ("timestep_shift", 0.0, "above 0"),
        ("interval", (0.5, 0.2), "first <= second"),
        ("renorm", "all", "global, channel"),
        ("renorm_min", 2.0, r"in \[0, 1\]"),
        ("renorm_scope", "world", "sample or batch"),
    ):
        with pytest.raises(UserError, match=said):
            make_sampling(family, {name: value}, "rollout.{}")


def test_a_runs_folder_is_told_from_its_models(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    with pytest.raises(UserError, match=r"is a run's folder: its trained model is .*/export; name that one"):
        family_of(tmp_path)
