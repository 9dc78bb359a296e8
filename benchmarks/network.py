"""Devices in a row, each pair of neighbours joined by a link of a given rate (Linux, root).

      namespace 0           namespace 1                namespace 2
    +-----------+    +-----------------------+    +-----------+
    |     right =====|= left           right =====|= left     |     ===  a veth pair with a token
    +-----------+    +-----------------------+    +-----------+          bucket at both ends
      198.18.77.1          198.18.77.2              198.18.77.3

Each link carries its rate both ways and nothing else uses it, as the lower bound assumes. (In the
package's testbed the devices are on a switch, and a middle device's neighbours share its link.)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from types import TracebackType

from benchmarks.contest import Place

BURST = "16kb"  # leaves a bucket at once, so it has to be small against a message


def missing() -> str | None:
    """Return what this machine lacks, or None."""
    if sys.platform != "linux":
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    lacks = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    return f"iproute2 is not installed ({', '.join(lacks)})" if lacks else None


class Line:
    """A context manager: the namespaces exist inside it."""

    def __init__(self, devices: int, mbit: float) -> None:
        self._names = [f"lebench{os.getpid()}-{rank}" for rank in range(devices)]
        self._mbit = mbit
        self.places = [
            Place(name, "right" if rank == 0 else "left") for rank, name in enumerate(self._names)
        ]
        self.address = _address(0)

    def __enter__(self) -> Line:
        try:
            for name in self._names:
                _run("ip", "netns", "add", name)
                _run("ip", "-n", name, "link", "set", "lo", "up")
                _run("ip", "netns", "exec", name, "sh", "-c", _KERNEL_SETTINGS)
            for rank in range(len(self._names) - 1):
                self._join(rank)
            for rank in range(len(self._names)):
                self._route(rank)
            self.set_rate(self._mbit)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        for name in self._names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def set_rate(self, mbit: float) -> None:
        """Change the rate of all links, both ways."""
        for number, name in enumerate(self._names):
            for side in ("left",) * (number > 0) + ("right",) * (number < len(self._names) - 1):
                bucket = ("tbf", "rate", f"{mbit:g}mbit", "burst", BURST, "latency", "300ms")
                _run("tc", "-n", name, "qdisc", "replace", "dev", side, "root", *bucket)

    def _join(self, rank: int) -> None:
        here, there = self._names[rank], self._names[rank + 1]
        link = ("link", "add", "right", "type", "veth", "peer", "name", "left", "netns", there)
        _run("ip", "-n", here, *link)
        for name, interface, number in ((here, "right", rank), (there, "left", rank + 1)):
            _run("ip", "-n", name, "address", "add", f"{_address(number)}/32", "dev", interface)
            _run("ip", "-n", name, "link", "set", interface, "up")

    def _route(self, rank: int) -> None:
        for other in range(len(self._names)):
            step = (other > rank) - (other < rank)
            if step:
                over = ("dev", "right" if step > 0 else "left", "src", _address(rank))
                hop = () if other == rank + step else ("via", _address(rank + step))
                onlink = ("onlink",) if hop else ()
                _run(
                    "ip",
                    "-n",
                    self._names[rank],
                    "route",
                    "add",
                    _address(other),
                    *hop,
                    *over,
                    *onlink,
                )


# bbr, where it is the default, measures a token bucket badly. A namespace may choose only among
# what the machine allows to everyone, and reno is always one of them.
_KERNEL_SETTINGS = """\
echo 1 > /proc/sys/net/ipv4/ip_forward
for algorithm in cubic reno; do
    echo $algorithm 2>/dev/null > /proc/sys/net/ipv4/tcp_congestion_control && exit
done
exit 1
"""


def _address(rank: int) -> str:
    return f"198.18.77.{rank + 1}"


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=20)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
