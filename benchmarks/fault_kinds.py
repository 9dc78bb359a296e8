"""What can happen to a device of an injected fault, done by the device itself, here and now."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FROZEN_S = 6.5
FILES = "fault-"  # and the process' number
GROUP = Path("/sys/fs/cgroup/memory/lightning-edge-fault")
LIMIT_BYTES = 96 << 20
PIECE_BYTES = 1 << 20
NOISE = random.Random(0).randbytes(70_000)
_CLONE_NEWNET = 0x40000000
_SMALL = "64k"


def missing(fault: str) -> str | None:
    """Return what this machine lacks to let it happen, or None."""
    if fault in ("cut", "deafen", "full disk", "memory") and os.geteuid() != 0:
        return "as it needs root"
    if fault == "memory" and not (GROUP.parent / "memory.limit_in_bytes").exists():
        return "as it needs control groups of version 1"
    return None


def strike(fault: str, moment: Path, place: Mapping[str, Any]) -> None:
    """Let it happen, once, and leave the time of it.

    Args:
        fault: What.
        moment: File for the time, of the machine's monotonic clock.
        place: Of a device with a network of its own: `hub`, and the `port` there.
    """
    if moment.exists():
        return
    moment.write_text(repr(time.monotonic()))
    _KINDS[fault](moment, place)


def _exception(moment: Path, place: Mapping[str, Any]) -> None:
    raise ValueError("row 7 of the data is missing")


def _kill(moment: Path, place: Mapping[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _freeze(moment: Path, place: Mapping[str, Any]) -> None:
    wake = f"sleep {FROZEN_S}; kill -CONT {os.getpid()}"
    subprocess.Popen(["sh", "-c", wake], start_new_session=True)
    os.kill(os.getpid(), signal.SIGSTOP)


def _cut(moment: Path, place: Mapping[str, Any]) -> None:
    ip("-n", place["hub"], "link", "set", place["port"], "down")


def _deafen(moment: Path, place: Mapping[str, Any]) -> None:
    link = ("-n", place["hub"], "link", "set", place["port"], "type", "bridge_slave")
    ip(*link, "learning", "off", "flood", "off", "mcast_flood", "off", "bcast_flood", "off")
    ip(*link, "fdb_flush")


def ip(*arguments: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


def _memory(moment: Path, place: Mapping[str, Any]) -> None:
    """Take memory, up to nearly all there is for a while, then more."""
    (GROUP / "cgroup.procs").write_text(str(os.getpid()))
    taken = []

    def used() -> int:
        return int((GROUP / "memory.usage_in_bytes").read_text())

    while used() < 0.97 * LIMIT_BYTES:
        taken.append(b"x" * PIECE_BYTES)
    time.sleep(1.2)
    moment.write_text(repr(time.monotonic()))
    while True:
        taken.append(b"x" * PIECE_BYTES)


def _full_disk(moment: Path, place: Mapping[str, Any]) -> None:
    folder = moment.parent / "checkpoints"
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_SMALL}", "none", str(folder)]
    subprocess.run(mount, check=True, timeout=20)
    (folder / "other data").write_bytes(bytes(56 << 10))


def _version(moment: Path, place: Mapping[str, Any]) -> None:
    import lightning_edge

    lightning_edge.__version__ = "0.0.other"


def _clock(moment: Path, place: Mapping[str, Any]) -> None:
    """The wall clock goes to tomorrow, and a second later to yesterday."""
    begin_s, real = time.monotonic(), _time
    time.time = lambda: real() + (86400.0 if time.monotonic() - begin_s < 1.0 else -86400.0)


_time = time.time


def _rubbish(moment: Path, place: Mapping[str, Any]) -> None:
    """Somebody talks to every port of this device, and to the store's, in another language."""
    import psutil

    ports = {c.laddr.port for c in psutil.Process().net_connections() if c.status == "LISTEN"}
    master = int(os.environ["MASTER_PORT"])
    for host, port in [("127.0.0.1", p) for p in ports] + [(os.environ["MASTER_ADDR"], master)]:
        for said in (b"", b"\0" * 64, b"\xff" * 4096, b"GET / HTTP/1.1\r\n\r\n", NOISE):
            with contextlib.suppress(OSError), socket.create_connection((host, port), 1.0) as one:
                one.settimeout(1.0)
                one.sendall(said)


_KINDS = {
    "exception": _exception, "kill": _kill, "freeze": _freeze, "cut": _cut, "deafen": _deafen,
    "memory": _memory, "full disk": _full_disk, "version": _version, "clock": _clock,
    "rubbish": _rubbish,
}  # fmt: skip


@contextlib.contextmanager
def surroundings(place: Mapping[str, Any]) -> Iterator[None]:
    """In the network of a device, if it has one, and with everything as it was afterwards."""
    import lightning_edge

    version = lightning_edge.__version__
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if place:
            _enter(os.open(f"/run/netns/{place['namespace']}", os.O_RDONLY))
            os.environ.update(MASTER_ADDR=place["master"], GLOO_SOCKET_IFNAME="eth0")
        yield
    finally:
        lightning_edge.__version__, time.time = version, _time
        _enter(own)


def _enter(network: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if libc.setns(network, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(network)


def left_behind(hub: str) -> list[str]:
    """What is left of faults: processes, network namespaces of this testbed, groups, files."""
    import psutil

    processes = [f"process {child.pid}" for child in psutil.Process().children(recursive=True)]
    slot = hub.removesuffix("hub")
    networks = [path.name for path in Path("/run/netns").glob(f"{slot}*")] if slot else []
    groups = [str(GROUP)] if GROUP.exists() else []
    files = [str(path) for path in Path(tempfile.gettempdir()).glob(f"{FILES}{os.getpid()}-*")]
    return [*processes, *networks, *groups, *files]


@contextlib.contextmanager
def memory_group() -> Iterator[None]:
    """A group of processes with little memory."""
    GROUP.mkdir(exist_ok=True)
    (GROUP / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
    with contextlib.suppress(OSError):
        (GROUP / "memory.memsw.limit_in_bytes").write_text(str(LIMIT_BYTES))
    try:
        yield
    finally:
        deadline_s = time.monotonic() + 10.0
        while GROUP.exists():
            with contextlib.suppress(OSError):
                GROUP.rmdir()
            if time.monotonic() > deadline_s:
                raise OSError(f"{GROUP} is still there")
            time.sleep(0.05)
