"""What srum-ds adds to DeepSpeed's two launcher processes when they start ``launch/train.sh``.

torch calls ``attach`` as it is imported (entry point ``torch.backends``), which both launchers do before they start
anything. In every other process it does nothing. The front end (`deepspeed ...`) goes on in a child, and waits for it
as `srum-ds train` does; the launcher on a node hands signals on to its ranks instead of ending them.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCRIPT = "train.sh"


def attach() -> None:
    """Attaches to this process where it is a launcher of ours; never raises."""
    words = list(sys.orig_argv)
    try:
        if script_of(words) is None or threading.current_thread() is not threading.main_thread():
            return
        if is_node_launcher(words):
            forward_stops()
        elif is_front_end(words):
            wait_for_front_end(words)
    except Exception as error:  # An import of torch must not fail for this.
        print(f"srum-ds: cannot attach to the launcher ({error!r}); signals to it end it alone.", file=sys.stderr)


def script_of(words: Sequence[str]) -> int | None:
    """Where ``launch/train.sh`` of this package (a clone's, a wheel's) stands in a command line; None where not."""
    for index, word in enumerate(words):
        if word.endswith(SCRIPT):
            path = Path(word).resolve()
            holder = path.parents[1] if len(path.parents) > 1 else path
            ours = (holder / "srum_ds").is_dir() or (holder.name == "shipped" and holder.parent.name == "srum_ds")
            if path.name == SCRIPT and path.parent.name == "launch" and ours:
                return index
    return None


def is_node_launcher(words: Sequence[str]) -> bool:
    """Whether this command line is DeepSpeed's launcher on a node."""
    return "deepspeed.launcher.launch" in words


def is_front_end(words: Sequence[str]) -> bool:
    """Whether it is `deepspeed` on this machine, called by hand: several nodes have signals of their own.

    With --no_ssh it starts the ranks of this node alone, whatever other nodes do.
    """
    script = script_of(words) or 0
    flags = {word.split("=")[0] for word in words[:script]}
    reaches_out = flags & {"-h", "--help", "-H", "--hostfile", "--force_multi", "--num_nodes"}
    alone = not reaches_out or ("--no_ssh" in flags and not flags & {"-h", "--help"})
    return alone and any(Path(word).name in ("deepspeed", "ds") for word in words[:script])


def forward_stops() -> None:
    """Hands stops on to the ranks below this process, whatever handlers DeepSpeed sets for them later."""
    from srum_ds.common.stopping import handle_stops
    from srum_ds.common.supervise import Forwarder, ranks_below, tree_below

    pid = os.getpid()
    taken = handle_stops(Forwarder(lambda: ranks_below(pid), lambda: tree_below(pid)))
    set_handler = signal.signal

    def keep(number: int, handler: Any) -> Any:
        return signal.getsignal(number) if number in taken else set_handler(number, handler)

    # Blocking the signals instead would reach this thread alone, and torch has started others.
    signal.signal = keep  # type: ignore[assignment]


def wait_for_front_end(words: Sequence[str]) -> None:
    """Goes on in a child of this process, which waits for it and ends with the job's status."""
    from srum_ds.common.supervise import SUPERVISED, poll_child, wait_for

    if os.environ.get(SUPERVISED):
        return
    os.environ[SUPERVISED] = "1"
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        # Out of the terminal's group: Ctrl-C comes by the parent, once.
        os.setsid()
        forward_stops()
        return
    script = script_of(words) or 0
    status = wait_for(child, poll_child(child), lambda: run_dir_of(words[script + 1 :]), Path("export"))
    os._exit(status)


def run_dir_of(arguments: Sequence[str]) -> Path | None:
    """The run's folder of a recipe and its settings; None where they are wrong, which the ranks have said."""
    from srum_ds.common.errors import UserError

    # By name: what knows settings lies above this room, and is wanted at the very end only.
    settings = importlib.import_module("srum_ds.config")
    try:
        return Path(settings.load_config(*settings.split_arguments(arguments)).run.dir)
    except UserError:
        return None
