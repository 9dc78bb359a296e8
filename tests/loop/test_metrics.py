from __future__ import annotations

import copy
import pickle

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torchmetrics import CatMetric, MaxMetric, MeanMetric, Metric, MetricCollection, SumMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
)
from torchmetrics.regression import PearsonCorrCoef
from torchmetrics.wrappers import MinMaxMetric

from lightning_edge.errors import UnsupportedError
from lightning_edge.loop.metric_states import blank_copy, merged, states_of
from tests.loop.runs import CLASSES, LAYOUTS, Net, fit, fit_ranks
from tests.loop.test_records import assert_same, logged

pytestmark = pytest.mark.filterwarnings("ignore")  # Trainers have much to say


class ListOfAny(Metric):
    """A list state without reduction, as retrieval metrics have."""

    def __init__(self):
        super().__init__()
        self.add_state("seen", default=[], dist_reduce_fx=None)

    def update(self, x):
        self.seen.append(x.sum())

    def compute(self):
        return torch.stack(self.seen).sum() if self.seen else torch.tensor(-1.0)


class Measures(Net):
    def __init__(self, reaches_end=True):
        super().__init__(reaches_end)
        kinds = {"num_classes": CLASSES}
        self.accuracy = MulticlassAccuracy(**kinds)
        self.auroc = MulticlassAUROC(**kinds)
        self.mean = MeanMetric()
        self.total = SumMetric()
        self.largest = MaxMetric()
        self.pearson = PearsonCorrCoef()
        self.anything = ListOfAny()
        self.minmax = torch.nn.ModuleDict({"total": SumMetric(), "cat": CatMetric()})
        self.collection = MetricCollection(
            {"p": MulticlassPrecision(**kinds), "f1": MulticlassF1Score(**kinds)}, prefix="c/"
        )
        self.val_accuracy = MulticlassAccuracy(**kinds)
        self.val_auroc = MulticlassAUROC(**kinds)
        self.val_collection = self.collection.clone(prefix="val/")
        self.val_mean = MeanMetric()

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.predict(x)
        loss = F.cross_entropy(logits, y)
        both = {"on_step": True, "on_epoch": True}
        self.accuracy(logits, y)
        self.log("accuracy", self.accuracy, **both)
        self.auroc(logits.softmax(-1), y)
        self.log("auroc", self.auroc, **both)
        self.mean.update(loss, weight=len(x))
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        self.total(len(x))
        self.log("total", self.total, **both, prog_bar=True)
        self.largest(logits)
        self.log("largest", self.largest, on_step=True, on_epoch=False)
        self.pearson(logits[:, 0], y.float())
        self.log("pearson", self.pearson, on_step=False, on_epoch=True)
        self.anything(x)
        self.log("anything", self.anything, **both)
        self.minmax["total"].update(x.sum())
        self.log("nested", self.minmax["total"], on_step=False, on_epoch=True)
        self.collection(logits, y)
        self.log_dict(self.collection, **both)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self.predict(x)
        self.val_accuracy(logits, y)
        self.log("val_accuracy", self.val_accuracy)
        self.val_auroc.update(logits.softmax(-1), y)
        self.log("val_auroc", self.val_auroc)
        self.val_collection.update(logits, y)
        self.log_dict(self.val_collection)
        self.val_mean(logits.mean(), len(x))
        self.log("val_mean", self.val_mean, on_step=True)


@pytest.fixture(scope="module")
def alone():
    return logged(fit(Measures()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_metrics_have_one_value_everywhere(alone, layout):
    found = fit_ranks(layout, Measures, logged)
    for one in found:
        assert one == found[0]
        assert_same(one, alone)


class Looks(Measures):
    """Its callback looks at metrics where every device runs."""

    def __init__(self, reaches_end=True):
        super().__init__(reaches_end)
        self.confusion = MulticlassConfusionMatrix(num_classes=CLASSES)
        self.extremes = MinMaxMetric(MulticlassAccuracy(num_classes=CLASSES))
        self.everywhere = SumMetric()

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        logits = self.predict(batch[0])
        self.confusion(logits, batch[1])
        self.extremes.update(logits, batch[1])

    def on_validation_batch_end(self, *_):
        self.everywhere.update(1.0)


class Look(L.Callback):
    def __init__(self):
        self.found = []

    def on_validation_epoch_end(self, run, module):
        self.found.append(
            [
                module.confusion.compute().tolist(),
                {name: value.item() for name, value in module.extremes.compute().items()},
                module.everywhere.compute().item(),
                {name: value.item() for name, value in module.val_collection.compute().items()},
                module.val_auroc.compute().item(),
            ]
        )
        module.confusion.reset()
        module.extremes.reset()
        module.everywhere.reset()


def looked(run):
    return run.callbacks[0].found


@pytest.mark.parametrize("layout", ["pipeline", "two replicas", "a replica without rows"])
def test_callbacks_of_all_devices_get_the_same_values(layout):
    alone = looked(fit(Looks(), callbacks=[Look()]))
    assert [found[2] for found in alone] == [3.0, 3.0]
    for one in fit_ranks(layout, Looks, looked, callbacks=lambda: [Look()]):
        assert [(c, e) for c, _, e, *_ in one] == [(c, e) for c, _, e, *_ in alone]
        for found, expected in zip(one, alone, strict=True):
            assert found[1] == pytest.approx(expected[1])
            assert found[3] == pytest.approx(expected[3])
            assert found[4] == pytest.approx(expected[4])


class Impatient(L.Callback):
    """A progress bar on one rank wants the values before anyone else computes them."""

    def __init__(self, rank):
        self.rank, self.found = rank, []

    def on_train_epoch_end(self, run, module):
        if getattr(run.strategy, "rank", 0) == self.rank:
            self.found.append(dict(run.progress_bar_metrics))


class Ends(Measures):
    def on_train_epoch_end(self):
        self.log("end", self.trainer.callback_metrics["mean"])


@pytest.mark.parametrize("rank", [0, 2])  # in front of the last stage, and one of its devices
@pytest.mark.parametrize("make", [Measures, Ends])
def test_one_device_may_ask_first(make, rank):
    alone = looked(fit(make(), callbacks=[Impatient(0)]))
    found = fit_ranks("two replicas", make, looked, callbacks=lambda: [Impatient(rank)])
    assert len(alone) == 2
    for one, other in zip(found[rank], alone, strict=True):
        assert one == pytest.approx(other)


class Early(Net):
    """Updates a metric in front of the model, where every device comes along, and one behind it."""

    def __init__(self, reaches_end=True):
        super().__init__(reaches_end)
        self.seen, self.behind = SumMetric(), SumMetric()

    def training_step(self, batch, batch_idx):
        self.seen(len(batch[0]))
        self.log("seen", self.seen, on_step=True, on_epoch=True)
        logits = self.predict(batch[0])
        self.behind.update(len(batch[0]))
        self.log("in_step", self.behind.compute(), reduce_fx="max")
        return logits.sum()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_updates_in_front_of_the_model_count_once(layout):
    for one in fit_ranks(layout, Early, logged):
        assert one["callback"]["seen_epoch"] == 22.0
        assert one["callback"]["seen_step"] == 6.0


def test_compute_in_a_step_is_this_devices_own():
    for one in fit_ranks("pipeline", Early, logged):
        assert one["callback"]["in_step"] == 44.0  # never reset: two epochs of 22 rows


class Strange(Net):
    def training_step(self, batch, batch_idx):
        loss = self.predict(batch[0]).sum()
        self.log("x", MeanMetric(), metric_attribute="weight")
        return loss


def test_a_metric_outside_the_module_is_refused():
    with pytest.raises(UnsupportedError, match="MeanMetric was logged that is not part"):
        fit_ranks("pipeline", Strange, logged)


def test_copies_and_the_end_of_a_run_leave_plain_metrics():
    def look(run):
        return run.lightning_module

    class Copies(Early):
        def on_train_batch_end(self, *_):
            self.copied = [self.seen.clone(), copy.deepcopy(self.behind)]
            self.pickled = pickle.loads(pickle.dumps(self.seen))

    for module in fit_ranks("pipeline", Copies, look):
        for metric in (module.seen, *module.copied, module.pickled):
            before = metric.update_count
            metric.update(2.0)
            metric(3.0)
            assert metric.update_count == before + 2
            metric.reset()
            assert metric.compute() == 0.0
        assert "reset" not in module.seen.__dict__
        assert not module.seen._forward_hooks
        assert not module.seen._forward_pre_hooks


def test_states_of_devices_without_updates_are_left_out():
    updated, idle = PearsonCorrCoef(), PearsonCorrCoef()
    x = torch.tensor([0.0, 1.0, 2.0, 5.0])
    updated.update(x, x.square())
    with merged(idle, [states_of(idle), states_of(updated)]):
        value = idle.compute()
    assert value == updated.compute()
    assert idle.update_count == 0
    assert idle.n_total == 0


def test_uneven_and_empty_list_states_meet():
    parts = [ListOfAny() for _ in range(3)]
    for number, metric in enumerate(parts):
        for _ in range(number):
            metric.update(torch.ones(2))
    with merged(parts[0], [states_of(metric) for metric in parts]):
        assert parts[0].compute() == 6.0
    assert parts[0].seen == []


def test_a_blank_copy_has_no_states_and_the_original_keeps_them():
    metric = MulticlassAUROC(num_classes=CLASSES)
    logits = torch.randn(8, CLASSES, requires_grad=True)
    metric(logits.softmax(-1), torch.arange(8) % CLASSES)
    value = metric.compute()
    copied = blank_copy(metric)
    assert copied.preds == []
    copied.update(logits.detach().softmax(-1), torch.arange(8) % CLASSES)
    assert metric.update_count == 1
    assert metric.compute() == value
