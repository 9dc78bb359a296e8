from __future__ import annotations

import copy
import warnings

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.classification import MulticlassAUROC

from lightning_edge.errors import UnsupportedError
from lightning_edge.loop.epoch_end import EpochEndHooks
from tests.loop.runs import BATCH, CLASSES, LAYOUTS, ROWS, Net, fit, fit_ranks
from tests.loop.test_records import assert_same, logged

pytestmark = pytest.mark.filterwarnings("ignore")  # Trainers have much to say

ONE_LAST = ["one device", "pipeline", "last stage first", "a replica without rows"]


class Lists(Net):
    """Collects outputs by hand, as many modules do."""

    def __init__(self, reaches_end=True):
        super().__init__(reaches_end)
        self.outputs, self.losses, self.ran = [], [], []
        self.auroc = MulticlassAUROC(num_classes=CLASSES)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.predict(batch[0]), batch[1])
        self.losses.append(loss.detach() * len(batch[0]))
        return loss

    def on_train_epoch_end(self):
        self.log("train_mean", torch.stack(self.losses).sum() / ROWS, reduce_fx="sum")
        self.losses.clear()

    def validation_step(self, batch, batch_idx):
        logits = self.predict(batch[0])
        self.auroc.update(logits.softmax(-1), batch[1])
        self.outputs.append((logits, batch[1]))
        self.log("val_loss", F.cross_entropy(logits, batch[1]))

    def on_validation_epoch_end(self):
        logits = torch.cat([o[0] for o in self.outputs])
        targets = torch.cat([o[1] for o in self.outputs])
        self.outputs.clear()
        self.ran.append(len(logits))
        self.log("val_auroc", self.auroc.compute(), prog_bar=True)
        self.auroc.reset()
        self.log("by_hand", F.cross_entropy(logits, targets), batch_size=len(logits))
        self.log("val_rows", float(len(logits)), reduce_fx="sum")
        self.log("twice_val_loss", 2 * self.trainer.callback_metrics["val_loss"])


@pytest.fixture(scope="module")
def alone():
    return logged(fit(Lists()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hand_made_epoch_values_are_those_of_one_device(alone, layout):
    found = fit_ranks(layout, Lists, lambda run: (logged(run), run.lightning_module.ran))
    for one, _ in found:
        assert one == found[0][0]
        assert_same(one, alone)
    ran_rows = [sum(ran) for _, ran in found]
    assert sum(ran_rows) == 2 * ROWS
    last_ranks = LAYOUTS[layout][1]
    with_rows = [r for r in last_ranks if (layout, r) != ("a replica without rows", 0)]
    assert [rank for rank, rows in enumerate(ran_rows) if rows] == with_rows


class Collectives(Lists):
    def on_validation_epoch_end(self):
        rows = torch.tensor(float(sum(len(o[0]) for o in self.outputs)))
        self.outputs.clear()
        gathered = self.all_gather(rows)
        self.log("all_rows", gathered.sum())
        self.log("reduced", self.trainer.strategy.reduce(rows, reduce_op="sum"))
        self.log("shape", float(gathered.dim()))
        assert self.trainer.log_dir == "logs"


@pytest.mark.parametrize(("layout", "dims"), [("two replicas", 1.0), ("pipeline", 0.0)])
def test_gathering_works_among_the_devices_that_run_the_hook(layout, dims):
    for one in fit_ranks(layout, Collectives, logged):
        assert one["callback"]["all_rows"] == ROWS
        assert one["callback"]["reduced"] == ROWS
        assert one["callback"]["shape"] == dims


class Waits(Net):
    def __init__(self, reaches_end=True, where="training_step", call="barrier"):
        super().__init__(reaches_end)
        self.where, self.call = where, call

    def maybe(self, where):
        if where != self.where:
            return
        if self.call == "log_dir":
            assert self.trainer.log_dir == "logs"
        elif self.call == "all_gather":
            self.all_gather(torch.ones(1))
        elif self.call == "broadcast":
            self.trainer.strategy.broadcast({"path": 1})
        elif self.call == "reduce":
            self.trainer.strategy.reduce(torch.ones(1))
        elif self.call == "save_checkpoint":
            self.trainer.strategy.barrier()

    def training_step(self, batch, batch_idx):
        logits = self.predict(batch[0])
        self.maybe("training_step")
        return logits.sum()

    def validation_step(self, batch, batch_idx):
        self.predict(batch[0])
        self.maybe("validation_step")

    def on_validation_epoch_end(self):
        self.maybe("on_validation_epoch_end")


@pytest.mark.parametrize(
    ("where", "call", "advice"),
    [
        ("training_step", "all_gather", "self.log"),
        ("validation_step", "reduce", "reduce_fx"),
        ("training_step", "broadcast", "on_fit_start"),
        ("on_validation_epoch_end", "broadcast", "on_fit_start"),
        ("on_validation_epoch_end", "save_checkpoint", "Callback"),
    ],
)
def test_collectives_that_would_hang_are_refused(where, call, advice):
    name = {"save_checkpoint": "barrier"}.get(call, call)
    with pytest.raises(UnsupportedError, match=f"{name} was called inside {where}.*{advice}"):
        fit_ranks("pipeline", lambda end: Waits(end, where, call), logged)


def test_the_log_dir_is_known_in_steps():
    for where in ("training_step", "validation_step", "on_validation_epoch_end"):
        fit_ranks("pipeline", lambda end, where=where: Waits(end, where, "log_dir"), logged)


class Decides(Net):
    """Decides things at the end of an epoch that all devices must follow."""

    def __init__(self, reaches_end=True):
        super().__init__(reaches_end)
        self.extra = torch.nn.Linear(2, 2)
        self.bodies = 0

    def training_step(self, batch, batch_idx):
        return self.predict(batch[0]).sum()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.0, momentum=0.5)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "monitor": "x", "strict": False},
        }

    def on_train_epoch_end(self):
        self.bodies += 1
        self.extra.weight.requires_grad = False
        self.optimizers().param_groups[0]["lr"] = 0.125
        self.lr_schedulers().step(1.0)
        self.trainer.should_stop = True


def decided(run):
    scheduler = run.lr_scheduler_configs[0].scheduler
    return {
        "epochs": run.current_epoch,
        "frozen": not run.lightning_module.extra.weight.requires_grad,
        "lr": run.optimizers[0].param_groups[0]["lr"],
        "momentum": run.optimizers[0].param_groups[0]["momentum"],
        "best": scheduler.best,
        "counted": scheduler.last_epoch,
    }


def test_decisions_of_a_hook_are_followed_everywhere():
    alone = decided(fit(Decides(), max_epochs=3))
    assert alone["epochs"] == 1
    assert alone["frozen"]
    assert (alone["lr"], alone["best"]) == (0.125, 1.0)
    for one in fit_ranks("two replicas", Decides, decided, max_epochs=lambda: 3):
        assert one == alone
    assert fit_ranks("pipeline", Decides, lambda run: run.lightning_module.bodies)[0] == 0


def test_hooks_are_the_users_own_before_and_after_and_in_copies():
    class Looks(Lists):
        def on_train_batch_end(self, *_):
            self.copied = copy.deepcopy(self)

    def look(run):
        module = run.lightning_module
        assert module.copied.on_train_epoch_end.__func__ is Lists.on_train_epoch_end
        assert module.copied.on_train_epoch_end.__self__ is module.copied
        return [name for name in module.__dict__ if name.startswith("on_")]

    assert fit_ranks("pipeline", Looks, look) == [[], []]


def test_a_module_without_such_hooks_is_left_alone():
    class Recorded:
        last_ranks = (0,)

    module = Net()
    hooks = EpochEndHooks(module, Recorded())
    before = dict(module.__dict__)
    hooks.install()
    assert module.__dict__.keys() == before.keys()
    hooks.remove()


class Draws(Net):
    def validation_step(self, batch, batch_idx): ...

    def on_validation_epoch_end(self):
        [self.logger.experiment.add_figure("x", None) for _ in range(1)]


@pytest.mark.parametrize(("last_ranks", "warns"), [((1, 2), True), ((0, 1), False)])
def test_pictures_that_nobody_would_see_are_announced(last_ranks, warns):
    class Recorded:
        pass

    recorded = Recorded()
    recorded.last_ranks = last_ranks
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        EpochEndHooks(Draws(), recorded).install()
    found = [w for w in caught if "on_validation_epoch_end of Draws" in str(w.message)]
    assert bool(found) is warns


def test_an_error_in_a_hook_keeps_its_traceback_and_undoes_the_section():
    class Fails(Lists):
        def on_validation_epoch_end(self):
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine") as found:
        fit_ranks("pipeline", Fails, logged)
    assert "on_validation_epoch_end" in [entry.frame.code.name for entry in found.traceback]
    assert BATCH < ROWS
    assert isinstance(Fails(), L.LightningModule)


def test_what_only_one_of_several_devices_decides_counts_too():
    class Second(Decides):
        def on_train_epoch_end(self):
            if self.trainer.strategy.rank == 2:
                self.trainer.should_stop = True
                self.optimizers().param_groups[0]["lr"] = 0.5
            else:
                self.optimizers().param_groups[0]["lr"] = 0.25

    found = fit_ranks("two replicas", Second, decided, max_epochs=lambda: 3)
    assert [(one["epochs"], one["lr"]) for one in found] == [(1, 0.25)] * 3
