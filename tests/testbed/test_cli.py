from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_edge.testbed import PoolSpec
from lightning_edge.testbed.boards import known_boards
from lightning_edge.testbed.cli import main
from lightning_edge.testbed.machine import Machine
from lightning_edge.testbed.resolve import resolve
from lightning_edge.testbed.slots import RUN, Slot
from tests.testbed.conftest import traces

QUICK = str(Path(__file__).parent / "programs" / "quick.py")
POOLS = sorted((Path(__file__).parents[2] / "conf" / "testbed").glob("*.yaml"))


def test_every_problem_of_a_command_line_is_named_at_once(capsys):
    arguments = ["run", "--device", "cpu=x", "--device", "colour=1", "--medium", "no.csv"]
    assert main([*arguments, "--fault", "boom", "--", "true"]) == 2
    said = capsys.readouterr().err
    assert "4 problems" in said
    for part in ("--device cpu=x", "'colour'", "no.csv", "the fault 'boom'"):
        assert part in said


def test_times_are_written_as_in_faults(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--device", "cpu=10%", "--timeout", "soon", "--", "true"])
    assert "'soon' is not a quantity; write 5ms or 2s" in capsys.readouterr().err


def test_without_root_it_says_so_plainly(monkeypatch, capsys):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("sys.platform", "linux")
    assert main(["run", "--device", "cpu=10%", "--", "true"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("lightning-edge testbed: the testbed: the testbed needs root")
    assert "sudo" in said
    assert main(["clean"]) == 2


def test_an_unknown_pool_is_answered_with_the_known_ones(capsys):
    assert main(["run", "--pool", "castle", "--", "true"]) == 2
    said = capsys.readouterr().err
    assert all(path.stem in said for path in POOLS)


def test_boards_are_listed_with_the_worth_of_their_numbers(capsys):
    assert main(["boards"]) == 0
    said = capsys.readouterr().out
    for board in known_boards():
        assert board.title in said
    assert "measured" in said
    assert "assumed" in said


@pytest.mark.parametrize("path", POOLS, ids=lambda path: path.stem)
def test_pools_that_come_along_are_possible_on_small_and_large_machines(path):
    pool = PoolSpec.from_yaml(path)
    for machine in (Machine(2, 2**34, 60.0), Machine(16, 2**36, 150.0)):
        found = resolve(pool, machine)
        assert found.slowdown >= 1
        assert all(device.cores <= 1 for device in found.devices)


@pytest.mark.root
@pytest.mark.multiproc
def test_a_run_prints_under_names_and_writes_json(tmp_path, capfd):
    arguments = [
        *("run", "--device", "name=left,cpu=30%,memory=500M,link=50mbit,power=2W-8W"),
        *("--device", "pi5,name=right-one", "--fault", "slow:left=50%@0s"),
        *("--timeout", "0.5min", "--json", str(tmp_path / "run.json")),
    ]
    assert main([*arguments, "--", "sh", "-c", "echo rank $RANK; echo oops >&2"]) == 0
    said = capfd.readouterr().out
    assert "[left]      rank 0" in said
    assert "[right-one] rank 1" in said
    assert said.count("oops") == 2
    assert "emulated from CPU time and bytes, not measured" in said
    assert "fault slow:left=50%@0s: at 0." in said
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["ok"] is True
    assert found["slowdown"] >= 1
    assert list(found["devices"]) == ["left", "right-one"]
    assert found["devices"]["left"]["energy_j"] > 0


@pytest.mark.root
@pytest.mark.multiproc
def test_a_failure_is_told_and_shows_in_the_exit_status(capfd):
    assert main(["run", "--device", "cpu=30%", "--", "sh", "-c", "echo why; exit 3"]) == 1
    said = capfd.readouterr()
    assert "device0 (rank 0): failed, exit code 3" in said.err
    assert "    why" in said.err


@pytest.mark.root
@pytest.mark.multiproc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_removes_everything(number, slots):
    command = [sys.executable, QUICK, "run", "--device", "cpu=30%"]
    shell = "trap 'echo asked; exit' TERM; echo slot $LIGHTNING_EDGE_TESTBED; sleep 1000 & wait"
    process = subprocess.Popen(
        [*command, "--", "sh", "-c", shell],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    slot = next(Slot(int(line.split()[2])) for line in process.stdout if " slot " in line)
    slots.append(slot)
    assert traces(slot)
    process.send_signal(number)
    said, problems = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "[device0] asked" in said
    assert "interrupted, all removed" in problems
    assert not (RUN / str(slot.number)).exists() or (slot.folder / "owner.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_module_can_be_run():
    command = [sys.executable, "-m", "lightning_edge.testbed", "boards"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0
    assert "orin-nano:15W *" in done.stdout
