"""Running `ip` and `tc`."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from lightning_edge.errors import TestbedError

__all__: list[str] = []

TIMEOUT_S = 20.0


def run(*command: str) -> str:
    """Run a command and return what it printed.

    Raises:
        TestbedError: With the command and its own words, if it fails or does not end.
    """
    done = _call(command)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise TestbedError(f"`{' '.join(command)}` failed: {said or done.returncode}")
    return done.stdout


def succeeds(*command: str) -> bool:
    """Run a command for its exit status only."""
    return _call(command).returncode == 0


def _call(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TestbedError(f"`{' '.join(command)}` did not end in {TIMEOUT_S:.0f} s") from None
    except FileNotFoundError:
        raise TestbedError(f"the command `{command[0]}` is not installed (iproute2)") from None
