"""Everything of the outside world that sources touch, in one place.

So that a test can put a faked tree there.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def run_command(command: Sequence[str], timeout_s: float) -> str:
    """Run a command and return what it printed.

    Raises:
        OSError: If the command is not there.
        subprocess.SubprocessError: If it fails or takes longer than `timeout_s` seconds.
    """
    done = subprocess.run(
        list(command), capture_output=True, text=True, timeout=timeout_s, check=True
    )
    return done.stdout


def load_nvml() -> Any:
    """The nvidia-ml-py binding; its module is called pynvml."""
    import pynvml

    return pynvml


def load_jtop() -> Any:
    """The jtop module, with the multiprocessing start method put back.

    ``import jtop`` sets the start method to "fork" for the whole process (jetson-stats 7.1 and
    later), which breaks DataLoader workers once CUDA is initialised.
    """
    before = multiprocessing.get_start_method(allow_none=True)
    try:
        import jtop
    finally:
        multiprocessing.set_start_method(before, force=True)
    return jtop


@dataclass(frozen=True)
class HostEnv:
    """The machine as sources see it.

    Args:
        sysroot: Directory that stands for ``/`` when files under /sys, /proc and /etc are read.
        environ: Environment variables.
        run: Runs a command within a number of seconds and returns its output.
        clock: Monotonic seconds.
        nvml: Returns the NVML binding.
        jtop: Returns the jtop module.
        machine: Name of the processor architecture.
    """

    sysroot: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    run: Callable[[Sequence[str], float], str] = run_command
    clock: Callable[[], float] = time.monotonic
    nvml: Callable[[], Any] = load_nvml
    jtop: Callable[[], Any] = load_jtop
    machine: str = field(default_factory=platform.machine)

    def path(self, absolute: str) -> Path:
        """Where the file `absolute` of the machine is found."""
        return self.sysroot / absolute.lstrip("/")

    def text(self, absolute: str) -> str | None:
        """Contents of a small text file, stripped of NULs and white space at both ends.

        None if unreadable.
        """
        try:
            return self.path(absolute).read_text(errors="replace").strip("\0 \t\r\n")
        except OSError:
            return None

    @property
    def is_tegra(self) -> bool:
        """Whether this is an NVIDIA Jetson (Tegra) board."""
        if self.path("/etc/nv_tegra_release").exists():
            return True
        compatible = self.text("/proc/device-tree/compatible") or ""
        return "nvidia,tegra" in compatible or (self.board or "").startswith("NVIDIA Jetson")

    @property
    def board(self) -> str | None:
        """The board's name by its device tree; None on a PC."""
        return self.text("/proc/device-tree/model") or None

    @property
    def boot_id(self) -> str:
        """The same for all processes on one running machine, containers included.

        And for no other machine.
        """
        return self.text("/proc/sys/kernel/random/boot_id") or f"node:{platform.node()}"
