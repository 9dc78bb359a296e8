"""Failures and signals: a status that is not 0, one clear last line, and no process left."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.app.commands import command, finish, start
from tests.app.test_train import SMALL

pytestmark = pytest.mark.thorough

MODEL = """\
import os
from pathlib import Path
import lightning_edge.zoo


class Failing(lightning_edge.zoo.DigitsClassifier):
    def training_step(self, batch, batch_idx):
        if batch_idx == 1 and os.environ["RANK"] == os.environ.get("FAILING"):
            raise ValueError("the step fails on purpose")
        Path(f"step-{os.environ['RANK']}").touch()
        return super().training_step(batch, batch_idx)
"""
FAILING = (*SMALL, "model._target_=mine.Failing")


def place(folder: Path) -> Path:
    (folder / "mine.py").write_text(MODEL)
    return folder


def test_an_error_in_the_users_code_is_shown_once_and_named_last(tmp_path):
    done = command("train", *FAILING, folder=place(tmp_path), FAILING="0")
    assert done.status == 1
    assert done.err.count("Traceback") == 1
    assert 'raise ValueError("the step fails on purpose")' in done.err
    assert done.last == "lightning-edge train: ValueError: the step fails on purpose"


@pytest.mark.slow
@pytest.mark.multiproc
def test_an_error_of_one_rank_ends_all_and_is_named(tmp_path):
    done = command(
        "train", *FAILING, "cluster.devices=2", "strategy.plan={pipelines: [{stages:"
        " [{devices: [0, 1]}]}]}", folder=place(tmp_path), FAILING="1",
    )  # fmt: skip
    assert done.status == 1
    assert done.last.startswith("lightning-edge train: rank 1")
    assert done.last.endswith("ValueError: the step fails on purpose")


@pytest.mark.multiproc
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_signals_end_a_run(tmp_path, number):
    longer = [word for word in FAILING if not word.startswith("trainer.")]
    process = start("train", *longer, "trainer.max_epochs=1000", folder=place(tmp_path))
    deadline = time.monotonic() + 100
    while not (tmp_path / "step-0").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    done = finish(process)
    assert done.status == 128 + number
    assert done.last == f"lightning-edge train: interrupted ({signal.Signals(number).name})"
    assert "Traceback" not in done.err
    assert not [child for child in started if child.is_running()]


def test_what_only_shows_when_objects_are_made_is_one_sentence(tmp_path):
    done = command("train", *SMALL, "+trainer.max_epoch=3", folder=tmp_path)
    assert done.status == 1
    assert done.last == (
        "lightning-edge train: trainer.max_epoch is no parameter of lightning.Trainer;"
        " did you mean trainer.max_epochs?"
    )
    assert "Traceback" not in done.err


def test_what_lightning_does_not_find_is_one_sentence(tmp_path):
    done = command("train", *SMALL, "trainer.accelerator=gpu", folder=tmp_path)
    assert done.status == 1
    assert done.last == "lightning-edge train: No supported gpu backend found!"
    assert "Traceback" not in done.err


@pytest.mark.skipif(not shutil.which("false"), reason="there is no program false")
def test_a_script_that_fails_without_a_word_is_named_with_its_status(tmp_path):
    done = command("run", "--", "false", folder=tmp_path)
    assert (done.status, done.err) == (1, "lightning-edge run: rank 0 ended with exit code 1\n")


@pytest.mark.slow
@pytest.mark.multiproc
def test_a_plan_that_cannot_be_is_one_sentence(tmp_path):
    done = command(
        "train", *SMALL, "groups=two_orins_and_a_laptop", "cluster.devices=2", folder=tmp_path
    )
    assert done.status == 1
    assert "Traceback" not in done.err
    assert "orin-a" in done.err
    assert "lightning-edge train: the plan" in done.err


@pytest.mark.slow
@pytest.mark.multiproc
def test_a_sweep_goes_on_after_a_failed_run_and_ends_in_one_table(tmp_path):
    done = command("train", *SMALL, "-m", "model.channels=4,-1,8", folder=tmp_path)
    assert done.status == 1
    assert done.last == ("lightning-edge train: 1 of 3 runs failed; their reasons are above")
    table = done.out[done.out.index("3 runs") :]
    rows = [line for line in table.splitlines() if "model.channels=" in line]
    assert [("failed" in row) for row in rows] == [False, True, False]
    assert "val_accuracy" in table
