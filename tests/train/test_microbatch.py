from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence

from lightning_edge.errors import DataError
from lightning_edge.train.axes import Axis
from lightning_edge.train.microbatch import (
    BatchRows,
    as_tree,
    batch_leaves,
    batch_rows,
    cut,
    find_rows,
    take_rows,
    tree_from_plain,
    tree_to_plain,
    whole_rows,
)

Pair = namedtuple("Pair", ["image", "label"])


@dataclass
class Sample:
    x: torch.Tensor
    name: str


def ids(rows):
    return torch.arange(rows)


class TestBatchRows:
    def test_counts_tensors_and_lists(self):
        assert batch_rows((ids(5), ids(5))) == 5
        assert batch_rows({"text": ["a", "b"]}) == 2
        assert batch_rows(Sample(ids(3), "abc")) == 3

    def test_the_module_has_the_first_word(self):
        assert batch_rows(torch.zeros(9, 4, 2), row_dims=lambda batch: 1) == 4


class TestTake:
    def test_every_kind_of_part(self):
        batch = {
            "x": ids(4),
            "nested": [Pair(ids(4) * 10, "abcd"), (np.arange(4), None)],
            "text": ["a", "b", "c", "d"],
            "scale": torch.tensor(0.5),
            "weights": torch.ones(3),
            "sample": Sample(ids(4) + 1, "name"),
        }
        part = take_rows(batch, 4, [(0, 1), (2, 4)])
        assert part["x"].tolist() == [0, 2, 3]
        assert part["nested"][0].image.tolist() == [0, 20, 30]
        assert part["nested"][0].label == "abcd"
        assert part["nested"][1][0].tolist() == [0, 2, 3]
        assert part["nested"][1][1] is None
        assert part["text"] == ["a", "c", "d"]
        assert part["scale"] is batch["scale"]
        assert part["weights"] is batch["weights"]
        assert part["sample"].x.tolist() == [1, 3, 4]
        assert [type(part[k]) for k in ("nested", "sample")] == [list, Sample]
        assert batch["text"] == ["a", "b", "c", "d"]

    def test_all_rows_give_the_batch_itself(self):
        batch = [ids(4), object()]
        assert take_rows(batch, 4, [(0, 2), (2, 2), (2, 4)]) is batch

    def test_one_interval_gives_a_view(self):
        x = ids(4)
        assert take_rows(x, 4, [(1, 3)]).data_ptr() == x[1:].data_ptr()

    def test_no_rows_give_parts_of_length_zero(self):
        batch = {
            "x": torch.ones(4, 2),
            "a": np.ones((4, 3)),
            "text": ("a",) * 4,
            "w": torch.ones(9),
        }
        part = take_rows(batch, 4, [(2, 2)])
        assert part["x"].shape == (0, 2)
        assert part["a"].shape == (0, 3)
        assert part["text"] == ()
        assert part["w"].shape == (9,)

    def test_rows_may_repeat(self):
        assert take_rows(ids(2), 2, [(0, 1), (1, 2), (0, 1)]).tolist() == [0, 1, 0]

    def test_along_another_dimension_and_several_per_row(self):
        batch = {"x": torch.arange(12).reshape(2, 6), "a": np.arange(12).reshape(2, 6)}
        axes = {"x": Axis(1, 2), "a": Axis(1, 2)}
        part = take_rows(batch, 3, [(0, 1), (2, 3)], axes=axes)
        assert part["x"].tolist() == [[0, 1, 4, 5], [6, 7, 10, 11]]
        assert part["a"].tolist() == part["x"].tolist()
        assert take_rows(batch, 3, [], axes=axes)["x"].shape == (2, 0)

    def test_known_axes_beat_coincidence(self):
        batch = {"x": ids(4), "weights": ids(4)}
        part = take_rows(batch, 4, [(0, 2)], axes={"x": Axis(0), "weights": None})
        assert (len(part["x"]), len(part["weights"])) == (2, 4)

    def test_a_batch_encoding_stays_one(self):
        transformers = pytest.importorskip("transformers")
        batch = transformers.BatchEncoding({"input_ids": torch.ones(4, 3), "labels": ids(4)})
        part = take_rows(batch, 4, [(1, 3)])
        assert type(part) is transformers.BatchEncoding
        assert part.labels.tolist() == [1, 2]

    @given(
        rows=st.integers(1, 12),
        data=st.data(),
    )
    def test_takes_what_indexing_takes(self, rows, data):
        bounds = st.tuples(st.integers(0, rows), st.integers(0, rows)).map(sorted)
        intervals = [tuple(pair) for pair in data.draw(st.lists(bounds, max_size=4))]
        wanted = [row for start, stop in intervals for row in range(start, stop)]
        batch = [ids(rows).reshape(rows, 1), [f"r{i}" for i in range(rows)]]
        part = take_rows(batch, rows, intervals, axes={0: Axis(0), 1: Axis(0)})
        assert part[0].flatten().tolist() == wanted
        assert part[1] == [f"r{i}" for i in wanted]

    def test_rows_outside_are_refused(self):
        with pytest.raises(DataError, match="rows 2 to 5 were asked of a batch of 4 rows"):
            take_rows(ids(4), 4, [(2, 5)])

    def test_what_cannot_be_cut_is_named(self):
        class Images:
            def __len__(self):
                return 4

        with pytest.raises(DataError, match=r"batch\['images'\] is a Images with one item per row"):
            take_rows({"x": ids(4), "images": Images()}, 4, [(0, 2)])
        packed = pack_sequence([ids(3), ids(2), ids(1), ids(1)])
        with pytest.raises(DataError, match=r"batch\[1\] holds a PackedSequence"):
            take_rows((ids(4), packed), 4, [(0, 2)])
        sparse = torch.eye(4).to_sparse_csr()
        with pytest.raises(DataError, match=r"cannot take rows of batch\[1\]"):
            take_rows((ids(4), sparse), 4, [(0, 2)])


class TestTrees:
    """The rows of what several loaders feed into one step."""

    tree = as_tree([{"a": BatchRows(8, 4, Axis(0), 2)}, BatchRows(8, 4, {0: Axis(1), 1: None})])

    def test_each_part_is_cut_by_its_own_axes(self):
        batch = [{"a": ids(4)}, [torch.zeros(2, 4), ids(4)]]
        part = cut(batch, self.tree, [(1, 3)])
        assert part[0]["a"].tolist() == [1, 2]
        assert part[1][0].shape == (2, 2)
        assert part[1][1].tolist() == [0, 1, 2, 3]
        assert whole_rows(self.tree) == 8

    def test_an_exhausted_loader_has_no_part(self):
        tree = as_tree([BatchRows(8, 4, Axis(0)), None])
        assert whole_rows(tree) == 8
        assert cut([ids(4), None], tree, [(0, 1)])[1] is None

    def test_trees_travel_as_plain_values(self):
        assert tree_from_plain(tree_to_plain(self.tree)) == self.tree
        assert tree_from_plain(tree_to_plain(None)) is None

    def test_loaders_with_different_numbers_of_rows_are_refused(self):
        tree = {"a": BatchRows(4, 4, Axis(0)), "b": BatchRows(8, 8, Axis(0))}
        with pytest.raises(DataError, match="4 and 8 rows into one step.*same batch_size"):
            whole_rows(tree)


class TestBehindHooks:
    """A hook behind the loader may hand on something else than the loader gave."""

    part = BatchRows(8, 3, {0: Axis(0), 1: None})

    def test_the_loaders_axes_are_used_where_they_fit(self):
        batch = [ids(3), ids(3)]  # the second is shared, and has 3 entries by coincidence
        assert [len(leaf) for leaf in cut(batch, self.part, [(0, 1)])] == [1, 3]

    def test_another_structure_is_looked_at_anew(self):
        batch = {"x": ids(3), "mask": ids(3) > 0, "scale": torch.ones(7)}
        part = cut(batch, self.part, [(0, 2)])
        assert [len(part[key]) for key in ("x", "mask", "scale")] == [2, 2, 7]

    def test_another_number_of_rows_is_refused(self):
        with pytest.raises(DataError, match="gave this device 3 rows.*there are 6"):
            cut([ids(6), ids(3)], self.part, [(0, 1)])
        with pytest.raises(DataError, match="no part of the batch"):
            cut({"x": ids(6)}, self.part, [(0, 1)])

    def test_a_batch_that_is_one_row_is_never_cut(self):
        rows, axes = find_rows({"edges": ids(7)}, lambda batch: None)
        assert (rows, axes) == (1, None)
        batch = {"edges": ids(7)}
        assert cut(batch, BatchRows(1, 1, axes), [(0, 1), (0, 1)]) is batch

    def test_no_batch_stays_none(self):
        assert cut(None, None, [(0, 1)]) is None


def test_leaves_have_paths():
    assert batch_leaves({"a": [1, 2]}) == [("batch['a'][0]", 1), ("batch['a'][1]", 2)]
