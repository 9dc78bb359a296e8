"""Local processes for ``Trainer(devices=N)``, when nothing else has started them.

    a script                   the script is run again N-1 times, as Lightning's own strategies do
    a notebook, pytest,        there is no script that could be run again: the processes are
    python -c, the prompt      copies of this one (fork), where all that is defined here is known

Nobody waits for the dead: a process that fails ends the others at once, with its reason, and no
process outlives the one that started it.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import lightning.pytorch as pl
import psutil
import torch
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.fabric.utilities.imports import _IS_INTERACTIVE
from lightning.pytorch.strategies.launchers import (
    _MultiProcessingLauncher,
    _SubprocessScriptLauncher,
)

from lightning_edge.errors import UnsupportedError
from lightning_edge.loop.environment import PARENT_VARIABLE, EdgeEnvironment
from lightning_edge.replicate.placeholder import is_fake

__all__: list[str] = []

log = logging.getLogger(__name__)

GRACE_S = 5.0  # after one process failed: time for the others to say why they end
ORPHAN_S = 1.0  # after the first process is gone: time for the connections to say so
FAREWELL_S = 600.0  # after this script's end: time for the others to reach theirs
NOTICE_S = 30.0  # of these, until the user is told what is being waited for
POLL_S = 0.2
UNFINISHED_S = 120.0  # the most that the end of a process is put off

_may_end = threading.Event()
_may_end.set()

Method = Literal["script", "fork", "spawn"]


@contextlib.contextmanager
def not_ended_by_others() -> Iterator[None]:
    """Nobody ends this process meanwhile because another process has ended."""
    _may_end.clear()
    try:
        yield
    finally:
        _may_end.set()


def wait_until_it_may_end() -> None:
    """Wait until this process has finished what must not be cut short."""
    _may_end.wait(UNFINISHED_S)


def make_launcher(
    strategy: pl.strategies.ParallelStrategy, environment: EdgeEnvironment, num_processes: int
) -> ScriptLauncher | CopyLauncher | None:
    """The launcher for this process; None if nothing is to be started.

    Args:
        strategy: Who trains; has `num_processes`.
        environment: Tells whether the processes exist.
        num_processes: How many this machine is to have.

    Raises:
        UnsupportedError: There is no way to start them from here.
    """
    watch_parent()
    if environment.creates_processes_externally:
        environment.validate_settings(num_processes, 1)
        return None
    if num_processes == 1:
        return None
    gpu_in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    method, reason = choose_method(
        interactive=_IS_INTERACTIVE or "PYTEST_CURRENT_TEST" in os.environ,
        script=_script(),
        can_fork=hasattr(os, "fork") and not gpu_in_use,
    )
    log.info("Starting %d local processes by %s: %s.", num_processes, method, reason)
    if method == "script":
        return ScriptLauncher(environment, num_processes, 1)
    return CopyLauncher(strategy, method)


def choose_method(interactive: bool, script: str | None, can_fork: bool) -> tuple[Method, str]:
    """How to start local processes, and why so.

    Args:
        interactive: In a notebook, at the prompt, or in a test that pytest runs.
        script: The file or module that Python was started with.
        can_fork: Whether this process may be copied.

    Raises:
        UnsupportedError: Nothing works.
    """
    if not interactive and script is not None:
        return "script", f"{script} can be run again"
    place = "this is an interactive session or a test" if interactive else "there is no script"
    if can_fork:
        return "fork", f"{place}, so the processes are copies of this one"
    if interactive and script is not None and not _IS_INTERACTIVE:
        return "spawn", "a GPU is in use here already, which a copy of this process could not use"
    raise UnsupportedError(
        f"several local processes cannot be started from here: {place}, and this process cannot be"
        " copied because the GPU is in use or the system has no fork. Write the training to a file"
        " and start it with `python file.py`, or call nothing of torch.cuda before fit."
    )


def _script() -> str | None:
    main = sys.modules["__main__"]
    if getattr(main, "__spec__", None) is not None:
        return f"python -m {main.__spec__.name}"  # type: ignore[union-attr]
    path = getattr(main, "__file__", None)
    return path if path is not None and os.path.isfile(path) else None


class ScriptLauncher(_SubprocessScriptLauncher):
    """Runs the script again in N-1 processes; this one is rank 0."""

    def launch(
        self,
        function: Callable[..., Any],
        *args: Any,
        trainer: pl.Trainer | None = None,
        **kwargs: Any,
    ) -> Any:
        """Start the processes, the first time, and call the function.

        Args:
            function: What the Trainer is about to do.
            *args: For the function.
            trainer: Not used.
            **kwargs: For the function.
        """
        if not self.cluster_environment.creates_processes_externally:
            os.environ[PARENT_VARIABLE] = str(os.getpid())
            os.environ["LOCAL_WORLD_SIZE"] = str(self.num_processes)
            # before the others start, as they take their number of threads from here
            _set_num_threads_if_needed(num_processes=self.num_processes)
            self._call_children_scripts()
            os.environ["RANK"] = "0"  # the others take theirs from LOCAL_RANK
            atexit.register(wait_for, self.procs)
        busy = threading.Event()
        busy.set()
        for rank, process in enumerate(self.procs, start=1):
            watch = threading.Thread(
                target=end_with, args=(process, rank, self.procs, busy), daemon=True
            )
            watch.start()
        try:
            return function(*args, **kwargs)
        finally:
            busy.clear()


def end_with(
    process: subprocess.Popen[Any],
    rank: int,
    processes: list[subprocess.Popen[Any]],
    busy: threading.Event,
) -> None:
    """Wait for a process; if it fails while this one is busy, end this one and the others too.

    This process usually learns it first from its connections, and says more about it; it has
    `GRACE_S` for that.
    """
    code = process.wait()
    if code == 0:
        return
    deadline = time.monotonic() + GRACE_S
    while busy.is_set() and time.monotonic() < deadline:
        time.sleep(0.05)
    wait_until_it_may_end()
    if not busy.is_set():
        return
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    print(
        f"lightning-edge: rank {rank} (process {process.pid}, started by this one) {how}, and the"
        " others wait for it in vain. Its own words are above, if it had any. Ending all.",
        file=sys.stderr,
        flush=True,
    )
    stop(processes)
    sys.stdout.flush()
    os._exit(1)


def wait_for(processes: list[subprocess.Popen[Any]]) -> None:
    """At this script's end: wait for the processes that are on their way to theirs.

    After an error here they have little time: what they wait for will not come.

    Args:
        processes: Those that this one has started.
    """
    try:
        if getattr(sys, "last_value", None) is not None:
            _all_end(processes, GRACE_S)
        elif not _all_end(processes, NOTICE_S):
            running = ", ".join(str(p.pid) for p in processes if p.poll() is None)
            print(
                "lightning-edge: this script has ended, and waits for the other processes that it"
                f" started ({running}) to end as well. Ctrl+C ends them.",
                file=sys.stderr,
                flush=True,
            )
            _all_end(processes, FAREWELL_S)
    finally:
        stop(processes)


def _all_end(processes: list[subprocess.Popen[Any]], patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while any(process.poll() is None for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def stop(processes: list[subprocess.Popen[Any]]) -> None:
    """End processes: first politely, soon after for certain."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + 1.0
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


_watching: threading.Thread | None = None


def watch_parent() -> None:
    """In a process that the script launcher started: end when the one that started it is gone."""
    global _watching
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None or int(parent) == os.getpid() or _watching is not None:
        return
    _watching = threading.Thread(target=_end_after, args=(int(parent),), daemon=True)
    _watching.start()


def _end_after(parent: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(parent)
        # Not process.wait(): whoever has to fetch a dead parent's exit code may be waiting for the
        # end of the output, which this process holds open.
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(POLL_S)
    time.sleep(ORPHAN_S)  # the connections break first, and their error says more
    wait_until_it_may_end()
    print(
        f"lightning-edge: rank {os.environ.get('RANK')} (process {os.getpid()}) ends, because the"
        f" process that started it ({parent}) is gone.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


class CopyLauncher(_MultiProcessingLauncher):
    """Runs the Trainer in N copies of this process, which itself only waits for them.

    Attributes:
        needs_whole_module: Rank 0's module comes back to this process, so it has to be whole.
    """

    needs_whole_module = True

    def launch(
        self,
        function: Callable[..., Any],
        *args: Any,
        trainer: pl.Trainer | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call the function in all processes and return what it returned on rank 0.

        Args:
            function: What the Trainer is about to do.
            *args: For the function.
            trainer: Gets rank 0's weights and metrics.
            **kwargs: For the function.
        """
        port = os.environ.get("MASTER_PORT")
        try:
            return super().launch(function, *args, trainer=trainer, **kwargs)
        except BaseException:
            for process in self.procs:
                process.kill()
                process.join()
            raise
        finally:
            os.environ.pop("MASTER_PORT", None)
            if port is not None:
                os.environ["MASTER_PORT"] = port

    def _wrapping_function(self, process_idx: int, *args: Any, **kwargs: Any) -> None:
        processes = self._strategy.num_processes  # type: ignore[attr-defined]
        environment = self._strategy.cluster_environment
        assert environment is not None
        os.environ.update(
            RANK=str(process_idx),
            WORLD_SIZE=str(processes),
            LOCAL_WORLD_SIZE=str(processes),
            MASTER_ADDR=environment.main_address,
        )
        if self._start_method == "fork":
            # A copy of a process whose OpenMP threads have run hangs at its first parallel loop.
            os.environ["OMP_NUM_THREADS"] = "1"
            torch.set_num_threads(1)
        parent = multiprocessing.parent_process()
        assert parent is not None
        assert parent.pid is not None
        threading.Thread(target=_end_after, args=(parent.pid,), daemon=True).start()
        super()._wrapping_function(process_idx, *args, **kwargs)
        # Such processes end without atexit, where the strategy would leave the others in order.
        getattr(self._strategy, "disconnect", lambda: None)()

    def _collect_rank_zero_results(self, trainer: pl.Trainer, results: Any) -> Any:
        module = trainer.lightning_module
        whole = module.state_dict

        def held(*args: Any, **kwargs: Any) -> dict[str, Any]:
            return {k: v for k, v in whole(*args, **kwargs).items() if not is_fake(v)}

        module.__dict__["state_dict"] = held
        try:
            return super()._collect_rank_zero_results(trainer, results)
        finally:
            del module.__dict__["state_dict"]
