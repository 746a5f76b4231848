"""From a text file to a trained and scored run, by the very commands that README shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT


def test_what_readme_shows_leads_from_a_text_file_to_a_report(tmp_path: Path) -> None:
    shown = re.search(r"```\n(printf .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    commands = shown[1].strip().splitlines()
    assert len(commands) <= 4
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in commands:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=variables, capture_output=True, text=True, executable="/bin/bash"
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    run = tmp_path / "runs/own"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
    for side in ("base", "trained"):
        results = json.loads((run / f"eval/own/{side}/results.json").read_text())
        assert results["judge"]["under_test"] is True
    assert "<html" in (run / "eval/own/report.html").read_text()
    # Of five prompts four train, and the one that is held out is drawn.
    held_out = [json.loads(line) for line in (run / "eval/own/trained/prompts.jsonl").read_text().splitlines()]
    assert len(held_out) == 1
    assert held_out[0]["text"] in (tmp_path / "prompts.txt").read_text().splitlines()
