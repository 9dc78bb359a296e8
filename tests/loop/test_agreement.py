from __future__ import annotations

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_edge.errors import ConfigMismatchError
from lightning_edge.loop.agreement import (
    agree,
    differences,
    facts_of_data,
    facts_of_module,
    facts_of_software,
    facts_of_trainer,
)
from tests.loop.fakes import run_ranks

NAMES = ["orin", "laptop", "nano"]


def test_nothing_to_say_about_equal_facts():
    facts = {"a": {"b": 1, "c": [1, None, "x"]}, "d": 0.5}
    assert differences([facts] * 3, NAMES) is None


def test_all_differences_are_shown_at_once_with_who_has_what():
    text = differences(
        [
            {"trainer": {"max_epochs": 3, "precision": "32-true"}, "batch": 16},
            {"trainer": {"max_epochs": 5, "precision": "32-true"}, "batch": 16},
            {"trainer": {"max_epochs": 3, "precision": "bf16-mixed"}},
        ],
        NAMES,
    )
    assert text is not None
    lines = text.splitlines()[1:]
    assert lines == [
        "  trainer.max_epochs:  3 on orin, nano;  5 on laptop",
        "  trainer.precision:  '32-true' on orin, laptop;  'bf16-mixed' on nano",
        "  batch:  16 on orin, laptop;  not set on nano",
    ]


def test_one_and_true_and_a_text_of_one_are_not_the_same():
    text = differences([{"x": 1}, {"x": True}, {"x": "1"}], NAMES)
    assert "1 on orin;  True on laptop;  '1' on nano" in text


def test_long_values_show_where_they_differ():
    plans = ["same " * 50 + f"start: {start} " + "tail " * 50 for start in ("blocks.3", "blocks.4")]
    text = differences([{"plan": plan} for plan in plans], NAMES[:2])
    assert "blocks.3" in text
    assert "blocks.4" in text
    assert len(text) < 400


def test_every_device_refuses_with_the_same_text():
    def main(rank, transport, values):
        try:
            agree(transport, {"x": {"y": values[rank]}}, names=NAMES)
        except ConfigMismatchError as error:
            return str(error)
        return None

    texts = run_ranks(3, main, [1, 1, 2])
    assert len(set(texts)) == 1
    assert "x.y:  1 on orin, laptop;  2 on nano" in texts[0]
    assert run_ranks(3, main, [1, 1, 1]) == [None] * 3


class Net(L.LightningModule):
    def __init__(self, width=3, dtype=torch.float32):
        super().__init__()
        self.layer = torch.nn.Linear(2, width, dtype=dtype)


def changed(one, other):
    return {key for key in one if one[key] != other[key]}


def test_facts_of_a_module_see_shapes_dtypes_names_and_what_is_trained():
    plain = facts_of_module(Net())
    assert facts_of_module(Net()) == plain
    assert plain["parameters"] == 9
    assert changed(plain, facts_of_module(Net(4))) == {"parameters", "names, shapes and dtypes"}
    assert changed(plain, facts_of_module(Net(dtype=torch.float64))) == {"names, shapes and dtypes"}
    frozen = Net()
    frozen.layer.bias.requires_grad = False
    assert changed(plain, facts_of_module(frozen)) == {"trained parameters"}


class Mine(L.Callback): ...


def make_trainer(**options):
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1, **options
    )
    trainer.state.fn = L.pytorch.trainer.states.TrainerFn.FITTING
    return trainer


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"accumulate_grad_batches": 2}, {"accumulate_grad_batches"}),
        ({"precision": "bf16-mixed"}, {"precision"}),
        ({"gradient_clip_val": 0.5}, {"gradient_clip_val"}),
        ({"limit_train_batches": 3}, {"limit_train_batches"}),
        ({"check_val_every_n_epoch": 2}, {"check_val_every_n_epoch"}),
        ({"callbacks": [L.pytorch.callbacks.Timer()]}, {"callbacks"}),
        ({"callbacks": [L.Callback()]}, {"callbacks"}),
        ({"callbacks": [Mine()]}, set()),
        ({"enable_progress_bar": False, "enable_model_summary": False}, set()),
    ],
)
def test_facts_of_a_trainer_see_what_decides_a_run(options, key):
    plain, other = facts_of_trainer(make_trainer()), facts_of_trainer(make_trainer(**options))
    assert changed(plain, other) == key


def test_every_setting_that_is_compared_exists():
    trainer = make_trainer(callbacks=[Mine()])
    runs_and_precision = {"precision", "runs", "callbacks"}
    for name in facts_of_trainer(trainer).keys() - runs_and_precision:
        assert hasattr(trainer, name)


def test_facts_of_data_and_software():
    data = TensorDataset(torch.zeros(10, 2))
    assert facts_of_data(DataLoader(data, 4)) == {
        "loader": "DataLoader",
        "batch_size": 4,
        "drop_last": False,
        "batches": 3,
        "dataset": "TensorDataset",
        "samples": 10,
    }
    endless = facts_of_data(iter([1]))
    assert endless["batches"] is None
    assert endless["samples"] is None
    assert facts_of_software()["torch"].count(".") == 1
    assert facts_of_software()["lightning"] == L.__version__


def test_facts_are_plain_values():
    def plain(value):
        if isinstance(value, dict):
            return all(isinstance(k, str) and plain(v) for k, v in value.items())
        if isinstance(value, list):
            return all(map(plain, value))
        return isinstance(value, (bool, int, float, str, type(None)))

    trainer = make_trainer(gradient_clip_val=1.0, limit_val_batches=0.5)
    assert plain(facts_of_trainer(trainer))
    assert plain(facts_of_module(Net()))
    assert plain(facts_of_software())
