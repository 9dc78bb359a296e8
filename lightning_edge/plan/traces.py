"""A predicted step in the trace event format of Chrome, which Perfetto reads too.

One process per device with two threads, its computing and its network; times in microseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_edge.plan.prediction import Event, Prediction

__all__: list[str] = []

_COMPUTING = ("forward", "backward", "step")


def chrome(prediction: Prediction) -> dict[str, Any]:
    """Return the trace as JSON types."""
    events: list[dict[str, Any]] = []
    for rank, device in prediction.devices.items():
        events.append(_meta("process_name", rank, 0, f"{rank} {device.name}"))
        events += [_meta("thread_name", rank, i, n) for i, n in enumerate(("compute", "network"))]
    events += [_complete(event) for event in prediction.timeline]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _meta(kind: str, rank: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": rank, "tid": thread, "args": {"name": name}}


def _complete(event: Event) -> dict[str, Any]:
    name = event.kind if event.micro_batch is None else f"{event.kind} {event.micro_batch}"
    details = {"micro_batch": event.micro_batch, "peer": event.peer, "bytes": event.bytes or None}
    return {
        "ph": "X",
        "name": name,
        "cat": event.kind,
        "pid": event.rank,
        "tid": 0 if event.kind in _COMPUTING else 1,
        "ts": event.start_s * 1e6,
        "dur": (event.end_s - event.start_s) * 1e6,
        "args": {key: value for key, value in details.items() if value is not None},
    }
