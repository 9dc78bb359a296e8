"""Devices are recognised by what the system says of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_edge.boards import find_model
from lightning_edge.energy.host import HostEnv
from lightning_edge.profile.device import describe_device, slug
from lightning_edge.profile.optimizer import measure_optimizer

CPU = torch.device("cpu")
ORIN = "NVIDIA Jetson Orin Nano Developer Kit\0"
NVPMODEL = """
< POWER_MODEL ID=0 NAME=15W >
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
"""


def host(root: Path, files: dict[str, str]) -> HostEnv:
    for name, text in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return HostEnv(sysroot=root)


def test_a_jetson_with_its_modes(tmp_path: Path) -> None:
    machine = host(
        tmp_path,
        {
            "/proc/device-tree/model": ORIN,
            "/etc/nvpmodel.conf": NVPMODEL,
            "/var/lib/nvpmodel/status": "pmode:0001",
        },
    )
    device = describe_device("orin", CPU, host=machine)
    assert device.kind == "jetson-orin-nano"
    assert device.mode == "25W"
    assert [mode.name for mode in device.modes] == ["25W", "15W", "MAXN_SUPER"]
    slower = device.power_mode("15W")
    assert slower.speed == pytest.approx(473 / 696, rel=1e-2)
    assert slower.provenance_of("compute_w") == "prior"
    assert device.power_mode().speed == 1.0


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"/proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"}, "raspberry-pi-5-model-b"),
        (
            {"/proc/cpuinfo": "model name\t: Intel(R) Core(TM) i5-7400T CPU @ 2.4GHz"},
            "intel-core-i5-7400t",
        ),
    ],
)
def test_other_machines(tmp_path: Path, files: dict[str, str], kind: str) -> None:
    device = describe_device("it", CPU, host=host(tmp_path, files))
    assert device.kind == kind
    assert device.timing == "it"
    assert [mode.name for mode in device.modes] == ["default"]
    assert device.battery_j is None


def test_memory_is_what_the_container_leaves(tmp_path: Path) -> None:
    groups = {
        "/proc/self/cgroup": "0::/lab/pi\n",
        "/sys/fs/cgroup/lab/memory.max": str(4 << 30),
        "/sys/fs/cgroup/lab/memory.current": str(3 << 30),
        "/sys/fs/cgroup/lab/pi/memory.max": "max",
    }
    free = describe_device("pi", CPU, host=host(tmp_path, groups)).memory_bytes
    assert free == round((1 << 30) * 0.95)
    held = describe_device("pi", CPU, held_bytes=1000, host=host(tmp_path, groups)).memory_bytes
    assert held == round(((1 << 30) + 1000) * 0.95)
    # files that were read once are given up before anybody runs out of memory
    groups["/sys/fs/cgroup/lab/memory.stat"] = "anon 7\ninactive_file 5000\nactive_file 9\n"
    more = describe_device("pi", CPU, host=host(tmp_path, groups)).memory_bytes
    assert more == round(((1 << 30) + 5000) * 0.95)


def test_a_battery_counts_while_it_discharges(tmp_path: Path) -> None:
    supply = "/sys/class/power_supply/BAT0/"
    files = {"type": "Battery", "status": "Discharging", "energy_now": "50000000"}
    machine = host(tmp_path, {supply + name: text for name, text in files.items()})
    assert describe_device("laptop", CPU, host=machine).battery_j == 180000
    (tmp_path / supply.lstrip("/") / "status").write_text("Charging")
    assert describe_device("laptop", CPU, host=machine).battery_j is None


def test_names_become_short() -> None:
    assert slug("AMD Ryzen 5 5600X 6-Core Processor") == "amd-ryzen-5-5600x-6-core"


def test_power_modes_are_found_under_the_names_of_nvpmodel() -> None:
    nx = find_model("NVIDIA Jetson Xavier NX Developer Kit", "MODE_15W_6CORE")
    assert nx is not None
    assert (nx.name, nx.mode) == ("xavier-nx", "15W")
    assert find_model("NVIDIA Jetson Xavier NX Developer Kit", "MODE_8W") is None
    assert find_model("commodore") is None


def optimizer(kind: type[torch.optim.Optimizer]) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    module = torch.nn.Linear(32, 32)
    return module, kind(module.parameters(), lr=0.1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("kind", "ratio"),
    [(torch.optim.SGD, 0.0), (torch.optim.AdamW, 2.0), (torch.optim.Adagrad, 1.0)],
)
def test_an_optimizer_is_tried_on_copies(kind: type[torch.optim.Optimizer], ratio: float) -> None:
    module, made = optimizer(kind)
    before = [p.detach().clone() for p in module.parameters()]
    cost = measure_optimizer(lambda: {"optimizer": made}, module, CPU)
    assert cost.state_ratio == ratio
    assert cost.seconds_per_byte > 0
    assert cost.why_not == ""
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    if kind is not torch.optim.Adagrad:  # which makes its state when it is made
        assert not made.state


def test_an_optimizer_that_cannot_be_made_yet_is_taken_for_adam() -> None:
    def configure() -> None:
        raise RuntimeError("not attached to a Trainer")

    cost = measure_optimizer(configure, torch.nn.Linear(2, 2), CPU)
    assert cost.state_ratio == 2.0
    assert "not attached" in cost.why_not
