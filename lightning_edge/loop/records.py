"""Logs of a step: recorded on the last stage, carried out on every device with the same numbers.

Only the last stage's devices reach the code behind the model, each with its rows and once per
micro-batch. EarlyStopping, ModelCheckpoint, schedulers and loggers run on every device and must see
what one device with the whole batch would have logged::

    last stage   |F0 F1 F2 F3| send ---.   B3 ...   collect: merge, log
    other stages |F0 F1 F2 F3|          '->  B3 ...  collect: merge, log

The message leaves right after the last forward, so it travels while the backwards run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule
from torch.utils._pytree import tree_leaves

from lightning_edge.errors import UnsupportedError
from lightning_edge.loop.inside import InsideStep
from lightning_edge.loop.mailbox import Mailbox
from lightning_edge.loop.merge import Logged, merge, pack, unpack
from lightning_edge.loop.metrics import MetricWatch
from lightning_edge.loop.standin import StandIn
from lightning_edge.loop.tape import Tape
from lightning_edge.replicate.placeholder import is_fake
from lightning_edge.train.transport import Transport

__all__: list[str] = []


class Recorder:
    """Records and replays the logs of one module on one device.

    Args:
        module: The user's module, attached to its Trainer.
        transport: Carries the records; None if there is only one device.
        rank: This device.
        last_ranks: The devices of the last stage.
        world_size: How many devices there are.
        inside: Told while user code runs that only some devices run.
    """

    def __init__(
        self,
        module: LightningModule,
        transport: Transport | None,
        *,
        rank: int,
        last_ranks: Sequence[int],
        world_size: int,
        inside: InsideStep,
    ) -> None:
        self.module, self.rank, self.inside = module, rank, inside
        self.last_ranks = tuple(sorted(last_ranks))
        self.everyone = tuple(range(world_size))
        self.is_last = rank in self.last_ranks
        self.mailbox = Mailbox(transport, rank)
        self.metrics = MetricWatch(module, self.mailbox, rank, self.last_ranks, self.everyone)
        self._tape = Tape(module, self.metrics.path_of)
        self._where = ""
        self._serial = 0
        self._own: dict[str, Any] | None = None
        self._rows = 0
        # Rows that each last-stage device has had, by hook, since that loop's last epoch end.
        self._rows_seen: dict[str, dict[int, int]] = {}
        # Gives a tree of values with what was received for placeholders in it; set by the run.
        self.received: Callable[[Any], Any] = lambda tree: tree
        # Gives the names of this step's values that add up over rows; set by the run.
        self.adding: Callable[[], frozenset[str]] = frozenset

    def open(self) -> None:
        """Open the streams. Every device calls it once the transport is up."""
        self.mailbox.open(self.last_ranks, self.everyone)
        self.metrics.refresh()

    def close(self) -> None:
        """Undo every change to the module. Nothing is sent."""
        self.module.__dict__.pop("log", None)
        self.metrics.close()

    @contextmanager
    def step(self, where: str) -> Iterator[None]:
        """Round a whole step, from its first forward to `collect`.

        Args:
            where: The hook, such as "training_step".
        """
        with self.section(where):
            self.metrics.begin_step()
            yield

    @contextmanager
    def section(self, where: str) -> Iterator[None]:
        """User code whose logs are replayed everywhere; its log works inside the two below."""
        self._where, self._own, self._rows = where, None, 0
        self._serial += 1
        self._tape.start()
        self._set_log(self._refuse_log)
        try:
            yield
        finally:
            self.module.__dict__.pop("log", None)
            self.metrics.end_section()

    @contextmanager
    def micro_batch(self, rows: int) -> Iterator[None]:
        """Round one call of the user's step on `rows` rows of this device."""
        self._rows += rows
        self._tape.adding = self.adding()
        with self._recording(rows), self.metrics.micro_batch(self._tape.calls):
            yield

    @contextmanager
    def body(self, peers: Sequence[int]) -> Iterator[None]:
        """Round the body of an epoch-end hook, which the last-stage devices `peers` run."""
        self._tape.adding = frozenset()
        with self._recording(rows=1), self.metrics.body(peers):
            yield

    @contextmanager
    def _recording(self, rows: int) -> Iterator[None]:
        self._tape.micro_batch(rows)
        early: list[Any] = []  # logs in front of this stage, of values that are yet to come

        def record(*args: Any, **kwargs: Any) -> None:
            if any(is_fake(leaf) for leaf in tree_leaves((args, kwargs))):
                early.append((args, kwargs))
            else:
                self._tape.record(*args, **kwargs)

        self._set_log(record if self.is_last else _ignore)
        try:
            with self.inside(self._where):
                yield
                for args, kwargs in self.received(early):
                    self._refuse_placeholders(args, kwargs)
                    self._tape.record(*args, **kwargs)
        finally:
            self._set_log(self._refuse_log)

    def _refuse_placeholders(self, args: Any, kwargs: Any) -> None:
        if any(is_fake(leaf) for leaf in tree_leaves((args, kwargs))):
            name = args[0] if args else kwargs.get("name")
            raise UnsupportedError(
                f"self.log({name!r}) in {self._where} was given a value that"
                f" is computed with parameters of another device, which are not here. The whole"
                f" model runs in steps only: compute it in training_step or validation_step, and"
                f" keep what {self._where} needs."
            )

    def _set_log(self, log: Callable[..., None]) -> None:
        self.module.__dict__["log"] = StandIn(self.module, "log", log)

    def send(self, extra: Mapping[str, Any] | None = None) -> None:
        """Send this device's records to all others, without waiting; only the last stage has any.

        Args:
            extra: Whatever else the others need of this step: plain types and tensors.
        """
        if not self.is_last:
            return
        self._own = {
            "extra": dict(extra or {}),
            "rows": self._rows,
            "stop": self.module.trainer.should_stop,
            "log": pack(self._tape.calls),
            "metrics": self.metrics.report(),
        }
        what = f"the logs of {self._where}"
        self.mailbox.post(self.everyone, "record", self._serial, self._own, what)

    def collect(self) -> dict[int, dict[str, Any]]:
        """Wait for the records of all last-stage devices and log them on this device.

        Returns:
            What each last-stage device passed to `send` as `extra`, by rank.

        Raises:
            TransportTimeout: A device's records did not come; it is named.
        """
        records = {rank: self._record_of(rank) for rank in self.last_ranks}
        if any(record["stop"] for record in records.values()):
            self.module.trainer.should_stop = True  # set in a step, which ends there only
        seen = self._rows_seen.setdefault(self._where, {})
        for rank, record in records.items():
            seen[rank] = seen.get(rank, 0) + record["rows"]
        self.metrics.settle_section({r: rec["metrics"] for r, rec in records.items()}, self._serial)
        del self.module.__dict__["log"]
        for call in merge([unpack(record["log"]) for record in records.values()]):
            self._replay(call)
        return {rank: record["extra"] for rank, record in records.items()}

    def active(self, where: str) -> tuple[int, ...]:
        """The last-stage devices that had rows in `where` since `forget`, or all if none had."""
        seen = self._rows_seen.get(where, {})
        return tuple(r for r in self.last_ranks if seen.get(r)) or self.last_ranks

    def forget(self, where: str) -> None:
        """An epoch of `where` is over: count its rows anew."""
        self._rows_seen.pop(where, None)

    def _record_of(self, rank: int) -> dict[str, Any]:
        if rank != self.rank:
            what = f"the logs of {self._where}"
            record: dict[str, Any] = self.mailbox.take(rank, "record", self._serial, what)
            return record
        assert self._own is not None, "collect() before send() on the last stage"
        return self._own

    def _replay(self, call: Logged) -> None:
        value: Any
        if call.metric is None:
            assert call.value is not None
            value = call.value.to(self.module.device)
        else:
            value = self.metrics.at(call.metric)
            if call.options.get("on_epoch"):
                self.metrics.logged(call.metric, self._where)
        options = dict(call.options)
        # Lightning's default, None, means True but does not complain when there is no logger.
        options["logger"] = None if options.get("logger") else False
        weight = int(call.weight) if call.weight.is_integer() else call.weight
        LightningModule.log(
            self.module,
            call.name,
            value,
            reduce_fx=call.reduce_fx,
            batch_size=weight,  # type: ignore[arg-type]
            metric_attribute=call.metric,
            **options,
        )

    def _refuse_log(self, name: str, *_: Any, **__: Any) -> None:
        raise UnsupportedError(
            f"self.log({name!r}, ...) was called outside the body of {self._where} while the step"
            " was running, from a backward hook perhaps: its logs have already been sent to the"
            " other devices. Log it in the body of the step, or in on_after_backward."
        )


def _ignore(*_: Any, **__: Any) -> None:
    """Logs of devices that do not reach the end of the step."""
