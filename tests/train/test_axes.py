from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate

from lightning_edge.errors import DataError
from lightning_edge.train.axes import (
    Axis,
    axes_from_dims,
    count_rows,
    find_axes,
    fits,
    from_plain,
    learn_axes,
    to_plain,
)


def rows_of(*shape):
    return torch.arange(int(np.prod(shape))).reshape(shape)


class TestFind:
    def test_the_first_dimension_of_the_first_tensor_counts(self):
        batch = {
            "scale": torch.tensor(2.0),
            "image": rows_of(4, 3),
            "label": np.arange(4),
            "name": ["a", "b", "c", "d"],
            "path": "abcd",
            "weights": rows_of(10),
            "nothing": None,
            "box": [rows_of(4, 2), rows_of(5)],
        }
        rows, axes = find_axes(batch)
        assert rows == 4
        assert axes == {
            "scale": None,
            "image": Axis(0),
            "label": Axis(0),
            "name": Axis(0),
            "path": None,
            "weights": None,
            "nothing": None,
            "box": {0: Axis(0), 1: None},
        }

    @pytest.mark.parametrize(
        ("batch", "rows"),
        [
            (["a", "b", "c"], 3),
            ({"text": ["a", "b"], "label": [0, 1]}, 2),
            ([("a", "b"), ("c", "d"), ("e", "f")], 2),  # default_collate of three texts, two rows
            ([torch.tensor(1.0), torch.tensor(2.0)], 2),
        ],
    )
    def test_without_tensors_the_first_list_counts(self, batch, rows):
        assert find_axes(batch)[0] == rows

    def test_inputs_and_labels_of_two_rows_are_not_two_samples(self):
        rows, axes = find_axes([rows_of(2, 3), rows_of(2)])
        assert (rows, axes) == (2, {0: Axis(0), 1: Axis(0)})
        assert find_axes((rows_of(2, 3), 0.5))[1] == {0: Axis(0), 1: None}

    def test_a_list_of_samples(self):
        batch = {"x": rows_of(3), "boxes": [{"box": rows_of(k, 4)} for k in (5, 0, 1)]}
        assert find_axes(batch)[1]["boxes"] == Axis(0)

    @pytest.mark.parametrize("batch", [None, 3, "text", {}, [], {"a": torch.tensor(1)}, object()])
    def test_nothing_to_count(self, batch):
        with pytest.raises(DataError, match="cannot see how many rows.*edge_row_dims"):
            find_axes(batch)


class TestLearn:
    """Two collated sizes of the same samples tell more than one batch can."""

    def learned(self, collate, samples):
        small = collate(list(samples[:2]))
        return learn_axes(small, 2, collate([*samples[:2], samples[0]]), 3)

    def test_what_grows_has_the_rows(self):
        samples = [(torch.rand(3, 2), 1, "text", {"size": (2, 2)})] * 2
        axes = self.learned(default_collate, samples)
        assert axes == {
            0: Axis(0),
            1: Axis(0),
            2: Axis(0),
            3: {"size": {0: Axis(0), 1: Axis(0)}},
        }

    def test_time_first(self):
        samples = [torch.rand(5, 4), torch.rand(3, 4)]
        assert self.learned(pad_sequence, samples) == Axis(1)

    def test_detection(self):
        samples = [(torch.rand(3, 8, 8), {"boxes": torch.rand(k, 4)}) for k in (2, 3)]
        axes = self.learned(lambda batch: tuple(zip(*batch, strict=True)), samples)
        assert axes == {0: Axis(0), 1: Axis(0)}

    def test_several_entries_for_each_row(self):
        def choices(batch):
            return {"ids": torch.cat([torch.zeros(4, 7) for _ in batch]), "y": torch.ones(2)}

        assert self.learned(choices, [0, 1]) == {"ids": Axis(0, 4), "y": None}

    def test_what_is_shared_stays_whole_whatever_its_size(self):
        def with_weights(batch):
            return torch.stack(batch), torch.ones(2), [224, 224], "ab"

        axes = self.learned(with_weights, [torch.rand(2), torch.rand(2)])
        assert axes == {0: Axis(0), 1: None, 2: {0: None, 1: None}, 3: None}

    def test_other_structures_are_refused(self):
        with pytest.raises(DataError, match="different keys"):
            learn_axes({"a": 1}, 2, {"b": 1}, 3)
        with pytest.raises(DataError, match="different structures"):
            learn_axes([1], 2, (1,), 3)
        with pytest.raises(DataError, match="no rule"):
            learn_axes([1], 2, [1, 2], 3)


class TestSaid:
    """`edge_row_dims` has the first word."""

    def test_dimensions_become_axes(self):
        batch = {
            "x": rows_of(7, 4, 2),
            "ids": rows_of(8, 3),
            "w": rows_of(4),
            "boxes": [1, 2, 3, 4],
        }
        axes = axes_from_dims(batch, {"x": -2, "ids": 0, "w": None, "boxes": 0})
        assert axes == {"x": Axis(1), "ids": Axis(0, 2), "w": None, "boxes": Axis(0)}
        assert count_rows(batch, axes) == 4

    def test_all_problems_are_named_at_once(self):
        batch = {"x": rows_of(4, 2), "y": rows_of(4), "z": 1.0}
        with pytest.raises(DataError) as error:
            axes_from_dims(batch, {"x": 2, "y": {"a": 0}, "z": 0})
        text = str(error.value)
        assert "batch['x'] is a Tensor of shape [4, 2] and has no dimension 2" in text
        assert "batch['y'] is a Tensor of shape [4], not a container" in text
        assert "batch['z'] is a float and has no dimension 0" in text

    def test_missing_keys_are_named(self):
        with pytest.raises(DataError, match=r"batch has \['x', 'y'\], edge_row_dims says \['x'\]"):
            axes_from_dims({"x": rows_of(2), "y": rows_of(2)}, {"x": 0})


class TestCount:
    def test_leaves_that_disagree_are_named(self):
        axes = {"a": Axis(0), "b": Axis(0), "c": Axis(1, 2)}
        batch = {"a": rows_of(4), "b": rows_of(16), "c": rows_of(3, 7)}
        with pytest.raises(DataError) as error:
            count_rows(batch, axes)
        text = str(error.value)
        assert "4 rows by batch['a']" in text
        assert "batch['b'] has 16 entries in dimension 0" in text
        assert "batch['c'] has 7 entries in dimension 1 (2 for each row)" in text

    def test_no_rows_at_all(self):
        with pytest.raises(DataError, match="no part of the batch"):
            count_rows({"a": 1}, {"a": None})

    def test_fits_looks_at_the_structure(self):
        axes = {"a": Axis(0), "b": {0: Axis(1), 1: None}}
        assert fits({"a": rows_of(3), "b": [rows_of(2, 3), "x"]}, axes)
        assert not fits({"a": rows_of(3), "b": [rows_of(2), "x"]}, axes)
        assert not fits({"a": rows_of(3)}, axes)
        assert not fits(rows_of(3), axes)

    def test_axes_travel_as_plain_values(self):
        axes = {"a": Axis(0), "b": {0: Axis(1, 3), 1: None}}
        assert from_plain(to_plain(axes)) == axes
        assert from_plain(to_plain(None)) is None
