"""How one device's failure ends everybody's waiting, with the failing device's own words.

    rank 1 raises         store                    rank 0, rank 2 (waiting, or computing)
    --------------        -----------------        --------------------------------------------
    abort(text)   --->    "failure" = text   <--   (3) read why
    (1) publish           (first one wins)
    (2) cut all connections -------------------->  (3) wait ends with an error, and each of them
                                                       cuts its own connections: (2) goes round

A killed process publishes nothing, but the kernel closes its connections. Each rank watches its
successor with a receive that nobody answers before the orderly end, so this is noticed at once even
when nobody was waiting for that rank. A process that stands still, and a machine that is cut off,
keep their connections: `train.heartbeat` notices their silence. Cutting a connection does not end
every wait in gloo, so the waits are `train.waiting`'s.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from lightning_edge.errors import PeerError, TransportError, TransportTimeout
from lightning_edge.train.gloo import FOREVER, Mesh, cut_here
from lightning_edge.train.rendezvous import bounded
from lightning_edge.train.waiting import Waits

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store, Work

    from lightning_edge.train.heartbeat import Heartbeat
    from lightning_edge.train.staging import Waitable

__all__ = ["Alarm"]

QUESTION_S = 1.0  # how long the store may take to answer
PERIOD_S = 0.02  # between two questions
LOOK_S = 1.0  # how long to look for the reason of a connection that closed
WAKING_S = 0.5  # for threads to come back from gloo once the connections are cut
LINGER_S = 0.5  # how long rank 0, which often has the store, stays for the others to look
_WATCH_TAG, _PROBE_TAG = 1 << 30, (1 << 30) + 2
_FAILURE, _FAILURES = "failure", "failures"
_LIVELY_S = 2.0  # whoever was heard of since then is not standing still


class Alarm:
    """Turns broken waits into errors that say who failed first and why, and tells the others.

    Args:
        store: Where the first failure is published.
        rank: This device.
        names: How to call each rank in messages.
    """

    def __init__(self, store: Store, rank: int, names: Sequence[str]) -> None:
        self.names = names
        self.failure: TransportError | None = None
        self._rank = rank
        # A connection of its own: the main thread may be asking the store something just then.
        try:
            self._store: Store = store.clone()  # type: ignore[attr-defined]
        except (RuntimeError, AttributeError):  # not every kind of store can
            self._store = store
        self._waiting = Waits()
        self._meshes: list[Mesh] = []
        self._lock = threading.RLock()
        self._closing = False
        self._answers = True
        self._waits: dict[int, tuple[str, Sequence[int], float]] = {}  # by thread
        self._heartbeat: Heartbeat | None = None
        self._watcher: threading.Thread | None = None
        self._watched: Mesh | None = None
        self._probes: list[Work] = []

    def guard(self, mesh: Mesh) -> None:
        """Cut this mesh too when something fails."""
        with self._lock:
            self._meshes.append(mesh)
        if self.failure is not None:
            mesh.cut()

    def check(self) -> None:
        """Raise the failure that has already happened, if any."""
        if self.failure is not None:
            raise self.failure

    def watch(self, mesh: Mesh) -> None:
        """Start to watch the successor's connection in a thread of its own."""
        self._watched = mesh
        successor = (mesh.rank + 1) % mesh.size
        farewell = torch.empty(1, dtype=torch.uint8)
        work = mesh.receive(farewell, successor, _WATCH_TAG)
        self._watcher = threading.Thread(
            target=self._watch, args=(work, successor), name="edge-watch", daemon=True
        )
        self._watcher.start()

    def listen(self, heartbeat: Heartbeat) -> None:
        """Take silence for a failure too."""
        self._heartbeat = heartbeat
        heartbeat.start(self._lost)

    def farewell(self, mesh: Mesh, timeout: timedelta) -> None:
        """Tell the predecessor that the closing of this rank's connections is meant."""
        self._closing = True
        if self._heartbeat is not None:
            self._heartbeat.leave()
        note = torch.zeros(1, dtype=torch.uint8)
        with contextlib.suppress(RuntimeError):
            mesh.send(note, (mesh.rank - 1) % mesh.size, _WATCH_TAG).wait(timeout)

    def end(self, patience_s: float) -> None:
        """Wait for the successor's farewell, and close all connections."""
        self._closing = True
        if self._watcher is not None:
            self._watcher.join(patience_s)
            self._cut()
            self._watcher.join(2 * LOOK_S)
        if self._heartbeat is not None:
            self._heartbeat.close()
            self._heartbeat = None  # it knows this alarm: together they would keep the store open
        self._waiting.close(patience_s or WAKING_S)
        if self.failure is not None:
            for mesh in self._meshes:
                mesh.abandon()
        self._meshes.clear()
        self._probes.clear()
        self._watched = None

    def wait(self, work: Waitable, timeout: timedelta, peers: Sequence[int], what: str) -> None:
        """Wait for work of ours, or raise what became of it.

        Raises:
            TransportTimeout: Nothing came within ``timeout``.
            PeerError: Another device failed first, or the connection to it broke.
        """
        here = threading.get_ident()
        self._waits[here] = (what, peers, time.monotonic())
        try:
            if self._waiting.wait(work, timeout):
                return
            late = timeout
        except RuntimeError:
            late = None
        finally:
            del self._waits[here]
        if self._closing and self.failure is None:
            raise TransportError(f"{self.names[self._rank]} has left while it waited for {what}")
        raise self._explain(peers, f"waiting for {what}", late)

    def broken(self, peers: Sequence[int], doing: str) -> TransportError:
        """Return the error for an operation that failed because a connection is broken."""
        return self._explain(peers, doing, None)

    def publish(self, text: str) -> None:
        """Let this device's failure be known and end everybody's waiting."""
        with self._lock:
            if self.failure is None:
                self.failure = TransportError(f"{self.names[self._rank]} has aborted: {text}")
                self._tell(f"{self.names[self._rank]} failed first: {text}")
            self._cut()
            if self._rank == 0 and self._meshes:
                time.sleep(LINGER_S)

    def _watch(self, work: Work, successor: int) -> None:
        try:
            work.wait(FOREVER)
        except RuntimeError as error:
            # A wait of ours that timed out is explained by the thread that waited.
            if not self._closing and not cut_here(error):
                self._explain([successor], "", None)

    def _lost(self, peer: int, age_s: float | None) -> None:
        """Nothing was heard of a peer for so long; None: its connection ended."""
        if age_s is None and not self._closing:
            self._explain([peer], self._doing(), None)
        if age_s is None:
            return
        with self._lock:
            if self.failure is not None or self._closing:
                return
            text = self._silent(peer, age_s)
            doing = self._doing()
            self.failure = PeerError(f"{text}, while {doing}" if doing else text)
            if peer == 0:  # its device has the store and will answer later, if ever
                self._cut()
            self._tell(text)
            self._cut()

    def _doing(self) -> str:
        """What this device has been waiting for longest just now."""
        waits = sorted(self._waits.copy().values(), key=lambda wait: wait[2])
        if not waits:
            return ""
        what, peers, since_s = waits[0]
        waited_s = time.monotonic() - since_s
        me = self.names[self._rank]
        return f"{me} waited for {what} from {self._call(peers)} for {waited_s:.1f} s"

    def _signs(self, peers: Sequence[int]) -> str:
        """What is known of the peers that were waited for in vain."""
        found = []
        for peer in peers:
            age_s = None if self._heartbeat is None else self._heartbeat.age_s(peer)
            if peer != self._rank and age_s is not None:
                runs = ", so it runs: it computes, loads data or waits itself"
                found.append(
                    f"; the last sign of life of {self.names[peer]} was {age_s:.1f} s ago"
                    + (runs if age_s < _LIVELY_S else "")
                )
        return "".join(found)

    def _silent(self, peer: int, age_s: float) -> str:
        return (
            f"{self.names[peer]} failed first: no sign of life for {age_s:.1f} s"
            f" (it stands still or sleeps, or the network to it is down){self._memory([peer])}"
        )

    def _silence_of_rank_0(self) -> float | None:
        """Seconds for which rank 0 has been silent, if that is long, and its store is as well."""
        age_s = None if self._heartbeat is None or self._rank == 0 else self._heartbeat.age_s(0)
        return None if age_s is None or age_s < _LIVELY_S or self._answers else age_s

    def _memory(self, peers: Sequence[int]) -> str:
        """What may have ended one of the peers."""
        if self._heartbeat is None or not any(map(self._heartbeat.was_tight, peers)):
            return ""
        return "; its memory was nearly full when last heard of, so it may have been ended for that"

    def _explain(self, peers: Sequence[int], doing: str, late: timedelta | None) -> TransportError:
        with self._lock:
            if self.failure is not None:
                return self.failure
            me = self.names[self._rank]
            # Who fails publishes first and cuts then; only a killed process never says a word.
            told = self._look(0.0 if late else LOOK_S)
            rank_0_s = self._silence_of_rank_0() if told is None and late is None else None
            if told is not None:
                self.failure = PeerError(told)
            elif late is not None:
                waited = f"from {self._call(peers)} for {late.total_seconds():g} s"
                text = f"{doing} {waited}{self._signs(peers)}"
                self.failure = TransportTimeout(f"{me} gave up {text}")
                self._tell(f"{me} failed first: it gave up {text}")
            elif self._heartbeat is not None and self._heartbeat.stood_still_s > _LIVELY_S:
                text = (
                    f"{me} stood still for {self._heartbeat.stood_still_s:.1f} s (it was stopped,"
                    " or it slept), and the others have ended without it"
                )
                self.failure = PeerError(text)
                self._tell(text)
            elif rank_0_s is not None:  # who closed the connection may have found that out first
                text = self._silent(0, rank_0_s)
                self.failure = PeerError(f"{text}, while {doing}" if doing else text)
            elif self._rank != 0 and 0 not in peers and self._store_is_gone():
                text = (
                    f"{self.names[0]} failed first: its store has gone, without a word"
                    " (process killed, device off, or network down)"
                )
                self.failure = PeerError(f"{text}, while {doing}" if doing else text)
            else:
                text = (
                    f"{self._call(self._gone(peers))} failed first: its connection to {me} closed"
                    " without a word (process killed, device off, or network down)"
                    f"{self._memory(peers)}"
                )
                self.failure = PeerError(f"{text}, while {doing}" if doing else text)
                self._tell(text)
            self._cut()
            return self.failure

    def _call(self, peers: Sequence[int]) -> str:
        return " or ".join(self.names[peer] for peer in peers if peer != self._rank)

    def _gone(self, peers: Sequence[int]) -> Sequence[int]:
        """Return those of ``peers`` whose connection is broken; a sum does not tell which is."""
        gone = []
        for peer in peers:
            if peer != self._rank and self._watched is not None:
                try:
                    nothing = torch.empty(1, dtype=torch.uint8)
                    self._probes.append(self._watched.receive(nothing, peer, _PROBE_TAG))
                except RuntimeError:
                    gone.append(peer)
        return gone or peers

    def _cut(self) -> None:
        self._waiting.release()
        for mesh in self._meshes:
            mesh.cut()

    def _look(self, patience_s: float) -> str | None:
        """The reason that somebody has left in the store; `_answers` says if the store is there."""
        deadline_s = time.monotonic() + patience_s
        while True:
            found = bounded(lambda: self._store.check([_FAILURE]), QUESTION_S)
            self._answers = found is not None
            if found:
                text = bounded(lambda: self._store.get(_FAILURE), QUESTION_S)
                return None if text is None else text.decode("utf-8", "replace")
            if found is None or time.monotonic() >= deadline_s:
                return None
            time.sleep(PERIOD_S)

    def _store_is_gone(self) -> bool:
        return bounded(lambda: self._store.check([_FAILURE]), QUESTION_S) is None

    def _tell(self, text: str) -> None:
        def write() -> None:
            if self._store.add(_FAILURES, 1) == 1:
                self._store.set(_FAILURE, text)

        bounded(write, LOOK_S)
