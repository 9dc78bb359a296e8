from __future__ import annotations

import pytest
import torch

from lightning_edge.loop.merge import Logged, merge, pack, unpack
from lightning_edge.train.codec import decode, encode


def call(name, value, weight=1.0, how="mean", nth=0, **options):
    tensor = None if value is None else torch.as_tensor(value)
    return Logged(name, nth, tensor, weight, None, how, options)


def values(calls):
    return {c.name: (c.value.item(), c.weight) for c in calls}


def test_means_are_weighted_by_rows_over_micro_batches_and_devices():
    device_3 = [call("loss", 0.6, 4.0), call("loss", 0.4, 4.0)]
    device_4 = [call("loss", 0.35, 1.0)]
    assert values(merge([device_3, device_4])) == {
        "loss": (pytest.approx((0.6 * 4 + 0.4 * 4 + 0.35) / 9), 9.0)
    }


@pytest.mark.parametrize(("how", "expected"), [("sum", 8.0), ("max", 5.0), ("min", 1.0)])
def test_other_reductions_ignore_rows(how, expected):
    parts = [[call("x", 5.0, 100.0, how), call("x", 1.0, 1.0, how)], [call("x", 2.0, 1.0, how)]]
    assert merge(parts)[0].value == expected


def test_keys_keep_the_order_in_which_they_first_appear():
    parts = [[call("b", 1.0), call("a", 1.0), call("b", 1.0)], [call("c", 1.0), call("a", 1.0)]]
    assert [c.name for c in merge(parts)] == ["b", "a", "c"]


def test_a_key_logged_twice_in_a_micro_batch_stays_two_calls():
    micro_batch = [call("x", 1.0), call("x", 10.0, nth=1)]
    merged = merge([[*micro_batch, *micro_batch]])
    assert [(c.nth, c.value.item()) for c in merged] == [(0, 1.0), (1, 10.0)]


def test_what_only_some_micro_batches_logged_is_merged_over_these():
    assert merge([[call("x", 1.0, 4.0)], []])[0].value == 1.0


def test_one_value_passes_unchanged():
    for tensor in (torch.tensor(3), torch.tensor(0.1, dtype=torch.bfloat16), torch.tensor(True)):
        merged = merge([[call("x", tensor, 2.0)]])[0].value
        assert merged.dtype == tensor.dtype
        assert torch.equal(merged, tensor)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bfloat16, torch.float16, torch.bool])
def test_a_mean_of_narrow_or_whole_numbers_is_float32(dtype):
    parts = [[call("x", torch.tensor(1, dtype=dtype)), call("x", torch.tensor(0, dtype=dtype))]]
    merged = merge(parts)[0].value
    assert (merged.dtype, merged.item()) == (torch.float32, 0.5)


def test_no_weight_at_all_counts_every_value_once():
    assert merge([[call("x", 1.0, 0.0), call("x", 3.0, 0.0)]])[0].value == 2.0


def test_nan_is_not_hidden():
    for how in ("mean", "sum", "max", "min"):
        assert merge([[call("x", 1.0, 1.0, how), call("x", float("nan"), 1.0, how)]])[
            0
        ].value.isnan()


def test_calls_survive_the_message():
    calls = [
        call("a", torch.tensor(1 / 3), 4.0, on_step=True, prog_bar=False),
        Logged("m", 0, None, 4.0, "metrics.acc", "mean", {"on_epoch": True}),
        call("b", torch.tensor(2**40 + 1), how="sum"),
        call("c", torch.tensor(0.1, dtype=torch.bfloat16), how="max", nth=1),
    ]
    back = unpack(decode(encode(pack(calls))))
    assert [c.key for c in back] == [c.key for c in calls]
    for old, new in zip(calls, back, strict=True):
        assert old.weight == new.weight
        if old.value is None:
            assert new.value is None
        else:
            assert new.value.dtype == old.value.dtype
            assert torch.equal(new.value, old.value)
