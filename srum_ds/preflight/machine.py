"""Looks at a machine without torch: versions, compilers, limits, caches, disk, ports (`srum-ds doctor`)."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import socket
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from srum_ds.common.compiled_ops import ops_environment
from srum_ds.preflight.findings import Finding, error, ok, warning

PACKAGES = ("torch", "deepspeed", "transformers", "diffusers", "triton", "peft", "accelerate", "safetensors", "numpy")
OURS = "srum-ds"
OP = "deepspeed_shm_comm"
"""The name under which DeepSpeed's communication op of CPUs is built."""
SHM_A_RANK = 70 << 20
"""Bytes of /dev/shm that a CPU rank's buffer for all-reduce takes."""
FILES = 4096
DISK_BYTES = 64 << 20
DISK_SLOW = 50e6
"""Bytes/s of writing below which a checkpoint takes long beside a step."""
DEFAULT_PORT = 29500


def look_at_versions() -> Iterator[Finding]:
    """Python, the packages that matter, and whether each is of a version that the others want."""
    yield ok("python", f"{platform.python_version()} ({platform.platform()})")
    installed = {name: version for name in (OURS, *PACKAGES) if (version := _version(name)) is not None}
    yield ok("versions", ", ".join(f"{name} {version}" for name, version in installed.items()))
    wrong = list(_unmet(installed))
    yield from wrong
    if not wrong:
        yield ok("combinations", "every one of them has what it declares to need")


def _unmet(installed: Mapping[str, str]) -> Iterator[Finding]:
    """What an installed package of ours declares to need and does not have; of another's needs, among ours alone."""
    for name in installed:
        for text in metadata.requires(name) or ():
            try:
                wanted = Requirement(text)
            except InvalidRequirement:
                continue
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
                continue
            if name != OURS and wanted.name not in installed:
                continue
            found = _version(wanted.name)
            if found is not None and wanted.specifier.contains(found, prereleases=True):
                continue
            have = "is not installed" if found is None else f"is {found}"
            cure = f"pip install '{wanted.name}{wanted.specifier}'"
            kind = error if name == OURS else warning
            yield kind("combinations", f"{name} needs {wanted.name}{wanted.specifier}, which {have}: {cure}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def look_at_builds(gpu: bool) -> Iterator[Finding]:
    """What compiles DeepSpeed's op and fused kernels, and whether the op is built."""
    compiler = os.environ.get("CXX", "c++")
    found = shutil.which(compiler)
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if found is None:
        yield (warning if gpu else error)(
            "compiler", f"no C++ compiler ('{compiler}') on the path: apt-get install g++, or name yours in CXX"
        )
    elif not headers.is_file():
        yield (warning if gpu else error)("compiler", f"no {headers}: apt-get install python3-dev")
    else:
        yield ok("compiler", f"{found}, {headers}")
    if gpu:
        yield ok("op builds", "GPUs talk through NCCL: DeepSpeed's communication op of CPUs is not needed")
        return
    environment = dict(os.environ) | ops_environment(os.environ)
    place = Path(environment.get("TORCH_EXTENSIONS_DIR", "~/.cache/torch_extensions")).expanduser()
    built = sorted(place.glob(f"**/{OP}*.so")) if place.is_dir() else []
    if built:
        yield ok("op builds", str(built[0]))
    elif platform.system() != "Linux":
        yield ok("op builds", "ranks talk through gloo: DeepSpeed's communication op is for Linux alone")
    else:
        yield warning("op builds", f"no {OP} in {place}: the first run compiles it, in half a minute; or `make setup`")


def look_at_limits(ranks: int, gpu: bool) -> Iterator[Finding]:
    """Open files, shared memory, memory and cores, as this process may use them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FILES:
        yield warning("open files", f"at most {soft}: raise it to {FILES} or more (ulimit -n {FILES})")
    else:
        yield ok("open files", f"at most {soft}")
    yield from _shared_memory(ranks, gpu)
    yield from _memory()
    yield from _cores()


def _shared_memory(ranks: int, gpu: bool) -> Iterator[Finding]:
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        yield warning("/dev/shm", "is not there: ranks on a CPU need it; in a container, mount it (--shm-size=1g)")
        return
    wanted = 0 if gpu else ranks * SHM_A_RANK
    if free < wanted:
        yield error(
            "/dev/shm",
            f"{_size(free)} are free, and {ranks} rank(s) take {_size(wanted)}: in a container give --shm-size=1g; "
            "else remove what earlier runs left there",
        )
    elif free < 1 << 28:
        yield warning("/dev/shm", f"{_size(free)} are free: in a container give --shm-size=1g")
    else:
        yield ok("/dev/shm", f"{_size(free)} are free")
    left = left_buffers(Path("/dev/shm"), Path("/proc"))
    if left:
        taken = sum(path.stat().st_size for path in left)
        yield warning(
            "/dev/shm",
            f"{_size(taken)} are held by buffers of jobs that were killed while their ranks met: "
            f"rm {' '.join(map(str, left))}",
        )


def left_buffers(shared: Path, processes: Path) -> list[Path]:
    """This user's buffers of DeepSpeed's CPU all-reduce in ``shared`` that no process listed in ``processes`` maps.

    A rank takes its own off the file system once all have mapped it; a job that is killed before leaves them behind.
    A process that cannot be read is passed over: who has mapped a file keeps it, also where its name is gone.
    """
    found = sorted(shared.glob(f"deepspeed_allreduce_buffer_{os.getuid()}_*"))
    if not found:
        return []
    mapped = ""
    for maps in processes.glob("[0-9]*/maps"):
        try:
            if maps.stat().st_uid == os.getuid():
                mapped += maps.read_text()
        except OSError:
            continue
    return [path for path in found if str(path) not in mapped]


def _memory() -> Iterator[Finding]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = _meminfo("MemAvailable")
    limit, used = cgroup_memory()
    said = f"{_size(total)} in the machine"
    if available is not None:
        said += f", {_size(available)} free"
    if limit is not None and limit < total:
        said += f"; this cgroup may use {_size(limit)}, of which {_size(used)} are used"
        if limit - used < 1 << 30:
            yield warning("memory", f"{said}: less than 1 GB is left; raise the container's or the job's limit")
            return
    yield ok("memory", said)


def cgroup_memory(root: Path = Path("/sys/fs/cgroup")) -> tuple[int | None, int]:
    """(limit of this process's cgroup in bytes, None where there is none; bytes that it uses)."""
    for most, now in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            text = (root / most).read_text().strip()
            used = int((root / now).read_text())
        except (OSError, ValueError):
            continue
        # Version 1 says "no limit" by a number of 63 bits.
        limit = int(text) if text.isdigit() and int(text) < 1 << 62 else None
        return limit, used
    return None, 0


def _meminfo(key: str) -> int | None:
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _cores() -> Iterator[Finding]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    if quota is not None and quota < usable:
        yield warning(
            "cores",
            f"{usable} are there, but the cgroup gives the time of {quota:g}: set OMP_NUM_THREADS so that ranks x "
            f"threads stay below {quota:g}, or raise the limit",
        )
    else:
        yield ok("cores", f"{usable}, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}")


def cpu_quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """Cores whose time the cgroup gives; None where it sets no limit."""
    try:
        quota, period = file.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def look_at_disk(folder: Path) -> Iterator[Finding]:
    """Room and speed of the disk that runs are written to. A file of 64 MB is written there and removed."""
    there = next((path for path in (folder, *folder.absolute().parents) if path.is_dir()), Path("/"))
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK | os.X_OK):
        yield error("disk", f"{there} cannot be written: give another folder (--folder, and run.dir of a run)")
        return
    if free < 2 * DISK_BYTES:
        yield error("disk", f"{there}: {_size(free)} are free: free some space, or give another folder (--folder)")
        return
    block = os.urandom(1 << 20)
    with tempfile.NamedTemporaryFile(dir=there, prefix=".srum-ds-doctor-") as stream:
        begin = time.perf_counter()
        for _ in range(DISK_BYTES >> 20):
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
        speed = DISK_BYTES / (time.perf_counter() - begin)
    said = f"{there}: {_size(free)} free, written at {speed / 1e6:.0f} MB/s (64 MB, synced)"
    figures = {"free_bytes": float(free), "write_bytes_per_second": speed}
    if speed < DISK_SLOW:
        text = f"{said}: slow for checkpoints; give run.dir on another disk, or train.save_in_background=true"
        yield warning("disk", text).with_figures(figures)
    else:
        yield ok("disk", said).with_figures(figures)


def look_at_network() -> Iterator[Finding]:
    """Whether ranks can meet: the host's own name, a free port, and the launcher's default one."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError as problem:
        yield warning(
            "host name",
            f"{name} has no address ({problem}): ranks on several nodes cannot meet; put it into /etc/hosts, or give "
            "--master_addr",
        )
    else:
        yield ok("host name", f"{name} is {address}")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind(("127.0.0.1", 0))
            free = probe.getsockname()[1]
    except OSError as problem:
        yield error("ports", f"no port can be listened at ({problem}): ranks cannot meet; see to the firewall")
        return
    if _taken(DEFAULT_PORT):
        yield warning(
            "ports",
            f"{DEFAULT_PORT}, where ranks meet by default, is taken: `srum-ds train` chooses a free one; with another "
            "launcher give --master_port",
        )
    else:
        yield ok("ports", f"{free} and {DEFAULT_PORT} (where ranks meet by default) are free")


def _taken(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def caches() -> dict[str, Path]:
    """Where libraries keep what they compile and download, by what it is."""
    environment = dict(os.environ) | ops_environment(os.environ)
    home = Path.home()
    hub = environment.get("HF_HOME", str(home / ".cache/huggingface"))
    return {
        "Hugging Face (HF_HOME)": Path(hub),
        "compiled ops (TORCH_EXTENSIONS_DIR)": Path(
            environment.get("TORCH_EXTENSIONS_DIR", str(home / ".cache/torch_extensions"))
        ),
        "triton (TRITON_CACHE_DIR)": Path(environment.get("TRITON_CACHE_DIR", str(home / ".triton/cache"))),
        "temporary files (TMPDIR)": Path(tempfile.gettempdir()),
    }


def look_at_caches() -> Iterator[Finding]:
    """Whether caches can be written."""
    refused = []
    for what, folder in caches().items():
        there = next((path for path in (folder, *folder.absolute().parents) if os.path.lexists(path)), Path("/"))
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            refused.append(what)
            yield error("caches", f"{what}: {folder} cannot be written: set the variable to a folder that can")
    if not refused:
        yield ok("caches", ", ".join(f"{what.split(' (')[0]} {folder}" for what, folder in caches().items()))


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
