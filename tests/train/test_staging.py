"""What waits for an accelerator leaves in order, and only once its data is there."""

import threading
from datetime import timedelta

import pytest
import torch

from lightning_edge.train.buffers import Buffers
from lightning_edge.train.message import Message, unpack
from lightning_edge.train.staging import Courier, Staging

SECOND = timedelta(seconds=10)


class Event:
    """Stands for a torch.cuda.Event: ready when told."""

    def __init__(self):
        self.told = threading.Event()

    def synchronize(self):
        assert self.told.wait(10)


@pytest.fixture
def courier():
    courier = Courier()
    yield courier
    courier.close(10)


def test_works_start_in_order_once_ready(courier):
    begun, slow = [], Event()
    first = courier.start(slow, lambda: begun.append("first") or [])
    second = courier.start(None, lambda: begun.append("second") or [])
    with pytest.raises(RuntimeError, match="Timed out waiting for the accelerator"):
        second.wait(timedelta(milliseconds=10))
    assert begun == []
    slow.told.set()
    second.wait(SECOND)
    first.wait(SECOND)
    assert begun == ["first", "second"]


def test_waiting_covers_the_works_themselves(courier):
    waited = []

    class Work:
        def wait(self, timeout):
            waited.append(timeout)

    courier.start(None, lambda: [Work(), Work()]).wait(SECOND)
    assert waited == [SECOND, SECOND]


def test_an_error_at_the_start_is_raised_by_wait(courier):
    def fail():
        raise RuntimeError("no connection")

    departure = courier.start(None, fail)
    with pytest.raises(RuntimeError, match="no connection"):
        departure.wait(SECOND)
    courier.start(None, list).wait(SECOND)  # and the courier lives on


def test_closing_ends_the_thread():
    courier = Courier()
    courier.start(None, list).wait(SECOND)
    courier.close(10)
    assert not [t for t in threading.enumerate() if t.name == "edge-courier"]
    courier.close(10)


def test_messages_from_the_cpu_need_no_waiting():
    data, ready = Staging(Buffers()).pack(Message({}, {"x": torch.ones(3)}), None, 1, 0)
    assert ready is None
    assert unpack(data).tensors["x"].tolist() == [1, 1, 1]
    tensor = torch.ones(3)
    assert Staging(Buffers()).to_host(tensor) == (tensor, None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_messages_from_a_cuda_device():
    x = torch.arange(1 << 20, device="cuda", dtype=torch.float32)
    busy = torch.ones(4096, 4096, device="cuda")
    for _ in range(20):
        busy = busy @ busy.clamp(0, 1e-4)
    late = x + busy[0, 0] * 0
    data, ready = Staging(Buffers()).pack(Message({}, {"x": late}), torch.bfloat16, 1, 0)
    assert data.is_pinned()
    ready.synchronize()
    assert torch.equal(unpack(data).tensors["x"], x.bfloat16().float().cpu())
    host, ready = Staging(Buffers()).to_host(late)
    ready.synchronize()
    assert torch.equal(host, x.cpu())
