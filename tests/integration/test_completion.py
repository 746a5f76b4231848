"""What bash completes: its own completion function, fed with lines as readline hands them over."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from srum_ds.commands.completion_scripts import values_of
from srum_ds.commands.main import main
from srum_ds.config import known_keys
from tests.support.paths import ROOT

ASKED = {
    "srum-ds ex": {"export"},
    "srum-ds config ex": {"explain"},
    "srum-ds train bagel_": {"bagel_1024", "bagel_lora", "bagel_paper"},
    "srum-ds train tiny wat": {"watch."},
    "srum-ds train tiny train.sa": {"train.save_every=", "train.save_in_background="},
    "srum-ds train tiny train.schedule=": {"constant", "cosine"},
    "srum-ds train tiny train.steps=4 train.mode=o": {"online", "offline"},
    "srum-ds config show tiny log.tensorboard=f": {"false"},
    "srum-ds train tiny objective.name=s": {"sft", "signed"},
    "srum-ds train tiny deepspeed.config=ds_configs/zero3_l": {"ds_configs/zero3_large.json"},
    "srum-ds train launch/recipes/ti": {"launch/recipes/tiny.yaml", "launch/recipes/tiny_janus.yaml"},
    "srum-ds train tiny --dry": {"--dry-run"},
    "srum-ds export runs/a --weights ": {"live", "ema", "old"},
    "srum-ds config explain rollout.pool": {"rollout.pool", "rollout.pool_timesteps"},
    "srum-ds eval runs/a eval.sp": {"eval.split="},
}
# Readline cuts a line at blanks and at equals signs.
FEED = r"""
source "$1"
while IFS= read -r COMP_LINE; do
  COMP_POINT=${#COMP_LINE}
  COMP_WORDS=(${COMP_LINE//=/ = })
  [[ $COMP_LINE == *[\ =] ]] && COMP_WORDS+=("")
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
  COMPREPLY=()
  _srum_ds_all
  echo "${COMPREPLY[*]}"
done
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_recipes_settings_and_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", "bash"]) == 0
    (tmp_path / "srum-ds").write_text(capsys.readouterr().out)
    asked = subprocess.run(
        ["bash", "-c", FEED, "bash", str(tmp_path / "srum-ds")],
        input="".join(f"{line}\n" for line in ASKED),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert asked.returncode == 0 and asked.stderr == ""
    found = dict(zip(ASKED, (set(line.split()) for line in asked.stdout.split("\n")), strict=False))
    assert found == ASKED


def test_scripts_name_every_setting_and_the_values_of_those_that_have_some(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for shell in ("bash", "zsh"):
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert all(key in script for key in known_keys())
        assert "    train.schedule) echo 'constant cosine' ;;" in script
    assert main(["completion", "fish"]) == 2
    assert values_of("eval.renorm") == ["global", "channel", "text_channel", "null"]
    assert values_of("kernels.fused") == ["auto", "on", "off"] and values_of("train.steps") == []
