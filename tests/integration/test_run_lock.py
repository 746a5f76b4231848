"""One process a run's folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from srum_ds.monitoring import run_folder


def test_a_second_process_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from srum_ds.monitoring.run_folder import locked\n"
    code += f"with locked(Path({str(tmp_path)!r})): pass"
    with run_folder.locked(tmp_path):
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert second.returncode != 0
        assert "another process is training" in second.stderr
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
