from __future__ import annotations

import copy

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from lightning_edge.errors import UnsupportedError
from lightning_edge.loop.records import Recorder
from tests.loop.fakes import SlicingStrategy, run_ranks
from tests.loop.runs import LAYOUTS, Net, data, fit, fit_ranks, trainer

pytestmark = pytest.mark.filterwarnings("ignore")  # Trainers have much to say


class Logs(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        self.log("before_model", x.sum(), reduce_fx="sum")
        loss = F.cross_entropy(self.predict(x), y)
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("rows", float(len(x)), reduce_fx="sum", on_step=True, on_epoch=True)
        self.log("largest", x.max(), reduce_fx="max", on_epoch=True, on_step=False)
        self.log("own_weight", x.mean(), batch_size=len(x) * 10, on_epoch=True, sync_dist=True)
        self.log_dict({"a": x.min(), "b": x[:, 0].min()}, reduce_fx="min", on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.predict(x), y)
        self.log("val_loss", loss)
        self.log("val_count", (y == 1).sum().float(), reduce_fx=torch.sum)
        self.log("val_step", loss.item(), on_step=True, on_epoch=True, rank_zero_only=True)


def logged(run):
    return {
        "callback": {k: v.item() for k, v in run.callback_metrics.items()},
        "order": list(run.callback_metrics),
        "logger": run.logger.lines,
        "progress": run.progress_bar_metrics,
        "stopped": (run.global_step, run.current_epoch),
    }


def assert_same(found, expected):
    assert found["order"] == expected["order"]
    assert found["stopped"] == expected["stopped"]
    for what in ("callback", "progress"):
        assert found[what] == pytest.approx(expected[what], abs=1e-6, rel=1e-6)
    assert len(found["logger"]) == len(expected["logger"])
    for (step, line), (right_step, right) in zip(found["logger"], expected["logger"], strict=True):
        assert step == right_step
        assert line == pytest.approx(right, abs=1e-6, rel=1e-6)


@pytest.fixture(scope="module")
def alone():
    return logged(fit(Logs()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_device_logs_what_one_would(alone, layout):
    found = fit_ranks(layout, Logs, logged)
    for one in found:
        assert one == found[0]
        assert_same(one, alone)


class Stops(Logs):
    """The validation loss gets worse on purpose after the second epoch."""

    def validation_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.predict(x), y)
        self.log("val_loss", loss * (1 + abs(self.current_epoch - 1)))


def test_early_stopping_stops_at_the_same_step():
    def callbacks():
        return [EarlyStopping("val_loss", patience=1)]

    alone = logged(fit(Stops(), callbacks=callbacks(), max_epochs=9))
    assert alone["stopped"][1] < 9
    for one in fit_ranks("two replicas", Stops, logged, callbacks=callbacks, max_epochs=lambda: 9):
        assert one["stopped"] == alone["stopped"]


class Renames(Net):
    def log(self, name, value, **kwargs):
        super().log(f"mine/{name}", value, **kwargs)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.predict(batch[0]), batch[1])
        self.log("loss", loss, on_epoch=True)
        self.log("loss", loss + 1, on_epoch=True)  # Lightning keeps the last and adds both up
        if batch_idx == 1:
            self.log("late", 1)
        return {"loss": loss}


def test_an_overridden_log_and_repeated_keys_work():
    alone = logged(fit(Renames()))
    assert "mine/loss_epoch" in alone["callback"]
    for one in fit_ranks("two replicas", Renames, logged):
        assert_same(one, alone)


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (TypeError, "unexpected keyword", {"value": 1.0, "progbar": True}),
        (ValueError, "single element", {"value": torch.ones(2)}),
        (ValueError, "str.*cannot be logged", {"value": "text"}),
        (Exception, "Only .*reduce_fx", {"value": 1.0, "reduce_fx": "median"}),
        (Exception, "not useful", {"value": 1.0, "on_step": False, "on_epoch": False}),
        (Exception, "different arguments", {"name": "loss", "value": 1.0, "prog_bar": True}),
        (Exception, "dataloader_idx", {"name": "a/dataloader_idx_0", "value": 1.0}),
    ],
)
def test_bad_arguments_raise_where_the_user_wrote_them(error, match, arguments):
    class Wrong(Net):
        def training_step(self, batch, batch_idx):
            loss = self.predict(batch[0]).sum()
            self.log("loss", loss)
            self.log(**{"name": "x", **arguments})
            return loss

    with pytest.raises(error, match=match) as alone:
        fit(Wrong())
    with pytest.raises(error, match=match) as found:
        fit_ranks("pipeline", Wrong, logged)
    assert str(found.value) == str(alone.value)
    assert type(found.value) is type(alone.value)
    assert "training_step" in [entry.frame.code.name for entry in found.traceback]


def test_a_log_call_in_a_backward_hook_is_refused():
    class Late(Net):
        def training_step(self, batch, batch_idx):
            self.log("in_time", 1.0)
            self.weights = batch
            return self.predict(batch[0]).sum()

    def late(run):
        recorder, module = run.strategy.recorder, run.lightning_module
        with recorder.step("training_step"):
            with recorder.micro_batch(4):
                assert "log" in module.__dict__
            with pytest.raises(UnsupportedError, match="on_after_backward"):
                module.log("x", 1.0)
        assert "log" not in module.__dict__

    fit_ranks("one device", Late, late)


class Keeps(Net):
    """Looks at what is left on the module at places that see it."""

    def training_step(self, batch, batch_idx):
        loss = self.predict(batch[0]).sum()
        self.copy = copy.deepcopy(self)
        self.log("loss", loss)
        return loss

    def on_train_batch_end(self, *_):
        assert "log" not in self.__dict__
        self.log("everywhere", 2.0)


def test_log_is_replaced_during_the_step_only_and_copies_have_their_own():
    def look(run):
        module = run.lightning_module
        if module.reaches_end:
            assert module.copy.log.__func__ is L.LightningModule.log
            assert module.copy.log.__self__ is module.copy
        return run.callback_metrics["everywhere"].item()

    assert fit_ranks("pipeline", Keeps, look) == [2.0, 2.0]


def test_no_graph_is_kept(monkeypatch):
    graphs = []
    monkeypatch.setattr(Recorder, "_replay", lambda self, call: graphs.append(call.value.grad_fn))
    fit_ranks("two replicas", Logs, lambda run: None)
    assert graphs
    assert set(graphs) == {None}


class Predicts(Net):
    def __init__(self, reaches_end=True, logs=False):
        super().__init__(reaches_end)
        self.logs, self.seen = logs, MeanMetric()

    def predict_step(self, batch, batch_idx):
        self.seen(self.predict(batch[0]))
        if self.logs:
            self.log("x", 1.0)


def predict(logs):
    def main(rank, transport):
        strategy = SlicingStrategy(rank, transport, LAYOUTS["pipeline"][3], 3, (1,))
        run = trainer(strategy)
        run.predict(Predicts(rank == 1, logs), DataLoader(data(), batch_size=8))
        return run.lightning_module

    return run_ranks(2, main)


def test_predict_needs_no_records():
    for module in predict(logs=False):
        assert "log" not in module.__dict__


def test_logging_in_predict_step_is_refused_as_by_lightning():
    with pytest.raises(MisconfigurationException, match="`predict` hook"):
        predict(logs=True)
