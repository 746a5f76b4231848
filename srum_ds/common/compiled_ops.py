"""Where DeepSpeed's compiled ops live and which tools make them: the same for every process of a machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path


def ops_environment(base: Mapping[str, str]) -> dict[str, str]:
    """What ``base`` lacks to build DeepSpeed's ops once and find them again; nothing outside a virtual environment.

    TORCH_EXTENSIONS_DIR, unless it is set, and a PATH on which this Python's own tools come first: torch calls
    ``ninja`` by name, and another version (a system's) does not know its build again and compiles anew.
    """
    if sys.prefix == sys.base_prefix:
        return {}
    tools = str(Path(sys.executable).parent)
    folders = base.get("PATH", os.defpath).split(os.pathsep)
    path = os.pathsep.join([tools, *(folder for folder in folders if folder != tools)])
    there = base.get("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    return {"TORCH_EXTENSIONS_DIR": there, "PATH": path}
