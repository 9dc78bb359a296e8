"""A worker's side of a contest: take a step only when told to, and say when each one ended.

    conductor                         worker (rank 0)          worker (rank 1)
       | <------------- {} ---------------- | imports done --------- |
       | -------------- {} ---------------> | --------------------> |   sets itself up
       | <--- {"begin": 0, "ends": []} ---- | <--------------------- |
       | ---- {"steps": 3} ---------------> | --------------------> |
       |                              step, step, step         step, step, step
       | <--- {"begin": t, "ends": [...]} - | <-------------------- |

While one contestant steps, all the others wait here without using a core.
"""

from __future__ import annotations

import json
import time
from multiprocessing.connection import Connection
from typing import Any

import lightning as L


class Gate:
    """``while gate.open(): step()`` is all that a contestant has to do."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._left = 0
        self._begin_s = 0.0
        self._ends_s: list[float] = []
        self.said: dict[str, Any] = {}  # what the conductor asked for with the current block

    def imported(self) -> None:
        """Say so, and wait until the conductor lets this contestant begin."""
        self._send({})
        self._connection.recv_bytes()

    def open(self) -> bool:
        """Note the end of the step before, and return whether there is another one to take."""
        if self._left:
            self._ends_s.append(time.monotonic())
            self._left -= 1
        if not self._left:
            self._send({"begin": self._begin_s, "ends": self._ends_s})
            self.said = json.loads(self._connection.recv_bytes())
            self._left, self._ends_s = self.said["steps"], []
            self._begin_s = time.monotonic()
        return self._left > 0

    def finish(self, result: Any) -> None:
        """Hand over what the contestant returned, or how it failed."""
        self._send(result)

    def _send(self, message: Any) -> None:
        self._connection.send_bytes(json.dumps(message).encode())


class GateCallback(L.Callback):
    """Holds a Trainer at the gate before every optimizer step's first batch."""

    def __init__(self, gate: Gate, accumulate: int = 1) -> None:
        self._gate, self._accumulate = gate, accumulate

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % self._accumulate or trainer.should_stop:
            return
        if not self._gate.open():
            trainer.should_stop = True  # the batch in hand is still computed, off the clock
