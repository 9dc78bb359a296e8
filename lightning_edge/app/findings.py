"""What may keep this device from taking part, each finding with its remedy."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from lightning_edge import __version__
from lightning_edge.app.cluster import INTERFACE, PORT, SECRET, addresses
from lightning_edge.energy.host import HostEnv

__all__: list[str] = []

PACKAGES = ("lightning", "hydra-core", "transformers", "peft", "scikit-learn")
STALE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
LITTLE_BYTES = 1e9


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: It.
        state: "ok", "note" or "problem".
        found: What was found.
        remedy: What to do; empty if nothing.
    """

    what: str
    state: str
    found: str
    remedy: str = ""


def ok(what: str, found: str) -> Finding:
    """All is well."""
    return Finding(what, "ok", found)


def findings() -> Iterator[Finding]:
    """Look at everything that can be looked at without another device."""
    host = HostEnv()
    yield from _versions(host)
    yield from torch_of(host)
    yield from network()
    yield from ports()
    yield from firewall(Path("/"))
    yield from variables(os.environ)
    yield _memory()


def _versions(host: HostEnv) -> Iterator[Finding]:
    machine = f"{host.board or platform.machine()}, {platform.system()} {platform.release()}"
    yield ok("device", machine)
    yield ok("Python", platform.python_version())
    found = [f"lightning-edge {__version__}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    yield ok("packages", ", ".join(found))


def torch_of(host: HostEnv) -> Iterator[Finding]:
    """Whether this torch can compute, and talk to other processes."""
    jetson = " from the Jetson index of your JetPack" if host.is_tegra else ""
    if importlib.util.find_spec("torch") is None:
        yield Finding("torch", "problem", "not installed", f"pip install a wheel of torch{jetson}")
        return
    import torch

    yield ok("torch", torch.__version__)
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        yield Finding(
            "torch.distributed",
            "problem",
            "this torch was built without it, or without gloo (NVIDIA's older wheels for JetPack)",
            f"install a wheel built with USE_DISTRIBUTED=1{jetson}, or one of PyPI",
        )
    else:
        yield ok("torch.distributed", "gloo is there")
    if torch.cuda.is_available():
        yield ok("GPU", torch.cuda.get_device_name(0))
    elif host.is_tegra or Path("/dev/nvidia0").exists():
        yield Finding(
            "GPU",
            "problem",
            f"there is one, and torch {torch.__version__} does not see it",
            f"install a CUDA build of torch{jetson}; a +cpu wheel never sees a GPU",
        )
    else:
        yield ok("GPU", "none; this device computes on its processor")


def network() -> Iterator[Finding]:
    """Interfaces, addresses, and what the host's name stands for."""
    found = addresses.own()
    real = [f"{a.interface} {a.ip}" for a in found if a.kind == "network"]
    others = [f"{a.interface} {a.ip}" for a in found if a.kind == "virtual"]
    if not real:
        yield Finding(
            "addresses",
            "problem",
            "only " + (", ".join(others) or "loopback"),
            "connect this device to the network of the others; `ip -4 addr` shows addresses",
        )
    elif len(real) > 1:
        yield Finding(
            "addresses", "note", ", ".join(real), "device.interface=NAME says which one is meant"
        )
    else:
        yield ok("addresses", real[0])
    if others:
        yield ok("other interfaces", ", ".join(others) + " (of containers or tunnels; not used)")
    name = socket.gethostname()
    try:
        ip = socket.gethostbyname(name)
    except OSError:
        ip = ""
    if ip.startswith("127.") or not ip:
        stands = f"stands for {ip}" if ip else "stands for nothing"
        yield Finding(
            "host name",
            "note",
            f"{name} {stands} in /etc/hosts, which torchrun alone would tell the others",
            "nothing with `lightning-edge`, which takes the address that the others reach; with"
            f" torchrun, set {INTERFACE} and --local-addr",
        )
    else:
        yield ok("host name", f"{name} is {ip}")
    if importlib.util.find_spec("zeroconf") is None:
        yield Finding("cluster=lan", "problem", "zeroconf is missing", "pip install zeroconf")
    wanted = os.environ.get(INTERFACE)
    if wanted and wanted not in psutil.net_if_addrs():
        yield Finding(INTERFACE, "problem", f"{wanted} is no interface here", f"unset {INTERFACE}")


def ports() -> Iterator[Finding]:
    """Whether the two ports that a host needs are free."""
    for port in (PORT, PORT + 1):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                yield Finding(
                    f"port {port}", "note", "in use", "cluster.port=NUMBER, the same on all devices"
                )
            else:
                yield ok(f"port {port}", "free")


def firewall(root: Path) -> Iterator[Finding]:
    """Firewalls that are switched on; what they let through only the other device can tell."""
    remedy = "let the local network in: "
    ufw = root / "etc/ufw/ufw.conf"
    text = ufw.read_text(errors="replace") if ufw.is_file() else ""
    running = {process.info["name"] for process in psutil.process_iter(["name"])}
    if "ENABLED=yes" in text.replace(" ", ""):
        command = "sudo ufw allow from 192.168.1.0/24 (your network's address)"
        yield Finding("firewall", "note", "ufw is on", remedy + command)
    elif "firewalld" in running:
        command = "sudo firewall-cmd --zone=trusted --add-source=192.168.1.0/24"
        yield Finding("firewall", "note", "firewalld is on", remedy + command)
    else:
        yield ok("firewall", "neither ufw nor firewalld is on")


def variables(environment: os._Environ[str] | dict[str, str]) -> Iterator[Finding]:
    """Variables that somebody may have left behind."""
    stale = [f"{name}={environment[name]}" for name in STALE if name in environment]
    if stale:
        names = " ".join(word.partition("=")[0] for word in stale)
        text = f"unset {names}, unless torchrun has just set them"
        yield Finding("environment", "note", ", ".join(stale), text)
    if not environment.get(SECRET):
        yield Finding(
            "secret",
            "note",
            f"{SECRET} is not set: any device in the network that gives the same run.name may join",
            f"export {SECRET}=... with the same words on all your devices",
        )
    else:
        yield ok("secret", f"{SECRET} is set")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    text = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    if memory.available < LITTLE_BYTES:
        return Finding("memory", "note", text, "close what is not needed; a desktop takes 1 GB")
    return ok("memory", text)
