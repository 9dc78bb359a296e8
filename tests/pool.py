"""Resident worker processes for tests that need several ranks.

Importing torch and lightning costs seconds per process. So one process, the nursery, does it once
and forks the workers, which stay; only the functions change::

    def ranks_add_up(rank, world_size, start):
        return start + rank

    def test_ranks_add_up(pool):
        assert pool.run(ranks_add_up, 3, 10) == [10, 11, 12]

    test process                       worker (own process group, own log file)
    +-----------+   socket pair        +----------------------------------------+
    | Pool.run  | -- job (pickle) -->  | reader thread: EOF = parent gone = die |
    |           | <-- answer --------- | main thread: environment, function     |
    |           |                      +----------------------------------------+
    |           | -- a socket -------> | nursery: import once, fork, tell how   |
    |           | <-- process id ----- | a worker ended                         |
    +-----------+                      +----------------------------------------+

A worker cannot outlive the test process: the reader thread sees the end of the socket, and on Linux
the kernel kills it too.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import importlib.util
import json
import os
import pickle
import queue
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any

GRACE_S = 5.0  # how long the other ranks may take to end once one has failed


class WorkerError(RuntimeError):
    """A rank raised, died or did not answer in time; the text has its traceback and its output."""


@dataclass(frozen=True)
class Died:
    """Stands in the results for a rank that was allowed to die (``may_die``)."""

    returncode: int


class Pool:
    """Worker processes started when first needed and kept until `close`.

    Args:
        preload: Modules that every worker has imported.
    """

    def __init__(self, preload: Sequence[str] = ("torch", "lightning_edge")) -> None:
        self._workers: list[_Worker] = []
        self._nursery = _Nursery(preload)
        self._folder = tempfile.TemporaryDirectory(prefix="pool-")

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the resident workers, for checks that look for left-over processes."""
        return (self._nursery.process.pid, *(worker.pid for worker in self._workers))

    def run(
        self,
        fn: Callable[..., Any],
        world_size: int,
        *args: Any,
        timeout: float = 45,  # less than pytest-timeout's, which knows less about what hangs
        env: Mapping[str, str | None] | None = None,
        may_die: Collection[int] = (),
    ) -> list[Any]:
        """Call ``fn(rank, world_size, *args)`` on every rank and return the results in rank order.

        Args:
            fn: A module-level function; ``args`` and what it returns must be picklable.
            world_size: Number of ranks.
            timeout: Seconds for all ranks together; who has not answered then is killed, replaced.
            env: Further environment variables; ``None`` removes one. All are restored afterwards.
            may_die: Ranks whose process may end inside ``fn``; their result is `Died`.

        Raises:
            WorkerError: A rank raised, died or hung. The first rank that failed is named first.
        """
        self._start(world_size)
        team = self._workers[:world_size]
        variables = {**_rank_environment(world_size), **(env or {})}
        for rank, worker in enumerate(team):
            worker.send((_reference(fn), rank, world_size, args, variables))
        answers: dict[int, _Answer] = {}
        failures: list[str] = []
        deadline_s = time.monotonic() + timeout
        while len(answers) < world_size:
            waiting = {team[r].connection: r for r in range(world_size) if r not in answers}
            ready = wait(list(waiting), max(0.0, deadline_s - time.monotonic()))
            if not ready:
                break
            for connection in ready:
                rank = waiting[connection]  # type: ignore[index]
                answer = answers[rank] = team[rank].receive(may_die=rank in may_die)
                if not answer.ok:
                    failures.append(
                        f"rank {rank} of {world_size} {answer.text}\n{team[rank].output()}"
                    )
                    deadline_s = min(deadline_s, time.monotonic() + GRACE_S)
        for rank in sorted(set(range(world_size)) - set(answers)):
            after = f"{GRACE_S:g} s after another rank failed" if failures else f"{timeout:g} s"
            stacks = team[rank].stacks()
            failures.append(f"rank {rank} of {world_size} had not returned after {after}\n{stacks}")
            team[rank].kill()
        self._workers = [worker for worker in self._workers if worker.alive()]
        if failures:
            raise WorkerError("\n\n".join(failures))
        return [answers[rank].value for rank in range(world_size)]

    def close(self) -> None:
        """End all workers and remove their log files."""
        for worker in self._workers:
            worker.kill()
        self._workers.clear()
        self._nursery.close()
        self._folder.cleanup()

    def _start(self, count: int) -> None:
        self._workers = [worker for worker in self._workers if worker.alive()]
        while len(self._workers) < count:
            self._workers.append(_Worker(self._nursery, Path(self._folder.name)))


@dataclass(frozen=True)
class _Answer:
    ok: bool
    value: Any = None
    text: str = ""


class _Worker:
    """The test process' end of one worker."""

    def __init__(self, nursery: _Nursery, folder: Path) -> None:
        ours, theirs = socket.socketpair()
        handle, name = tempfile.mkstemp(suffix=".log", dir=folder)
        os.close(handle)
        self.log = Path(name)
        self._nursery = nursery
        self.pid = nursery.fork(theirs, self.log)
        theirs.close()
        self.connection = Connection(ours.detach())

    def alive(self) -> bool:
        return not self.connection.closed and not self.connection.poll()  # it would be the end

    def send(self, job: Any) -> None:
        # Bytes within bytes: its classes can be found only once the worker has our search path.
        self.connection.send_bytes(pickle.dumps((list(sys.path), pickle.dumps(job))))

    def receive(self, may_die: bool) -> _Answer:
        try:
            return _Answer(*pickle.loads(self.connection.recv_bytes()))
        except (EOFError, OSError):
            code = self.kill()
            if may_die:
                return _Answer(ok=True, value=Died(code))
            return _Answer(ok=False, text=f"died (exit status {code})")

    def output(self) -> str:
        text = self.log.read_text(errors="replace")[-4000:].strip()
        return f"its output:\n{text}" if text else ""

    def stacks(self) -> str:
        os.kill(self.pid, signal.SIGUSR1)
        time.sleep(0.3)
        return self.output()

    def kill(self) -> int:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # with whatever it started itself
        self.connection.close()
        return self._nursery.wait(self.pid)


class _Nursery:
    """The test process' end of the process that forks the workers."""

    def __init__(self, preload: Sequence[str]) -> None:
        self._socket, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno()), json.dumps([sys.path, preload])],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # threads would not survive the fork
            start_new_session=True,
        )
        theirs.close()

    def fork(self, theirs: socket.socket, log: Path) -> int:
        socket.send_fds(self._socket, [str(log).encode()], [theirs.fileno()])
        return self._answer()

    def wait(self, pid: int) -> int:
        self._socket.sendall(f"{pid}".encode())
        return self._answer()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._socket.close()

    def _answer(self) -> int:
        answer = self._socket.recv(32)
        if not answer:
            raise WorkerError("the process that forks the workers has died")
        return int(answer)


def free_port() -> int:
    """A port nobody listens on, and none of those that outgoing connections take (from 32768)."""
    for port in random.Random().sample(range(20000, 32000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port among 100 between 20000 and 32000")


def _rank_environment(world_size: int) -> dict[str, str | None]:
    return {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }


def _reference(fn: Callable[..., Any]) -> tuple[str, str, str]:
    file = sys.modules[fn.__module__].__file__
    assert file is not None
    assert "<locals>" not in fn.__qualname__, f"{fn.__qualname__} must be a module-level function"
    return fn.__module__, fn.__qualname__, file


# ---- the nursery's side ----


def _nurse(fd: int, settings: str) -> None:
    _die_with_the_parent()
    sys.path[:], preload = json.loads(settings)
    for name in preload:
        with contextlib.suppress(Exception):  # a test that needs it will say what is wrong
            importlib.import_module(name)
    parent = socket.socket(fileno=fd)
    while True:
        request, fds, _, _ = socket.recv_fds(parent, 4096, 1)
        if not request:
            return
        if not fds:
            _, status = os.waitpid(int(request), 0)
            parent.sendall(f"{os.waitstatus_to_exitcode(status)}".encode())
            continue
        pid = os.fork()
        if pid == 0:
            os.setsid()
            parent.close()
            _work(fds[0], request.decode())
        os.close(fds[0])
        parent.sendall(f"{pid}".encode())


def _die_with_the_parent() -> None:
    if sys.platform == "linux":
        # PR_SET_PDEATHSIG works even when native code holds the GIL for ever.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


# ---- the worker's side ----


def _load(reference: tuple[str, str, str]) -> Callable[..., Any]:
    """Find a function by module name, or by file where the name leads to another file."""
    name, qualname, file = reference
    module: ModuleType | None = None
    with contextlib.suppress(ImportError):
        module = importlib.import_module(name)
    if module is None or not os.path.samefile(module.__file__ or os.devnull, file):
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


@contextlib.contextmanager
def _surroundings(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set what a fresh process would have, and restore what a careless function changed."""
    before, folder = dict(os.environ), os.getcwd()
    for name, value in variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        _fresh_torch()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        os.chdir(folder)
        if "torch" in sys.modules:
            _fresh_torch()


def _fresh_torch() -> None:
    import torch  # here, so that tests that need no torch do not wait for its import

    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    if torch.are_deterministic_algorithms_enabled():  # setting it imports half of torch
        torch.use_deterministic_algorithms(False)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _do(path: list[str], job: bytes) -> bytes:
    sys.path[:] = path
    try:
        reference, rank, world_size, args, variables = pickle.loads(job)
        fn = _load(reference)
        with _surroundings({"RANK": str(rank), "LOCAL_RANK": str(rank), **variables}):
            return pickle.dumps((True, fn(rank, world_size, *args)))
    except BaseException as error:  # SystemExit is a failure of the function too
        last = traceback.format_exception_only(type(error), error)[-1].strip()
        return pickle.dumps((False, None, f"raised {last}\n{traceback.format_exc()}"))


def _work(fd: int, log: str) -> None:
    _die_with_the_parent()
    log_fd = os.open(log, os.O_RDWR | os.O_APPEND)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    faulthandler.register(signal.SIGUSR1, file=log_fd, all_threads=True)
    connection = Connection(fd)
    jobs: queue.SimpleQueue[tuple[list[str], bytes]] = queue.SimpleQueue()

    def read() -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                jobs.put(pickle.loads(connection.recv_bytes()))
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=read, daemon=True).start()
    while True:
        path, job = jobs.get()
        os.ftruncate(log_fd, 0)
        answer = _do(path, job)
        sys.stdout.flush()
        sys.stderr.flush()
        connection.send_bytes(answer)
        gc.collect()


if __name__ == "__main__":
    _nurse(int(sys.argv[1]), sys.argv[2])
