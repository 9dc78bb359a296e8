"""The pool itself: results, errors, hangs, deaths, and that nothing is left behind."""

import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from tests.pool import Died, Pool, WorkerError

Point = namedtuple("Point", "x y")


def describe(rank, world_size, point):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")
    return (
        [os.environ[name] for name in names],
        point.x + rank,
        os.environ.get("EXTRA"),
    )


def change_environment(rank, world_size):
    os.environ["LEFT"] = "behind"
    return os.getpid()


def see_environment(rank, world_size):
    return os.environ.get("LEFT"), os.environ.get("RANK")


def raise_on_one(rank, world_size):
    print("some output of rank", rank)
    if rank == 1:
        raise ValueError("row 7 is missing")


def process_id(rank, world_size):
    return os.getpid()


def is_zombie(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def hang_on_one(rank, world_size):
    if rank == 1:
        time.sleep(1000)
    return os.getpid()


def die_on_one(rank, world_size):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def test_every_rank_gets_its_arguments_and_environment(pool):
    results = pool.run(describe, 2, Point(10, 0), env={"EXTRA": "yes"})
    for rank, (variables, x, extra) in enumerate(results):
        assert variables == [str(rank), str(rank), "2", "127.0.0.1"]
        assert x == 10 + rank
        assert extra == "yes"


def test_workers_stay_and_are_restored(pool):
    first = pool.run(change_environment, 2)
    assert pool.run(see_environment, 2, env={"RANK": None}) == [(None, None)] * 2
    assert pool.run(change_environment, 2) == first
    assert set(first) <= set(pool.pids)


def test_an_exception_names_rank_traceback_and_output(pool):
    with pytest.raises(WorkerError) as caught:
        pool.run(raise_on_one, 2)
    text = str(caught.value)
    assert text.startswith("rank 1 of 2 raised ValueError: row 7 is missing")
    assert "in raise_on_one" in text
    assert "some output of rank 1" in text


def test_a_hang_is_ended_shown_and_replaced():
    own = Pool(preload=())
    try:
        before = tuple(own.run(process_id, 2))
        with pytest.raises(WorkerError, match="rank 1 of 2 had not returned after 0.5 s") as caught:
            own.run(hang_on_one, 2, timeout=0.5)
        assert "in hang_on_one" in str(caught.value)
        assert not psutil.pid_exists(before[1])
        after = own.run(process_id, 2)
        assert after[0] == before[0] != after[1]
        everyone = (*before, *after, *own.pids)
    finally:
        own.close()
    assert not [pid for pid in everyone if psutil.pid_exists(pid) and not is_zombie(pid)]


def test_a_death_is_reported_unless_it_is_wanted():
    own = Pool(preload=())
    try:
        assert own.run(die_on_one, 2, may_die=[1]) == ["alive", Died(-signal.SIGKILL)]
        with pytest.raises(WorkerError, match=r"rank 1 of 2 died \(exit status -9\)"):
            own.run(die_on_one, 2)
    finally:
        own.close()


def test_workers_die_with_their_parent():
    script = """
import os, signal
from tests.pool import Pool
from tests.test_pool import Point, describe
pool = Pool(preload=())
pool.run(describe, 1, Point(0, 0))
print(*pool.pids, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).parents[1]
    parent = subprocess.run([sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE)
    pids = [int(pid) for pid in parent.stdout.split()]
    assert len(pids) == 2
    deadline_s = time.monotonic() + 10
    while left := [pid for pid in pids if psutil.pid_exists(pid) and not is_zombie(pid)]:
        assert time.monotonic() < deadline_s, f"processes {left} outlived their parent"
        time.sleep(0.05)
