"""The conductor's side: contestants in their own processes, taking turns in one run.

A shared machine is slower at one moment than at the next. So every contestant keeps its processes
for the whole run and they alternate in blocks of a few steps; what is compared are the medians of
neighbouring blocks (paired ratios), in which the machine's mood cancels out.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[1]
START_LIMIT_S = 300.0  # importing torch and Lightning and meeting each other


class ContestError(RuntimeError):
    """A contestant failed, died or took too long; the text holds its output."""


@dataclass(frozen=True)
class Place:
    """Where a rank runs: a network namespace and its interface, or the machine itself.

    Attributes:
        groups: Files of control groups that the process writes its id into.
        env: Further environment variables.
    """

    namespace: str | None = None
    interface: str = "lo"
    groups: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def enter(self, command: Sequence[str]) -> list[str]:
        """Return the command that runs ``command`` there."""
        inside: list[str] = []
        if self.groups:  # before the namespace, inside which /sys is another one
            joins = "".join(f"echo $$ > {shlex.quote(group)} && " for group in self.groups)
            inside += ["sh", "-c", f'{joins}exec "$@"', "sh"]
        if self.namespace:
            inside += ["ip", "netns", "exec", self.namespace]
        return [*inside, *command]


@dataclass(frozen=True)
class Contestant:
    """What to run: a function ``f(gate, **options)`` on every rank, in processes of its own."""

    name: str
    target: str
    options: dict[str, Any] = field(default_factory=dict)
    places: Sequence[Place] = (Place(), Place())
    address: str = "127.0.0.1"  # of rank 0, as the others reach it


@dataclass(frozen=True)
class Block:
    """A few steps in a row: the seconds of each, and of each rank's own part of them.

    Attributes:
        observed: What the conductor read before and after them, if it was told to.
    """

    steps_s: list[float]
    ranks_s: list[list[float]]
    observed: tuple[Any, Any] | None = None


class Team:
    """The processes of one contestant."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        self._log = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 - closed in close()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []
        #: The most memory that each rank ever had, once it has finished.
        self.peaks_bytes: list[int] = []
        port = str(free_port())
        for rank, place in enumerate(contestant.places):
            self._start(rank, place, port)

    def imported(self) -> None:
        """Wait until all ranks have imported what they need."""
        self._collect(START_LIMIT_S)

    def begin(self) -> None:
        """Let all ranks call the contestant's function."""
        for connection in self._connections:
            connection.send_bytes(b"{}")

    def ready(self) -> None:
        """Wait until all ranks stand at the gate."""
        self._collect(START_LIMIT_S)

    def step(self, count: int, limit_s: float, **said: Any) -> Block:
        """Let all ranks take ``count`` steps together."""
        for connection in self._connections:
            connection.send_bytes(json.dumps({"steps": count, **said}).encode())
        answers = self._collect(limit_s)
        begin_s = max(answer["begin"] for answer in answers)
        ends_s = [begin_s, *(max(ends) for ends in zip(*(a["ends"] for a in answers), strict=True))]
        own = [[answer["begin"], *answer["ends"]] for answer in answers]
        return Block(_gaps(ends_s), [_gaps(times) for times in own])

    def finish(self, limit_s: float = 30.0) -> list[Any]:
        """End the contestant in good order and return what each rank's function returned."""
        for connection in self._connections:
            connection.send_bytes(json.dumps({"steps": 0}).encode())
        answers = self._collect(limit_s)
        self.peaks_bytes = [answer["peak_bytes"] for answer in answers]
        return [answer["result"] for answer in answers]

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for connection in self._connections:
            connection.close()
        self._log.close()

    def _start(self, rank: int, place: Place, port: str) -> None:
        world = len(self.contestant.places)
        ours, theirs = socket.socketpair()
        options = json.dumps(self.contestant.options)
        target = self.contestant.target
        command = ["-m", "benchmarks.worker", str(theirs.fileno()), target, options]
        ranks = {"RANK": rank, "WORLD_SIZE": world, "GROUP_RANK": rank, "GROUP_WORLD_SIZE": world}
        self._processes.append(
            subprocess.Popen(
                place.enter([sys.executable, *command]),
                cwd=ROOT,
                env={
                    **os.environ,
                    # What torchrun sets on machines with one process each.
                    **{name: str(value) for name, value in ranks.items()},
                    "LOCAL_RANK": "0",
                    "LOCAL_WORLD_SIZE": "1",
                    "TORCHELASTIC_RUN_ID": "benchmark",
                    "MASTER_ADDR": self.contestant.address,
                    "MASTER_PORT": port,
                    "GLOO_SOCKET_IFNAME": place.interface,
                    "OMP_NUM_THREADS": "1",
                    **place.env,
                },
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )
        theirs.close()
        self._connections.append(Connection(ours.detach()))

    def _collect(self, limit_s: float) -> list[dict[str, Any]]:
        answers: dict[Connection, dict[str, Any]] = {}
        deadline_s = time.monotonic() + limit_s
        while len(answers) < len(self._connections):
            left = [c for c in self._connections if c not in answers]
            ready = wait(left, max(0.0, deadline_s - time.monotonic()))
            if not ready:
                ranks = [self._connections.index(c) for c in left]
                raise ContestError(self._story(f"ranks {ranks} took more than {limit_s:.0f} s"))
            for connection in ready:
                assert isinstance(connection, Connection)
                rank = self._connections.index(connection)
                try:
                    answers[connection] = json.loads(connection.recv_bytes())
                except (EOFError, OSError):
                    raise ContestError(self._story(f"rank {rank} died")) from None
                if "failed" in answers[connection]:
                    failed = answers[connection]["failed"]
                    raise ContestError(self._story(f"rank {rank} failed:\n{failed}"))
        return [answers[connection] for connection in self._connections]

    def _story(self, what: str) -> str:
        self._log.seek(0)
        return f"{self.contestant.name}: {what}\n{self._log.read()[-3000:]}"


class Contest:
    """All contestants of one comparison; a context manager, as they are processes.

    Args:
        contestants: Who takes part.
        start: Called once all have imported what they need; has to `begin` and await each team.
            By default all begin at once.
    """

    def __init__(
        self,
        contestants: Sequence[Contestant],
        start: Callable[[Contest], None] | None = None,
    ) -> None:
        self._contestants, self._start = contestants, start
        self.teams: dict[str, Team] = {}

    def __enter__(self) -> Contest:
        try:
            for contestant in self._contestants:
                self.teams[contestant.name] = Team(contestant)
            for team in self.teams.values():
                team.imported()
            if self._start is not None:
                self._start(self)
            else:
                for team in self.teams.values():
                    team.begin()
                for team in self.teams.values():
                    team.ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        for team in self.teams.values():
            team.close()

    def join(self, contestants: Sequence[Contestant], start: Callable[[Contest], None]) -> None:
        """Let more take part; `start` has to `begin` and await each of their teams."""
        for contestant in contestants:
            self.teams[contestant.name] = Team(contestant)
        for contestant in contestants:
            self.teams[contestant.name].imported()
        start(self)

    def leave(self, name: str, limit_s: float) -> tuple[list[Any], list[int]]:
        """End one contestant; return what each rank returned, and the most memory it ever had."""
        team = self.teams.pop(name)
        try:
            return team.finish(limit_s), team.peaks_bytes
        finally:
            team.close()

    def alternate(
        self,
        rounds: int,
        steps: int,
        warm_up: int = 2,
        limit_s: float = 120.0,
        names: Sequence[str] = (),
        observe: Callable[[], Any] = lambda: None,
        prepare: Callable[[int], None] = lambda number: None,
    ) -> dict[str, list[Block]]:
        """Let all take turns; every round starts with another contestant.

        Args:
            rounds: How often each one has its turn.
            steps: Steps per turn.
            warm_up: Steps of each before the first round, not counted.
            limit_s: Seconds that one turn may take.
            names: Who takes part; everybody by default.
            observe: Called before and after each turn; what it returns is kept in the block.
            prepare: Called with the number of the round before each turn.
        """
        names = list(names or self.teams)
        blocks: dict[str, list[Block]] = {name: [] for name in names}
        for name in names if warm_up else ():  # a turn of no steps would be the end
            self.teams[name].step(warm_up, limit_s)
        for number in range(rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                prepare(number)
                before = observe()
                block = self.teams[name].step(steps, limit_s)
                blocks[name].append(replace(block, observed=(before, observe())))
        return blocks


def median_s(blocks: Sequence[Block]) -> float:
    """Median seconds over all steps of all turns."""
    return statistics.median(step for block in blocks for step in block.steps_s)


def turns_s(blocks: Sequence[Block]) -> list[float]:
    """Median step of each turn: what is paired with the turn of another contestant."""
    return [statistics.median(block.steps_s) for block in blocks]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _gaps(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
