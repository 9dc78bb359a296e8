"""Packed messages: what goes in comes out, and damaged bytes are refused, never trusted."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_edge.errors import TransportError
from lightning_edge.train import message as wire
from lightning_edge.train.message import DTYPES, Message, pack, read_prefix, unpack

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    data = draw(st.binary(min_size=8, max_size=8))
    count = math.prod(shape) * DTYPES[dtype].itemsize
    raw = torch.tensor(list((data * (count // 8 + 1))[:count]), dtype=torch.uint8)
    if dtype == "bool":
        raw = raw % 2
    tensor = raw.view(DTYPES[dtype]).reshape(shape)
    return tensor.transpose(0, -1) if len(shape) > 1 and draw(st.booleans()) else tensor


messages = st.builds(
    Message,
    st.dictionaries(st.text(), json_values, max_size=3),
    st.dictionaries(st.text(), tensors(), max_size=3),
)


def raw_bytes(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist() if tensor.numel() else []


@given(messages)
def test_round_trip(sent):
    received = unpack(pack(sent))
    assert received.meta == sent.meta
    assert list(received.tensors) == list(sent.tensors)
    for name, tensor in sent.tensors.items():
        assert received.tensors[name].dtype == tensor.dtype
        assert received.tensors[name].shape == tensor.shape
        assert raw_bytes(received.tensors[name]) == raw_bytes(tensor)  # NaN payloads too


@given(messages, st.data())
@settings(max_examples=300)
def test_damaged_bytes_are_refused_or_harmless(sent, data):
    good = pack(sent)
    last = min(good.numel(), wire.PREFIX_BYTES + 400) - 1
    bad = good.clone()
    for _ in range(data.draw(st.integers(1, 3))):
        bad[data.draw(st.integers(0, last))] = data.draw(st.integers(0, 255))
    bad = bad[: data.draw(st.integers(0, bad.numel()))] if data.draw(st.booleans()) else bad
    bad = bad.clone()
    try:
        received = unpack(bad)
    except TransportError:
        return
    for tensor in received.tensors.values():
        if tensor.untyped_storage().data_ptr() == bad.data_ptr():
            end = tensor.storage_offset() * tensor.element_size() + tensor.nbytes
            assert end <= bad.numel()


def test_what_follows_the_message_is_ignored():
    packed = pack(Message({"a": 1}, {"x": torch.arange(5)}))
    slot = torch.full((packed.numel() + 1000,), 255, dtype=torch.uint8)
    slot[: packed.numel()] = packed
    assert unpack(slot).tensors["x"].tolist() == [0, 1, 2, 3, 4]


def test_tensors_share_the_buffer_but_autograd_sees_no_views():
    buffer = pack(Message({}, {"x": torch.ones(3), "y": torch.ones(3)}))
    x, y = unpack(buffer).tensors.values()
    assert x.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()
    assert not x._is_view()
    x.requires_grad_()
    loss = (x * y).sum()
    with torch.no_grad():
        buffer.add_(0)  # a change that autograd would count if these were views
    loss.backward()
    assert x.grad.tolist() == [1, 1, 1]
    y.add_(1)
    assert x.tolist() == [1, 1, 1]


def test_tensors_are_ordinary_ones_even_if_unpacked_in_inference_mode():
    with torch.inference_mode():
        x = unpack(pack(Message({}, {"x": torch.ones(3)}))).tensors["x"]
    assert not x.is_inference()
    (x.requires_grad_() * 2).sum().backward()


def test_a_tensor_that_requires_grad_is_sent_as_values():
    weight = torch.nn.Parameter(torch.ones(2))
    x = unpack(pack(Message({}, {"x": weight}))).tensors["x"]
    assert not x.requires_grad


def test_wire_dtype_narrows_floating_tensors_and_is_undone():
    exact = torch.tensor([1.0, -2.5, 3.25])
    sent = {
        "x": exact,
        "double": exact.double(),
        "half": torch.tensor([1.0009765625], dtype=torch.float16),  # not a bfloat16
        "ids": torch.tensor([2**40 + 1]),
    }
    packed = pack(Message({}, sent), wire_dtype=torch.bfloat16)
    assert (
        packed.numel() < pack(Message({}, {"x": torch.zeros(3, dtype=torch.float64)})).numel() * 3
    )
    received = unpack(packed).tensors
    for name, tensor in sent.items():
        assert received[name].dtype == tensor.dtype
        assert torch.equal(received[name], tensor)
    rounded = unpack(pack(Message({}, {"x": torch.tensor([1.001])}), wire_dtype=torch.bfloat16))
    assert rounded.tensors["x"].item() == torch.tensor(1.001).bfloat16().item()


def test_payload_is_aligned_for_every_dtype():
    sent = {str(n): torch.zeros(n, dtype=torch.uint8) for n in range(1, 5)}
    for tensor in unpack(pack(Message({}, sent | {"d": torch.ones(1).double()}))).tensors.values():
        assert tensor.data_ptr() % 64 == 0


def test_the_prefix_carries_what_the_transport_wants():
    packed = pack(Message({"a": 1}, {"x": torch.ones(3)}), window=7, sent_ns=123456789)
    prefix = read_prefix(packed)
    assert (prefix.window, prefix.sent_ns, prefix.total_bytes) == (7, 123456789, packed.numel())
    assert unpack(packed, prefix).tensors["x"].tolist() == [1, 1, 1]


def with_header(header, payload_bytes=64):
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    start = -(-(wire.PREFIX_BYTES + len(data)) // 64) * 64
    total = start + payload_bytes
    prefix = wire._PREFIX.pack(wire.MAGIC, wire.VERSION, 0, 0, len(data), total, 0)
    return torch.frombuffer(bytearray((prefix + data).ljust(total, b"\0")), dtype=torch.uint8)


def with_rows(*rows):
    return with_header({"m": {}, "t": list(rows)})


def test_hand_made_message_is_read():
    x = unpack(with_rows(["x", "float32", "float32", [4, 4], 0])).tensors["x"]
    assert x.shape == (4, 4)


@pytest.mark.parametrize(
    ("buffer", "words"),
    [
        (with_rows(["x", "float32", "float32", [17], 0]), "outside"),
        (with_rows(["x", "float32", "float32", [1], 64]), "outside"),
        (with_rows(["x", "float32", "float32", [-1], 0]), "describes a tensor as"),
        (with_rows(["x", "float32", "float32", [1.0], 0]), "describes a tensor as"),
        (with_rows(["x", "float32", "float32", [True], 0]), "describes a tensor as"),
        (with_rows(["x", "float32", "float32", [2**40, 2**40, 0], 0]), "describes a tensor as"),
        (with_rows(["x", "float32", "float32", [1] * 65, 0]), "describes a tensor as"),
        (with_rows(["x", "float32", "float32", [1], -64]), "describes a tensor as"),
        (with_rows(["x", "float32", "float32", [1], 4]), "taken or outside"),
        (with_rows(["x", "object", "object", [1], 0]), "describes a tensor as"),
        (with_rows(["x", ["float32"], "float32", [1], 0]), "describes a tensor as"),
        (with_rows(["x", "int64", "float32", [1], 0]), "describes a tensor as"),
        (with_rows([7, "float32", "float32", [1], 0]), "describes a tensor as"),
        (with_rows("x"), "describes a tensor as"),
        (
            with_rows(["x", "int8", "int8", [1], 0], ["y", "int8", "int8", [1], 0]),
            "taken or outside",
        ),
        (
            with_rows(["x", "int8", "int8", [1], 0], ["x", "int8", "int8", [0], 64]),
            "taken or outside",
        ),
        (with_header({"m": [], "t": []}), "not an object"),
        (with_header({"m": {}}), "damaged"),
        (with_header([]), "damaged"),
        (with_header(b"{"), "damaged"),
        (with_header(b"\xff"), "damaged"),
        (with_header(b"[" * 100_000), "damaged"),
        (torch.zeros(100, dtype=torch.uint8), "not a message"),
        (torch.zeros(3, dtype=torch.uint8), "fewer than"),
        (wire.grow_note(10), "note of kind 1"),
    ],
)
def test_hostile_headers(buffer, words):
    with pytest.raises(TransportError, match=words):
        unpack(buffer)


def test_another_version_says_what_to_do():
    packed = pack(Message())
    packed[4] = 99
    with pytest.raises(TransportError, match="version 99.*install the same lightning-edge"):
        unpack(packed)


def test_what_cannot_travel_is_named():
    with FakeTensorMode():
        fake = torch.ones(3)
    for tensor, words in (
        (fake, "'x' is a placeholder without values"),
        (torch.ones(3).to_sparse(), "only dense tensors"),
        (torch.ones(3, device="meta"), "meta device"),
    ):
        with pytest.raises(TransportError, match=words):
            pack(Message({}, {"x": tensor}))
    with pytest.raises(TransportError, match="not JSON.*set"):
        pack(Message({"a": {1, 2}}))
    endless = []
    endless.append(endless)
    with pytest.raises(TransportError, match="not JSON"):
        pack(Message({"a": endless}))
