"""Message memory is used again when, and only when, nobody can see it any more."""

import torch

from lightning_edge.train.buffers import IDLE_BYTES, IDLE_CALLS, Buffers
from lightning_edge.train.message import Message, pack, unpack

MB = 1 << 20


def test_memory_is_used_again():
    buffers = Buffers()
    first = buffers.get(MB).data_ptr()
    for size in (MB, MB - 1, MB // 2):
        assert buffers.get(size).data_ptr() == first
    assert buffers.bytes_held == MB


def test_memory_in_use_is_left_alone():
    buffers = Buffers()
    kept = buffers.get(MB)
    assert buffers.get(MB).data_ptr() != kept.data_ptr()
    first = kept.data_ptr()
    view = kept.numpy()
    del kept
    assert buffers.get(MB).data_ptr() != first
    view[:] = 7
    del view
    tensors = [buffers.get(MB), buffers.get(MB)]
    assert first in [tensor.data_ptr() for tensor in tensors]


def test_what_autograd_saved_counts_as_use():
    buffers = Buffers()
    packed = pack(Message({}, {"x": torch.full((MB,), 3.0)}), get_buffer=buffers.get)
    first = packed.data_ptr()
    x = unpack(packed).tensors["x"].requires_grad_()
    loss = x.view(-1)[5:].square().sum()
    del packed, x
    other = buffers.get(4 * MB)
    other.zero_()
    assert other.data_ptr() != first
    loss.backward()  # would have read zeros
    del loss
    assert buffers.get(4 * MB).data_ptr() == first


def test_far_too_large_memory_is_not_taken():
    buffers = Buffers()
    first = buffers.get(10 * MB).data_ptr()
    assert buffers.get(MB).data_ptr() != first


def test_memory_that_is_no_longer_wanted_is_given_back():
    buffers = Buffers()
    buffers.get(10 * MB)
    for _ in range(IDLE_CALLS + 2):
        buffers.get(MB)
    assert buffers.bytes_held == MB
    lasting = [buffers.get(MB) for _ in range(3 * IDLE_CALLS)]
    buffers.get(MB)
    assert buffers.bytes_held <= (IDLE_CALLS + 2) * MB
    assert len({tensor.data_ptr() for tensor in lasting}) == len(lasting)


def test_little_is_kept_idle():
    buffers = Buffers()
    tensors = [buffers.get(n * MB) for n in range(4, 20)]
    assert buffers.bytes_held == sum(tensor.nbytes for tensor in tensors)
    del tensors
    buffers.get(MB)
    assert buffers.bytes_held <= IDLE_BYTES + MB


def test_buffers_made_in_inference_mode_are_ordinary():
    with torch.inference_mode():
        assert not Buffers().get(MB).is_inference()
