"""What a test must not leave behind, and how each kind of it is seen.

A `Trace` is one kind of thing: it is looked at before and after a test, and what is there
afterwards only is a leak. Things that end by themselves within `GRACE_S` are not.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

GRACE_S = 3.0  # a killed process or a joined thread may still be on its way out

# Set for good by libraries, in processes of ours as in anybody's.
LIBRARY_VARIABLES = {
    "PYTEST_CURRENT_TEST",  # pytest itself, differs between a test's phases
    "PL_GLOBAL_SEED",  # lightning.seed_everything
    "PL_SEED_WORKERS",
    "KMP_INIT_AT_FORK",  # torch, on first use of some backends
    "KMP_DUPLICATE_LIB_OK",
    "CUDA_MODULE_LOADING",
    "TORCHINDUCTOR_CACHE_DIR",
    "PYTORCH_NVML_BASED_CUDA_CHECK",  # lightning, when it is imported
}
LIBRARY_FILES = ("pymp-", "torchinductor_", "pool-")  # removed when their process ends
LIBRARY_THREADS = ("pytest_timeout", "TMonitor")  # pytest-timeout's watch; tqdm's, one per process
TOOL_FILES = {".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", "build", ".coverage"}


@dataclass(frozen=True)
class Trace:
    """One kind of thing that a test may leave behind."""

    what: str
    look: Callable[[], Collection[str]]


def children(resident: Collection[int]) -> Collection[str]:
    """Processes below this one; `resident` ones (the pool's workers) stay from test to test."""
    found = []
    for child in _child_processes():
        try:
            command = " ".join(child.cmdline())[:120]
            gone = child.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            continue
        helper = "multiprocessing.resource_tracker" in command or "forkserver" in command
        if child.pid not in resident and not gone and not helper:
            found.append(f"{child.pid} ({command})")
    return found


def _child_processes() -> list[psutil.Process]:
    # psutil walks over every process of the machine; the kernel knows our own children.
    lists = list(Path("/proc/self/task").glob("*/children")) if sys.platform == "linux" else []
    if not lists:
        return psutil.Process().children()
    pids = [int(pid) for path in lists if path.exists() for pid in path.read_text().split()]
    return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]


def threads() -> Collection[str]:
    """Python threads other than those of the tools."""
    return [
        f"{t.name} ({t.ident})"
        for t in threading.enumerate()
        if not t.name.startswith(LIBRARY_THREADS)
    ]


def variables() -> Collection[str]:
    """Environment variables with their values, so that a changed one counts."""
    return [f"{k}={v}" for k, v in os.environ.items() if k not in LIBRARY_VARIABLES]


def sockets() -> Collection[str]:
    """Internet sockets of this process: listening ports and connections."""
    fds = Path("/proc/self/fd")
    if fds.is_dir() and not any(_link(fd).startswith("socket:") for fd in fds.iterdir()):
        return []
    return [
        f"{c.status} {c.laddr} -> {c.raddr or '-'} (fd {c.fd})"
        for c in psutil.Process().net_connections(kind="inet")
    ]


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def files() -> Collection[str]:
    """Entries of the working and the temporary directory."""
    here, scratch = Path.cwd(), Path(tempfile.gettempdir())
    found = [str(p) for p in here.iterdir() if p.name not in TOOL_FILES and p.suffix != ".egg-info"]
    return found + [str(p) for p in scratch.iterdir() if not p.name.startswith(LIBRARY_FILES)]


def settings() -> Collection[str]:
    """Global switches of torch, and the directory."""
    return [
        f"torch.get_default_dtype() == {torch.get_default_dtype()}",
        f"torch.get_default_device() == {torch.get_default_device()}",
        f"torch.get_num_threads() == {torch.get_num_threads()}",
        f"torch.is_grad_enabled() == {torch.is_grad_enabled()}",
        f"deterministic algorithms == {torch.are_deterministic_algorithms_enabled()}",
        f"anomaly mode == {torch.is_anomaly_enabled()}",
        f"float32 matmul precision == {torch.get_float32_matmul_precision()}",
        f"working directory == {Path.cwd()}",
    ]


def process_groups() -> Collection[str]:
    """The default process group of torch.distributed, which nothing here may ever make."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return [f"the default process group ({distributed.get_backend()})"]
    return []


def leaks(trace: Trace, before: Collection[str]) -> list[str]:
    """Return what is there now and was not before, once it had time to go away by itself."""
    deadline_s = time.monotonic() + GRACE_S
    left = sorted(set(trace.look()) - set(before))
    if left:
        gc.collect()  # stores, process groups and loaders end with their last reference
    while left and time.monotonic() < deadline_s:
        left = sorted(set(trace.look()) - set(before))
        if left:
            time.sleep(0.02)
    return left
