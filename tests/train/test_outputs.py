from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch

from lightning_edge.errors import DataError
from lightning_edge.train.outputs import merge_outputs

Result = namedtuple("Result", ["logits", "loss"])


def test_one_output_is_left_as_it_is():
    output = object()
    assert merge_outputs([output], [3]) is output


def test_rows_are_put_after_each_other_and_numbers_averaged():
    outputs = [
        {"x": torch.zeros(2, 3), "a": np.zeros(2), "ids": ["a", "b"], "loss": 0.5, "kind": "test"},
        {
            "x": torch.ones(3, 3),
            "a": np.ones(3),
            "ids": ["c", "d", "e"],
            "loss": 1.0,
            "kind": "test",
        },
    ]
    merged = merge_outputs(outputs, [2, 3])
    assert merged["x"].sum(1).tolist() == [0, 0, 3, 3, 3]
    assert merged["a"].tolist() == [0, 0, 1, 1, 1]
    assert merged["ids"] == ["a", "b", "c", "d", "e"]
    assert merged["loss"] == pytest.approx(0.8)
    assert merged["kind"] == "test"


def test_scalars_in_tensors_are_averaged_by_rows_in_their_dtype():
    merged = merge_outputs([torch.tensor(0.0), torch.tensor(1.0)], [1, 3])
    assert (merged.item(), merged.dtype) == (0.75, torch.float32)
    same = merge_outputs([torch.tensor(2), torch.tensor(2)], [1, 3])
    assert (same.item(), same.dtype) == (2, torch.int64)


def test_tuples_of_tensors_are_merged_part_by_part_also_for_two_rows():
    pieces = [(torch.zeros(2), torch.zeros(2, 4)), (torch.ones(2), torch.ones(2, 4))]
    logits, probabilities = merge_outputs(pieces, [2, 2])
    assert (logits.shape, probabilities.shape) == ((4,), (4, 4))


def test_lists_of_samples_of_any_kind_are_joined():
    pieces = [[{"boxes": torch.ones(k, 4)} for k in sizes] for sizes in ([1, 2], [0, 3])]
    merged = merge_outputs(pieces, [2, 2])
    assert [len(item["boxes"]) for item in merged] == [1, 2, 0, 3]
    assert merge_outputs([["a"], ["b", "c"]], [1, 2]) == ["a", "b", "c"]


def test_classes_are_kept():
    merged = merge_outputs([Result(torch.ones(1), 1.0), Result(torch.ones(2), 1.0)], [1, 2])
    assert isinstance(merged, Result)
    assert len(merged.logits) == 3
    transformers = pytest.importorskip("transformers")
    outputs = transformers.modeling_outputs
    pieces = [outputs.SequenceClassifierOutput(logits=torch.ones(n, 2)) for n in (1, 2)]
    merged = merge_outputs(pieces, [1, 2])
    assert isinstance(merged, outputs.SequenceClassifierOutput)
    assert merged.logits.shape == (3, 2)


def test_nothing_stays_nothing():
    assert merge_outputs([None, None], [1, 1]) is None


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ([{"a": 1.0}, {"b": 1.0}], "output has different parts"),
        (
            [{"a": torch.ones(1)}, {"a": 1.0}],
            r"output\['a'\] is of different kinds \(Tensor, float\)",
        ),
        ([("a", 1), ("b", 1)], r"output\[0\], a str, cannot be put together"),
        ([torch.ones(1, 2), torch.ones(1, 3)], "shapes.*cannot be concatenated"),
        ([torch.tensor(1), torch.tensor(2)], "output is a whole number, 1 and others"),
        ([True, False], "output, a bool, cannot be put together"),
    ],
)
def test_what_has_no_sum_is_named(outputs, text):
    with pytest.raises(DataError, match=f"{text}.*eval_micro_batches=1"):
        merge_outputs(outputs, [2, 3])
