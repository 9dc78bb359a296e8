"""Objects without pickle: equal after the round trip, refused by name and place, nothing run."""

import argparse
import contextlib
import dataclasses
import datetime as dt
import enum
import math
import pathlib
from collections import Counter, OrderedDict, defaultdict, namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_edge.errors import DataError, TransportError
from lightning_edge.train.codec import decode, encode
from lightning_edge.train.message import Message, pack, unpack

RAN = []


class Colour(enum.Enum):
    RED = 1


Point = namedtuple("Point", "x y")


@dataclasses.dataclass(frozen=True)
class Sample:
    ids: torch.Tensor
    label: int = 3

    def __post_init__(self):
        RAN.append("a constructor")


class Loud:
    def __reduce__(self):
        return RAN.append, ("pickle",)


def there_and_back(obj, **options):
    return decode(unpack(pack(encode(obj))), **options)


def same(a, b):
    """Equal in value and in every type, with NaN equal to itself."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor | np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and repr(a.tolist()) == repr(b.tolist())
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


keys = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.floats()
scalars = (
    keys
    | st.complex_numbers()
    | st.datetimes(timezones=st.none() | st.just(dt.timezone.utc))
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.sampled_from([torch.float32, torch.bool, torch.device("cuda:1"), torch.Size([2, 3])])
    | st.sampled_from([Colour.RED, pathlib.Path("a/b"), np.float32(1.5), np.int64(-3)])
    | st.sampled_from([torch.arange(6).reshape(2, 3).t(), torch.tensor(math.nan), torch.ones(0, 2)])
    | st.sampled_from([np.arange(4.0)[::2], np.array(["ab", "c"]), np.ones((0, 3), np.float16)])
)
objects = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(keys | st.tuples(keys, keys), inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=3).map(OrderedDict)
        | st.builds(Point, inner, inner)
    ),
    max_leaves=12,
)


@given(objects)
@settings(max_examples=200)
def test_round_trip(obj):
    assert same(there_and_back(obj), obj)


@given(st.sets(keys) | st.frozensets(keys))
def test_sets(obj):
    obj = type(obj)(key for key in obj if key == key)
    assert there_and_back(obj) == obj


def test_numbers_of_any_size():
    for number in (2**63 - 1, -(2**63), 2**63, 10**10_000, -(10**10_000)):
        assert there_and_back(number) == number
    for number in (math.inf, -math.inf, 5e-324, -0.0, 0.1):
        assert repr(there_and_back(number)) == repr(number)
    assert there_and_back(True) is True


def test_long_and_odd_texts():
    for text in ("x" * 200_000, "é" * 70_000, "\ud800", "\0", ""):
        assert there_and_back(text) == text
    assert there_and_back(bytearray(b"ab")) == bytearray(b"ab")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.complex64, torch.uint16])
def test_tensors_of_unusual_dtypes(dtype):
    tensor = torch.tensor([[0, 1, 1]]).to(dtype)
    assert same(there_and_back(tensor), tensor)


def test_a_tensor_in_two_places_travels_once_and_stays_one():
    tensor = torch.ones(1000)
    message = encode({"a": tensor, "b": [tensor]})
    assert len(message.tensors) == 1
    back = decode(unpack(pack(message)))
    assert back["a"] is back["b"][0]


def test_copies_have_their_own_memory():
    kept = there_and_back([torch.ones(3), torch.ones(5)], copy=True)
    assert [tensor.untyped_storage().nbytes() for tensor in kept] == [12, 20]


def test_parameters_arrive_as_plain_tensors():
    back = there_and_back(torch.nn.Parameter(torch.ones(2)))
    assert type(back) is torch.Tensor
    assert not back.requires_grad


def test_numpy_arrays_may_be_changed():
    back = there_and_back(np.arange(3))
    back += 1
    assert back.tolist() == [1, 2, 3]


def test_default_dicts_keep_their_factory():
    back = there_and_back(defaultdict(list, {"a": [1]}))
    back["b"].append(2)
    assert back == {"a": [1], "b": [2]}
    assert there_and_back(defaultdict(None, {1: 2})).default_factory is None


def test_objects_of_imported_classes_are_built_without_running_their_code():
    sample = Sample(torch.arange(3), 7)
    RAN.clear()
    back = there_and_back([sample, argparse.Namespace(lr=0.1, path=None), Counter("aab")])
    assert RAN == []
    assert type(back[0]) is Sample
    assert back[0].ids.tolist() == [0, 1, 2]
    assert back[0].label == 7
    assert back[1:] == [argparse.Namespace(lr=0.1, path=None), Counter("aab")]


def test_batches_of_transformers_and_lightning():
    transformers = pytest.importorskip("transformers")
    from lightning.fabric.utilities.data import AttributeDict
    from transformers.modeling_outputs import CausalLMOutput

    batch = transformers.BatchEncoding({"input_ids": torch.ones(2, 3)}, n_sequences=1)
    back = there_and_back(batch)
    assert type(back) is transformers.BatchEncoding
    assert back["input_ids"].shape == (2, 3)
    assert back.n_sequences == 1
    assert back.to("cpu").input_ids.sum() == 6
    output = there_and_back(CausalLMOutput(loss=torch.tensor(1.0), logits=torch.ones(2)))
    assert type(output) is CausalLMOutput
    assert output.loss == output["loss"] == output[0] == 1
    assert output.attentions is None
    assert list(output) == ["loss", "logits"]
    assert there_and_back(AttributeDict(a=1)).a == 1


def test_packed_sequences():
    sequence = torch.nn.utils.rnn.pack_sequence([torch.arange(3), torch.arange(2)])
    back = there_and_back(sequence)
    assert type(back) is type(sequence)
    assert back.data.tolist() == sequence.data.tolist()


@pytest.mark.parametrize(
    ("obj", "words"),
    [
        ({"meta": [0, Loud()]}, r"batch\['meta'\]\[1\] is a tests.*\.Loud, which cannot be sent"),
        (Sample(Loud()), r"batch\.ids is a tests.*\.Loud"),
        ({Loud(): 1}, r"batch\[<.*>\] is a tests.*\.Loud"),
        ([lambda: 1], r"batch\[0\] is a builtins\.function"),
        (torch.nn.Linear(1, 1), r"batch is a torch\.nn\..*Linear"),
        ((torch.ones(2).to_sparse(),), r"batch\[0\] is torch.sparse_coo .*only dense"),
        (defaultdict(lambda: 1), "batch is a defaultdict of <function"),
        (np.array([None]), "numpy array of dtype object"),
        (np.array([(1,)], dtype=[("a", "i4")]), "numpy array of dtype"),
        (dataclasses.make_dataclass("Inner", ["x"])(1), "cannot find by its name"),
        (type("Odd", (int,), {})(3), "which cannot be sent"),
    ],
)
def test_what_cannot_travel_is_refused_by_place_and_type(obj, words):
    with pytest.raises(DataError, match=words):
        encode(obj, "batch")


def test_endless_objects_are_refused():
    loop = {"a": []}
    loop["a"].append(loop)
    with pytest.raises(DataError, match=r"batch\['a'\]\[0\] contains itself"):
        encode(loop, "batch")
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(DataError, match="batch is nested too deeply"):
        encode(deep, "batch")


def test_a_class_that_is_not_here_is_named():
    message = encode(Point(1, 2))
    for name in ("nowhere:Point", "os:system", "tests:__doc__"):
        message.meta["tree"][2] = name
        with pytest.raises(
            TransportError, match=f"{name.replace(':', '.')}, which is not imported"
        ):
            decode(message)
    message.meta["tree"][2] = f"{__name__}:Loud"
    with pytest.raises(TransportError, match="named tuple of class .*Loud, which is none"):
        decode(message)
    message = encode(Point(1, 2))
    message.meta["tree"][-1][0] = "z"
    with pytest.raises(TransportError, match="parts do not fit the class"):
        decode(message)


TAGS = ["T", "list", "dict", "set", "class", "array", "scalar", "device", "dtype", "size", "float"]
TAGS += ["int", "bytes", "text", "complex", "datetime", "timedelta", "defaultdict", "path", "tuple"]
CLASSES = ["enum", "dataclass", "dictionary", f"{__name__}:Sample", f"{__name__}:Colour", "x:"]
damage = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from(CLASSES),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.builds(
            lambda tag, rest: [tag, *rest], st.sampled_from(TAGS), st.lists(inner, max_size=4)
        )
        | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=8,
)


@given(damage)
@settings(max_examples=500)
def test_damaged_trees_are_refused_or_harmless(tree):
    RAN.clear()
    with contextlib.suppress(TransportError):
        decode(Message({"tree": tree}, {"0": torch.ones(3), "1": torch.ones(3, dtype=torch.uint8)}))
    assert RAN == []
    with pytest.raises(TransportError):
        decode(Message({}))
