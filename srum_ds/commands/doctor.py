"""`srum-ds doctor`: whether this machine, or these ranks together, can run what they are to run.

    srum-ds doctor [--ranks 2] [--json]
    deepspeed --no_local_rank --num_gpus 2 --module srum_ds.commands.doctor [--json]

Under a launcher every rank calls ``doctor``, one a node looks at its machine, and the first prints the report.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from srum_ds.common.errors import UserError, guarded
from srum_ds.common.files import write_atomic
from srum_ds.common.texts import parse_json

if TYPE_CHECKING:
    from srum_ds.preflight import Finding

SICK = 1
"""Exit status where something is an error."""


def doctor(
    *,
    ranks: int = 1,
    folder: Path = Path("runs"),
    launcher_args: str = "",
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
    out: Path | None = None,
) -> int:
    """Look at versions, devices, bandwidths, compilers, disk, ports, clocks, limits and caches.

    Exit status: 0 where nothing is an error, 1 where something is, 2 for wrong input (docs/doctor.md).

    Parameters
    ----------
    ranks
        How many ranks to start, which measure how fast they talk and whether their clocks agree; 1 starts none.
    folder
        Where runs are to be written: its disk is measured by a file of 64 MB, which is removed.
    launcher_args
        The DeepSpeed launcher's own flags in one word, such as --launcher-args="--hostfile hosts".
    json_
        Print JSON.
    out
        Write the report there as JSON, too: under a launcher by hand, its own lines stand beside what is printed.
    """
    if ranks < 1:
        raise UserError(f"--ranks {ranks}: expected at least 1.")
    if "RANK" in os.environ:
        return _on_rank(folder, json_, out)
    if ranks == 1 and not launcher_args:
        from srum_ds.preflight.libraries import alone

        return _report([*_machine(folder, 1), *alone()], 1, json_, out)
    return _launched(ranks, folder, launcher_args, json_, out)


def _launched(ranks: int, folder: Path, launcher_args: str, json_: bool, out: Path | None) -> int:
    """Has the launcher start the ranks; its own lines go to stderr, so that stdout is the report alone."""
    import subprocess
    import tempfile
    from dataclasses import replace

    from srum_ds.commands.launcher import build_environment, build_module_command, has_cuda
    from srum_ds.config import Config, find_path
    from srum_ds.preflight.findings import from_json

    cfg = Config()
    own = str(find_path(cfg.deepspeed.config))
    cfg = replace(cfg, deepspeed=replace(cfg.deepspeed, ranks=ranks, config=own))
    with tempfile.TemporaryDirectory(prefix="srum-ds-doctor-") as name:
        report = Path(name) / "report.json"
        words = ["--folder", str(folder), "--out", str(report)]
        command = build_module_command(cfg, "srum_ds.commands.doctor", words, shlex.split(launcher_args))
        environment = build_environment(os.environ, ranks, has_cuda())
        status = subprocess.run(command, env=environment, stdout=sys.stderr).returncode
        if not report.is_file():
            raise UserError(
                f"the ranks ended with status {status} and gave no report; what they said stands above. With one rank "
                "(without --ranks and --launcher-args) the doctor looks at this machine alone."
            )
        facts = parse_json(report.read_bytes())
    return _report([from_json(one) for one in facts["findings"]], facts["ranks"], json_, out)


def _on_rank(folder: Path, json_: bool, out: Path | None) -> int:
    from srum_ds.common import ranks
    from srum_ds.engine import leave_distributed, start_distributed
    from srum_ds.preflight.group import look_at_group, of_all_nodes
    from srum_ds.preflight.libraries import alone

    # Asked for first: where each rank sees one device only, all of them have the local number 0 from then on.
    first_here = os.environ.get("LOCAL_RANK", "0") == "0"
    start_distributed()
    here = int(os.environ.get("LOCAL_SIZE", str(ranks.world_size())))
    own = _machine(folder, here) if first_here else []
    together = list(look_at_group()) if ranks.world_size() > 1 else list(alone())
    found = [*of_all_nodes(own), *together]
    status = _report(found, ranks.world_size(), json_, out) if ranks.rank() == 0 else 0
    leave_distributed()
    return status


def _machine(folder: Path, ranks: int) -> list[Finding]:
    """What one process finds out about its machine."""
    from srum_ds.preflight import machine
    from srum_ds.preflight.findings import gathered
    from srum_ds.preflight.libraries import look_at_accelerators, look_at_imports
    from srum_ds.preflight.placing import visible_gpus

    gpu = visible_gpus() > 0
    looks = [
        ("versions", machine.look_at_versions),
        ("imports", look_at_imports),
        ("accelerators", look_at_accelerators),
        ("builds", lambda: machine.look_at_builds(gpu)),
        ("limits", lambda: machine.look_at_limits(ranks, gpu)),
        ("disk", lambda: machine.look_at_disk(folder)),
        ("network", machine.look_at_network),
        ("caches", machine.look_at_caches),
    ]
    return list(gathered(looks))


def _report(found: list[Finding], ranks: int, json_: bool, out: Path | None) -> int:
    from srum_ds.preflight import State
    from srum_ds.preflight.run import errors

    wrong = errors(found)
    odd = [finding for finding in found if finding.state == State.WARNING]
    facts = {"ok": not wrong, "ranks": ranks, "findings": [finding.as_json() for finding in found]}
    text = json.dumps(facts, indent=2)
    if out is not None:
        write_atomic(out, text + "\n")
    if json_:
        print(text)
    else:
        for finding in found:
            print(finding.line)
        print(f"{len(wrong)} error(s), {len(odd)} warning(s)")
    return SICK if wrong else 0


def main() -> int:
    """Runs ``doctor`` with the process's arguments; the launcher's way in."""
    app = App(name="srum-ds doctor", default_parameter=Parameter(negative_iterable=()), help_format="plaintext")
    app.default(doctor)
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    first = os.environ.get("RANK", "0") == "0"
    return guarded(lambda: app(words, exit_on_error=False, print_error=first, result_action="return_value"))


if __name__ == "__main__":
    sys.exit(main())
