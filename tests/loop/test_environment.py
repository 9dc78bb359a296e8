from __future__ import annotations

import random
import socket
import subprocess
import sys
import textwrap
from datetime import timedelta
from types import ModuleType

import lightning as L
import lightning.fabric.utilities.rank_zero as fabric_rank_zero
import lightning.pytorch.utilities.rank_zero as pytorch_rank_zero
import lightning_utilities.core.rank_zero as core_rank_zero
import pytest
import torch
from lightning.fabric.strategies.registry import _StrategyRegistry

from lightning_edge.errors import ConfigMismatchError, UnsupportedError
from lightning_edge.loop.environment import (
    EdgeEnvironment,
    device_name,
    free_port,
    refuse_pytorch_lightning,
    root_device,
    set_rank_zero,
    unique_names,
)

VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "NODE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "LIGHTNING_EDGE_PARENT",
    "LIGHTNING_EDGE_DEVICE",
)


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def set_variables(monkeypatch, **values):
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


def test_torchrun_says_who_this_is(monkeypatch):
    # Three processes on one machine and this one alone on another.
    set_variables(
        monkeypatch,
        RANK=3,
        WORLD_SIZE=4,
        LOCAL_RANK=0,
        GROUP_RANK=1,
        MASTER_ADDR="orin",
        MASTER_PORT=29400,
    )
    environment = EdgeEnvironment()
    environment.set_world_size(1)  # Trainer(devices=1) does not matter
    assert EdgeEnvironment.detect()
    assert environment.creates_processes_externally
    assert (environment.global_rank(), environment.world_size()) == (3, 4)
    assert (environment.local_rank(), environment.node_rank()) == (0, 1)
    assert (environment.main_address, environment.main_port) == ("orin", 29400)
    environment.validate_settings(num_devices=1, num_nodes=1)


def test_without_anything_there_are_as_many_processes_as_devices():
    environment = EdgeEnvironment()
    environment.set_world_size(3)
    assert not EdgeEnvironment.detect()
    assert not environment.creates_processes_externally
    assert (environment.global_rank(), environment.world_size()) == (0, 3)
    assert environment.main_address == "127.0.0.1"
    assert environment.main_port == environment.main_port > 0


@pytest.mark.parametrize("given", ["RANK", "WORLD_SIZE"])
def test_half_an_environment_is_refused(monkeypatch, given):
    monkeypatch.setenv(given, "1")
    with pytest.raises(ConfigMismatchError, match=f"sets {given}=1 but no .*torchrun"):
        EdgeEnvironment().world_size()


def test_a_rank_that_is_no_number_is_refused(monkeypatch):
    set_variables(monkeypatch, RANK="first", WORLD_SIZE=2)
    with pytest.raises(ConfigMismatchError, match="RANK should be a whole number, and is 'first'"):
        EdgeEnvironment().global_rank()


def test_a_started_process_takes_its_rank_from_the_launcher(monkeypatch):
    set_variables(monkeypatch, LIGHTNING_EDGE_PARENT=1, LOCAL_RANK=2, WORLD_SIZE=3)
    monkeypatch.setenv("RANK", "removed afterwards")
    monkeypatch.delenv("RANK")
    environment = EdgeEnvironment()
    assert (environment.global_rank(), environment.world_size()) == (2, 3)
    environment.validate_settings(num_devices=3, num_nodes=1)
    with pytest.raises(ConfigMismatchError, match="started 3 local processes.*devices=2"):
        environment.validate_settings(num_devices=2, num_nodes=1)


def test_processes_that_are_surely_coming_are_given_time(monkeypatch):
    minute, hour = timedelta(minutes=1), timedelta(hours=1)
    assert EdgeEnvironment().patience(minute) == minute
    monkeypatch.setenv("LIGHTNING_EDGE_PARENT", "1")
    assert EdgeEnvironment().patience(minute) == timedelta(minutes=30)
    assert EdgeEnvironment().patience(hour) == hour


def test_a_free_port_is_not_one_for_outgoing_connections():
    numbers = random.getstate()
    ports = {free_port() for _ in range(5)}
    assert random.getstate() == numbers
    assert len(ports) > 1
    assert all(20000 <= port < 32000 for port in ports)
    with socket.socket() as listener:
        listener.bind(("", ports.pop()))


def test_ranks_are_set_wherever_lightning_looks():
    before = core_rank_zero.rank_zero_only.rank
    try:
        set_rank_zero(7)
        for module in (core_rank_zero, fabric_rank_zero, pytorch_rank_zero):
            assert module.rank_zero_only.rank == 7
    finally:
        set_rank_zero(before)


def test_devices_have_names(monkeypatch):
    assert device_name()
    monkeypatch.setenv("LIGHTNING_EDGE_DEVICE", " orin ")
    assert device_name() == "orin"


@pytest.mark.parametrize(
    ("names", "unique"),
    [
        (["a", "b"], ("a", "b")),
        (["a", "b", "a"], ("a-0", "b", "a-1")),
        (["a", "a-0", "a"], ("a-1", "a-0", "a-2")),
        (["a-0", "a", "a", "a-0"], ("a-0-0", "a-1", "a-2", "a-0-1")),
        ([], ()),
    ],
)
def test_names_become_unique(names, unique):
    assert unique_names(names) == unique
    assert len(set(unique)) == len(names)


def test_processes_of_a_machine_use_its_devices_in_turn():
    gpus = [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert [root_device(gpus, rank).index for rank in range(3)] == [0, 1, 0]
    assert root_device(None, 2) == torch.device("cpu")


def test_the_registry_of_the_other_lightning_gets_a_sentence(monkeypatch):
    before = set(sys.modules)
    refuse_pytorch_lightning()
    assert "pytorch_lightning" not in set(sys.modules) - before  # not imported for this

    registry = _StrategyRegistry()
    strategies = ModuleType("pytorch_lightning.strategies")
    strategies.StrategyRegistry = registry
    monkeypatch.setitem(sys.modules, "pytorch_lightning", ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, "pytorch_lightning.strategies", strategies)
    refuse_pytorch_lightning()
    refuse_pytorch_lightning()
    with pytest.raises(UnsupportedError, match="write `import lightning as L`"):
        registry.get("edge_collab")


@pytest.mark.slow
@pytest.mark.parametrize("first", ["pytorch_lightning", "lightning_edge"])
def test_the_other_lightning_is_answered_in_one_sentence(first):
    # In a process of its own: the two copies of Lightning share global state.
    script = f"""
        import {first}
        import sys, lightning_edge
        from lightning_edge.loop.environment import refuse_pytorch_lightning
        assert ("pytorch_lightning" in sys.modules) == ({first!r} == "pytorch_lightning")
        import pytorch_lightning as pl
        refuse_pytorch_lightning()
        try:
            pl.Trainer(strategy="edge_collab", accelerator="cpu")
        except lightning_edge.errors.UnsupportedError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    assert "write `import lightning as L`" in done.stdout


def test_our_string_is_known_to_lightning():
    import lightning_edge  # noqa: F401

    assert "edge_collab" in L.pytorch.strategies.StrategyRegistry.available_strategies()
