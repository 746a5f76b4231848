"""What the guard of the unit tests lets through."""

from __future__ import annotations

from pathlib import Path

import pytest
from triton.backends.nvidia.compiler import get_ptxas_version
from triton.runtime import build

START = "import subprocess\nsubprocess.run(['true'], check=True)"


@pytest.mark.parametrize("module", ["tests.unit.some", "srum_ds.kernels.triton.norm", "tritonlike"])
def test_a_process_of_ones_own_is_refused(module: str) -> None:
    with pytest.raises(AssertionError, match="a unit test starts"):
        exec(START, {"__name__": module})


def test_what_triton_starts_to_compile_a_kernel_is_not(tmp_path: Path) -> None:
    # Each was refused once on a GPU; without the caches, for this process may have asked before.
    assert build.platform_key.__wrapped__()
    assert get_ptxas_version.__wrapped__(90)
    source = tmp_path / "launcher.c"
    source.write_text("int launched(void) { return 0; }\n")
    assert Path(build._build("launcher", str(source), str(tmp_path), [], [], [], [])).exists()
