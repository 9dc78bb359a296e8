from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass, field

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from lightning_edge.train.tree import children, is_sequence, rebuild, walk

Pair = namedtuple("Pair", ["image", "label"])


@dataclass(frozen=True)
class Frozen:
    image: object
    made: list = field(default_factory=list)

    def __post_init__(self):
        self.made.append("by the constructor")


class Attributes(dict):
    pass


@pytest.mark.parametrize(
    "node",
    [
        {"a": 1, "b": 2},
        OrderedDict(b=1, a=2),
        UserDict(a=1, b=2),
        Attributes(a=1, b=2),
        [1, 2],
        (1, 2),
        Pair(1, 2),
        torch.return_types.max((torch.ones(2), torch.ones(2))),
    ],
    ids=lambda node: type(node).__name__,
)
def test_containers_are_rebuilt_as_what_they_were(node):
    keys = [key for key, _ in children(node)]
    other = rebuild(node, ["x", "y"])
    assert type(other) is type(node)
    assert other is not node
    assert children(other) == list(zip(keys, ["x", "y"], strict=True))


def test_a_defaultdict_keeps_its_factory():
    node = defaultdict(list, a=1)
    assert rebuild(node, ["x"])["nothing there"] == []
    assert node == {"a": 1}


def test_a_frozen_dataclass_is_rebuilt_without_its_constructor():
    node = Frozen(1)
    other = rebuild(node, [2, node.made])
    assert (other.image, other.made, node.image) == (2, ["by the constructor"], 1)


def test_transformers_containers():
    transformers = pytest.importorskip("transformers")
    encoding = transformers.BatchEncoding(
        {"input_ids": 1, "labels": 2}, encoding=["fast"], n_sequences=1
    )
    cut = rebuild(encoding, [3, 4])
    assert type(cut) is transformers.BatchEncoding
    assert (dict(cut), cut.encodings) == ({"input_ids": 3, "labels": 4}, None)
    assert (dict(encoding), encoding.encodings) == ({"input_ids": 1, "labels": 2}, ["fast"])

    from transformers.modeling_outputs import SequenceClassifierOutput

    output = SequenceClassifierOutput(loss=torch.tensor(1.0), logits=torch.zeros(2, 3))
    other = rebuild(output, ["loss", "logits"])
    assert (type(other), other.loss, other.logits) == (type(output), "loss", "logits")
    assert list(other) == ["loss", "logits"]
    assert output.loss == 1.0


def test_what_looks_like_a_tuple_but_is_one_value():
    packed = pack_sequence([torch.ones(3), torch.ones(1)])
    assert children(packed) is None
    assert children(torch.Size([2, 3])) is None
    assert not is_sequence(packed)
    assert not is_sequence(Pair(1, 2))


def test_paths_read_like_python():
    batch = {"tokens": [1, {"ids": 2}], 3: Pair(4, Frozen(5))}
    assert [path for path, _ in walk(batch)] == [
        "batch['tokens'][0]",
        "batch['tokens'][1]['ids']",
        "batch[3].image",
        "batch[3].label.image",
        "batch[3].label.made[0]",
    ]
