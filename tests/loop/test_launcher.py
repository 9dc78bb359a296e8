from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from types import SimpleNamespace

import psutil
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator

from lightning_edge.errors import ConfigMismatchError, UnsupportedError
from lightning_edge.loop import launcher
from lightning_edge.loop.environment import EdgeEnvironment
from lightning_edge.loop.launcher import CopyLauncher, ScriptLauncher, choose_method, make_launcher
from tests.loop.test_environment import VARIABLES


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def make_strategy(processes=2):
    return SimpleNamespace(
        num_processes=processes,
        cluster_environment=EdgeEnvironment(),
        accelerator=CPUAccelerator(),
        local_rank=0,
    )


@pytest.mark.parametrize(
    ("interactive", "script", "can_fork", "method"),
    [
        (False, "train.py", True, "script"),
        (False, "train.py", False, "script"),
        (True, "pytest", True, "fork"),
        (False, None, True, "fork"),
        (True, "pytest", False, "spawn"),
    ],
)
def test_how_processes_start(interactive, script, can_fork, method):
    assert choose_method(interactive, script, can_fork)[0] == method


def test_no_way_to_start_processes_is_told():
    with pytest.raises(UnsupportedError, match="start it with `python file.py`"):
        choose_method(False, None, False)


def test_nothing_is_started_for_one_device_or_when_processes_exist(monkeypatch):
    assert make_launcher(make_strategy(1), EdgeEnvironment(), 1) is None
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert make_launcher(make_strategy(2), EdgeEnvironment(), 2) is None  # devices=2, torchrun of 3
    monkeypatch.setenv("LIGHTNING_EDGE_PARENT", str(os.getpid()))
    assert make_launcher(make_strategy(3), EdgeEnvironment(), 3) is None
    with pytest.raises(ConfigMismatchError, match="devices=2"):
        make_launcher(make_strategy(2), EdgeEnvironment(), 2)


def test_a_script_is_run_again_and_pytest_is_not(monkeypatch):
    assert isinstance(make_launcher(make_strategy(), EdgeEnvironment(), 2), CopyLauncher)
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    assert isinstance(make_launcher(make_strategy(), EdgeEnvironment(), 2), ScriptLauncher)


# -- copies of this process ----------------------------------------------------------------------


def who_am_i():
    environment = EdgeEnvironment()
    big = torch.ones(300_000).relu().sum()  # hangs in a copy if it may use threads
    return (
        environment.global_rank(),
        environment.world_size(),
        environment.main_address,
        environment.main_port > 0,
        torch.get_num_threads(),
        big.item(),
    )


def test_copies_know_who_they_are_and_rank_0_answers(monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "29400")
    before = dict(os.environ)
    found = CopyLauncher(make_strategy(3), "fork").launch(who_am_i)
    assert found == (0, 3, "127.0.0.1", True, 1, 300_000.0)
    assert dict(os.environ) == before


def fail_on_rank_1():
    if os.environ["RANK"] == "1":
        raise ZeroDivisionError("rank 1 had enough")
    time.sleep(100)


def test_a_failing_copy_ends_the_others_with_its_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # torch leaves a file there
    starter = CopyLauncher(make_strategy(), "fork")
    start = time.monotonic()
    with pytest.raises(Exception, match="rank 1 had enough"):
        starter.launch(fail_on_rank_1)
    assert time.monotonic() - start < 50
    assert not any(process.is_alive() for process in starter.procs)


def die_on_rank_1():
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(100)


def test_a_dying_copy_ends_the_others():
    starter = CopyLauncher(make_strategy(), "fork")
    with pytest.raises(Exception, match="SIGKILL"):
        starter.launch(die_on_rank_1)
    assert not any(process.is_alive() for process in starter.procs)


def test_the_module_that_comes_back_has_no_placeholders(tmp_path):
    from torch._subclasses.fake_tensor import FakeTensorMode

    module = torch.nn.Linear(2, 2)
    module.register_parameter("bias", torch.nn.Parameter(FakeTensorMode().from_tensor(module.bias)))
    saved = {}
    strategy = make_strategy()
    strategy.checkpoint_io = SimpleNamespace(
        save_checkpoint=lambda state, path: saved.update(state)
    )
    from lightning.pytorch.trainer.states import TrainerFn

    run = SimpleNamespace(
        lightning_module=module,
        checkpoint_callback=None,
        callback_metrics={},
        state=SimpleNamespace(fn=TrainerFn.FITTING),
    )
    starter = CopyLauncher(strategy, "fork")
    found = starter._collect_rank_zero_results(run, None)
    os.rmdir(os.path.dirname(found.weights_path))
    assert list(saved) == ["weight"]
    assert list(module.state_dict()) == ["weight", "bias"]


# -- the script again ----------------------------------------------------------------------------


def sleeper(seconds=60.0, code=0):
    text = f"import time, sys; time.sleep({seconds}); sys.exit({code})"
    return subprocess.Popen([sys.executable, "-S", "-c", text])


@pytest.fixture
def script(monkeypatch):
    """A script launcher whose processes are light ones, and which cannot end this process."""
    made = ScriptLauncher(EdgeEnvironment(), 3, 1)
    made.exits = []
    made.start = lambda: [sleeper(), sleeper()]

    def call():
        os.environ.update(WORLD_SIZE="3", LOCAL_RANK="0", NODE_RANK="0", OMP_NUM_THREADS="1")
        made.procs = made.start()

    monkeypatch.setattr(made, "_call_children_scripts", call)
    monkeypatch.setattr(launcher.os, "_exit", made.exits.append)
    monkeypatch.setattr(launcher, "GRACE_S", 0.3)
    before = dict(os.environ)
    yield made
    os.environ.clear()
    os.environ.update(before)
    launcher.atexit.unregister(launcher.wait_for)
    launcher.stop(made.procs)


def test_the_first_process_is_rank_0_and_starts_the_others_once(script):
    def function(x, y=0):
        environment = EdgeEnvironment()
        return environment.global_rank(), environment.world_size(), x + y

    assert script.launch(function, 1, y=2) == (0, 3, 3)
    processes = list(script.procs)
    assert script.launch(function, 5) == (0, 3, 5)
    assert script.procs == processes
    assert all(process.poll() is None for process in processes)
    assert os.environ["LIGHTNING_EDGE_PARENT"] == str(os.getpid())


def test_a_failed_process_ends_all_while_this_one_waits(script, capfd, monkeypatch):
    script.start = lambda: [sleeper(), sleeper(0, code=3)]
    ended = threading.Event()
    monkeypatch.setattr(launcher.os, "_exit", lambda code: ended.set())

    def function():
        return ended.wait(30)

    assert script.launch(function)
    assert all(process.poll() is not None for process in script.procs)
    assert "rank 2" in (text := capfd.readouterr().err)
    assert "exit code 3" in text


def test_a_process_that_fails_after_its_work_ends_nobody(script):
    script.start = lambda: [sleeper(), sleeper(0, code=3)]
    script.launch(lambda: None)
    script.procs[1].wait()
    time.sleep(0.5)
    assert script.exits == []
    assert script.procs[0].poll() is None


def test_the_end_of_the_script_waits_for_the_others(monkeypatch, capfd):
    monkeypatch.setattr(launcher, "NOTICE_S", 0.1)
    process = sleeper(1.0)
    launcher.wait_for([process])
    assert process.returncode == 0
    assert (
        f"waits for the other processes that it started ({process.pid})" in capfd.readouterr().err
    )


def test_after_an_error_the_others_have_little_time(monkeypatch, capfd):
    monkeypatch.setattr(sys, "last_value", ValueError("mine"), raising=False)
    monkeypatch.setattr(launcher, "GRACE_S", 0.1)
    processes = [sleeper(60), sleeper(60)]
    launcher.wait_for(processes)
    assert [process.returncode for process in processes] == [-signal.SIGTERM] * 2


def test_an_orphan_ends_itself(monkeypatch, capfd):
    exits = []
    monkeypatch.setattr(launcher.os, "_exit", exits.append)
    monkeypatch.setattr(launcher, "ORPHAN_S", 0.0)
    parent = sleeper(60)
    orphan = threading.Thread(target=launcher._end_after, args=(parent.pid,))
    orphan.start()
    assert exits == []
    parent.kill()
    parent.wait()
    orphan.join(30)
    assert exits == [1]
    assert f"process that started it ({parent.pid}) is gone" in capfd.readouterr().err


# -- with real scripts ---------------------------------------------------------------------------

SCRIPT = """
    import os, sys, time
    from lightning_edge.loop.environment import EdgeEnvironment
    from lightning_edge.loop.launcher import make_launcher

    def work(what):
        environment = EdgeEnvironment()
        rank = environment.global_rank()
        with open(f"{what}-{rank}", "w") as file:
            file.write(f"{os.getpid()} {environment.world_size()} {environment.main_port}")
        if what == sys.argv[1] == "die" and rank == 1:
            os._exit(7)
        if what == sys.argv[1]:
            time.sleep(200)

    environment = EdgeEnvironment()
    environment.set_world_size(3)
    starter = make_launcher(None, environment, 3)
    for what in ("first", "die", "wait"):
        work(what) if starter is None else starter.launch(work, what)
"""


def start(folder, mode):
    path = folder / "script.py"
    path.write_text(textwrap.dedent(SCRIPT))
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    root = os.path.dirname(os.path.dirname(launcher.__file__))
    environment["PYTHONPATH"] = os.path.dirname(root)
    return subprocess.Popen(
        [sys.executable, str(path), mode],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def read(folder, what, ranks, patience_s=150):
    deadline = time.monotonic() + patience_s
    paths = [folder / f"{what}-{rank}" for rank in ranks]
    while not all(path.exists() and path.read_text().count(" ") == 2 for path in paths):
        assert time.monotonic() < deadline, [path.name for path in paths if not path.exists()]
        time.sleep(0.1)
    return [path.read_text().split() for path in paths]


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("mode", ["none", "die"])
def test_a_real_script_runs_in_three_processes(tmp_path, mode):
    first = start(tmp_path, mode)
    try:
        _, text = first.communicate(timeout=190)
        found = read(tmp_path, "first", range(3), 0)
        assert len({pid for pid, _, _ in found}) == 3
        assert {(size, port) for _, size, port in found} == {("3", found[0][2])}
        if mode == "none":
            assert first.returncode == 0, text
            read(tmp_path, "wait", range(3), 0)
        else:
            assert first.returncode == 1
            assert "rank 1" in text
            assert "exit code 7" in text
        assert not any(psutil.pid_exists(int(pid)) for pid, _, _ in found)
    finally:
        first.kill()


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_no_process_outlives_the_one_that_started_it(tmp_path):
    first = start(tmp_path, "wait")
    try:
        pids = [int(pid) for pid, _, _ in read(tmp_path, "wait", range(3))]
        first.kill()
        _, text = first.communicate(timeout=30)
        deadline = time.monotonic() + 20
        while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(psutil.pid_exists(pid) for pid in pids)
        assert f"the process that started it ({pids[0]}) is gone" in text
    finally:
        first.kill()
