"""Each kind of leak is seen: the fixtures of conftest are worth something only if they fail."""

import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch

from tests import hygiene

LEAKS = {
    "process": ("import subprocess, sys", "subprocess.Popen([sys.executable, '-c', WAIT])"),
    "thread": (
        "import threading",
        "threading.Thread(target=threading.Event().wait, daemon=True).start()",
    ),
    "environment variable": ("import os", "os.environ['LEFT'] = 'behind'"),
    "process group": (
        "import torch.distributed as d",
        "d.init_process_group('gloo', store=d.HashStore(), rank=0, world_size=1)",
    ),
    "socket": ("import socket", "KEEP.append(socket.create_server(('127.0.0.1', 0)))"),
    "file": ("import tempfile", "open(tempfile.gettempdir() + '/left', 'w').close()"),
    "setting": ("import torch", "torch.set_num_threads(2)"),
}


@pytest.mark.timeout(200)
def test_every_leak_fails_its_test_and_only_that(tmp_path):
    lines = ["WAIT = 'import time; time.sleep(5)'", "KEEP = []"]
    for number, (imports, leak) in enumerate(LEAKS.values()):
        lines += [
            imports,
            f"def test_{number}():",
            f"    {leak}",
            f"def test_{number}_clean(): pass",
        ]
    (tmp_path / "test_leaks.py").write_text("\n".join(lines))
    (tmp_path / "conftest.py").write_text("from tests import hygiene; hygiene.GRACE_S = 0.1")
    root = Path(__file__).parents[2]
    settings = [
        "-c",
        str(root / "pyproject.toml"),
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
    ]
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            *settings,
            "--basetemp",
            tmp_path / "base",
            tmp_path,
        ],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert f"{2 * len(LEAKS)} passed, {len(LEAKS)} errors" in run.stdout, run.stdout + run.stderr
    for number, kind in enumerate(LEAKS):
        report = run.stdout.split(f"ERROR at teardown of test_{number} ")[1]
        assert report.split("the test left behind\n  ")[1].startswith(kind), report


def test_a_thread_that_ends_by_itself_is_no_leak():
    before = hygiene.threads()
    ended = threading.Event()
    threading.Thread(target=ended.wait).start()
    assert len(set(hygiene.threads()) - set(before)) == 1
    threading.Timer(0.1, ended.set).start()
    assert hygiene.leaks(hygiene.Trace("thread", hygiene.threads), before) == []


def test_a_changed_variable_counts_as_one(monkeypatch):
    monkeypatch.setenv("SOME_VALUE", "1")
    before = hygiene.variables()
    monkeypatch.setenv("SOME_VALUE", "2")
    assert set(hygiene.variables()) - set(before) == {"SOME_VALUE=2"}


def test_sockets_are_seen_with_their_port():
    before = hygiene.sockets()
    with socket.create_server(("127.0.0.1", 0)) as server:
        (new,) = set(hygiene.sockets()) - set(before)
        assert new.startswith("LISTEN")
        assert f"port={server.getsockname()[1]}" in new


def test_tests_run_on_one_thread_with_their_own_temporary_directory():
    assert torch.get_num_threads() == 1
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert Path(tempfile.gettempdir()).name.startswith("scratch")


@pytest.mark.parametrize("again", [1, 2])
def test_random_numbers_do_not_depend_on_the_order_of_tests(again):
    assert torch.rand(1).item() == pytest.approx(0.4962566)
