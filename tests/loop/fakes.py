"""Ranks as threads: a transport of queues, and a strategy that slices rows and replays logs."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from lightning_edge.errors import TransportTimeout
from lightning_edge.loop.epoch_end import EpochEndHooks
from lightning_edge.loop.inside import InsideStep
from lightning_edge.loop.records import Recorder
from lightning_edge.train.codec import decode, encode
from lightning_edge.train.message import pack, unpack

TIMEOUT_S = 10.0


class Wires:
    """What connects the ranks of one test."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.queues: dict[Any, queue.Queue] = defaultdict(queue.Queue)
        self.lock = threading.Lock()
        self.failed = threading.Event()

    def queue(self, *key: Any) -> queue.Queue:
        with self.lock:
            return self.queues[key]

    def transport(self, rank: int) -> FakeTransport:
        return FakeTransport(self, rank)

    def left_over(self) -> list[Any]:
        return [key for key, waiting in self.queues.items() if not waiting.empty()]


class FakeTransport:
    def __init__(self, wires: Wires, rank: int) -> None:
        self.wires, self.rank, self.world_size = wires, rank, wires.world_size
        self.names = tuple(f"rank {r} (device{r})" for r in range(self.world_size))
        self.opened: set[Any] = set()

    def open(self, peer: int, channel: Any, window: int) -> None:
        self.opened.add((peer, channel))

    def send(self, peer: int, channel: Any, message: Any, what: str = "") -> None:
        assert (peer, channel) in self.opened, f"{self.rank} has not opened {channel} to {peer}"
        self.wires.queue(self.rank, peer, channel).put(pack(message))

    def receive(self, peer: int, channel: Any, what: str = "") -> Any:
        assert (peer, channel) in self.opened, f"{self.rank} has not opened {channel} to {peer}"
        for _ in range(int(TIMEOUT_S * 20)):
            try:
                return unpack(self.wires.queue(peer, self.rank, channel).get(timeout=0.05))
            except queue.Empty:
                if self.wires.failed.is_set():
                    break
        raise TransportTimeout(f"rank {self.rank} waited for {what} from rank {peer}")

    def all_gather(self, obj: Any) -> list[Any]:
        for peer in range(self.world_size):
            self.wires.queue(self.rank, peer, "gather").put(pack(encode(obj)))
        return [
            decode(unpack(self.wires.queue(peer, self.rank, "gather").get(timeout=TIMEOUT_S)))
            for peer in range(self.world_size)
        ]

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return self.all_gather(obj)[src]


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Run ``function(rank, transport, *args)`` in a thread per rank; return the results."""
    wires = Wires(world_size)
    results: list[Any] = [None] * world_size
    errors: list[tuple[int, BaseException]] = []

    def main(rank: int) -> None:
        try:
            results[rank] = function(rank, wires.transport(rank), *args)
        except BaseException as error:
            errors.append((rank, error))
            wires.failed.set()

    threads = [threading.Thread(target=main, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    if errors:
        raise errors[0][1]
    assert not wires.left_over(), wires.left_over()
    return results


class Stop(BaseException):
    """Leaves the user's step where another stage goes on."""


class SlicingStrategy(SingleDeviceStrategy):
    """Runs the user's steps on this rank's rows in micro-batches; the last ranks reach the end.

    Args:
        rank: This rank.
        transport: Its transport.
        rows: (last rank, micro-batch) -> (start, stop), absolute rows of a batch of given length.
        micro_batches: How many.
        last_ranks: Ranks of the last stage.
    """

    def __init__(
        self,
        rank: int,
        transport: FakeTransport,
        rows: Callable[[int, int, int], tuple[int, int]],
        micro_batches: int,
        last_ranks: Sequence[int],
    ) -> None:
        super().__init__("cpu")
        self.rank, self.transport, self.rows = rank, transport, rows
        self.micro_batches, self.last_ranks = micro_batches, last_ranks
        self.inside = InsideStep()
        self.recorder: Recorder | None = None

    def setup(self, trainer: L.Trainer) -> None:
        super().setup(trainer)
        self.recorder = Recorder(
            self.lightning_module,
            self.transport,
            rank=self.rank,
            last_ranks=self.last_ranks,
            world_size=self.transport.world_size,
            inside=self.inside,
        )
        self.recorder.open()
        self.epoch_end = EpochEndHooks(self.lightning_module, self.recorder)
        self.epoch_end.install()
        _ = trainer.log_dir

    def _step(self, where: str, batch: Any, *args: Any) -> Any:
        step = getattr(self.lightning_module, where)
        recorder = self.recorder
        losses, weights = [], []
        with recorder.step(where):
            for m in range(self.micro_batches):
                start, stop = self.rows(self.rank, m, len(batch[0]))
                if start == stop and recorder.is_last:
                    continue
                with recorder.micro_batch(stop - start):
                    try:
                        result = step([leaf[start:stop] for leaf in batch], *args)
                    except Stop:
                        continue
                losses.append(result["loss"] if isinstance(result, dict) else result)
                weights.append(stop - start)
            loss = sum(
                one.detach() * weight
                for one, weight in zip(losses, weights, strict=True)
                if one is not None
            )
            recorder.send({"loss": torch.as_tensor(loss), "rows": sum(weights)})
            extras = recorder.collect().values()
        if where != "training_step":
            return None
        total = sum(e["rows"] for e in extras)
        return (sum(e["loss"] for e in extras) / total).requires_grad_()

    def training_step(self, *args: Any) -> Any:
        return self._step("training_step", *args)

    def validation_step(self, *args: Any) -> Any:
        return self._step("validation_step", *args)

    def test_step(self, *args: Any) -> Any:
        return self._step("test_step", *args)

    def predict_step(self, batch: Any, *args: Any) -> None:
        recorder, step = self.recorder, self.lightning_module.predict_step
        with recorder.step("predict_step"), recorder.micro_batch(len(batch[0])), suppress(Stop):
            step(batch, *args)

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        self.inside.refuse("barrier")

    def all_gather(self, tensor: Any, group: Any = None, sync_grads: bool = False) -> Any:
        if self.epoch_end.running:
            return self.epoch_end.all_gather(tensor)
        self.inside.refuse("all_gather")
        return tensor

    def reduce(self, tensor: Any, group: Any = None, reduce_op: str = "mean") -> Any:
        if self.epoch_end.running:
            return self.epoch_end.reduce(tensor, reduce_op)
        self.inside.refuse("reduce")
        return tensor

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return self.inside.broadcast(obj, lambda: self.transport.broadcast(obj, src))

    def teardown(self) -> None:
        if self.recorder is not None:
            self.epoch_end.remove()
            self.recorder.close()
        super().teardown()
