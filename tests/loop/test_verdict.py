"""The words about what a failed run has left."""

from __future__ import annotations

import json

import pytest

from lightning_edge.loop.verdict import Kept, LastCheckpoint, verdict
from lightning_edge.replicate.parts import Origin

NAMES = ("orin", "pi", "laptop")
ORIGIN = Origin("3fa2b1", 12, 0, NAMES, ((0, 1), (2,)))
LAST = LastCheckpoint("runs/last.ckpt", 10)


def kept(step: int = 12) -> Kept:
    return Kept(step, "/x/on_failure/step-12-3fa2b1")


def test_a_state_that_is_whole():
    text = verdict({0: kept(), 1: None, 2: kept()}, kept(), ORIGIN, LAST)
    assert text == (
        "The state after step 12 is kept, in parts, on the disks of rank 0 (orin) and rank 2"
        " (laptop). To go on from there, start them again with"
        " ckpt_path='/x/on_failure/step-12-3fa2b1' (run.resume= of the command)"
    )


def test_what_only_the_dead_had_is_lost():
    heard = {0: kept(), 1: kept(), 2: None}
    assert verdict(heard, kept(), ORIGIN, LAST) == (
        "What only rank 2 (laptop) held is lost: go on from the last whole checkpoint, of step 10:"
        " ckpt_path='runs/last.ckpt'. What rank 0 (orin) and rank 1 (pi) held is in"
        " /x/on_failure/step-12-3fa2b1"
    )
    assert "no checkpoint was written, so the run has to begin anew" in verdict(
        heard, kept(), ORIGIN, None
    )


def test_devices_that_are_a_step_apart_do_not_go_together():
    text = verdict({0: kept(), 1: None, 2: kept(13)}, kept(), ORIGIN, LAST)
    assert text.startswith(
        "The devices had done different numbers of steps: 12 (rank 0 (orin)), 13 (rank 2 (laptop));"
        " go on from the last whole checkpoint, of step 10"
    )


def test_a_full_disk_is_told():
    own = Kept(12, None, "OSError: No space left on device")
    text = verdict({0: own, 1: None, 2: kept()}, own, ORIGIN, LAST)
    assert "What only rank 0 (orin) or rank 1 (pi) held is lost" in text
    assert "This device kept nothing of step 12: OSError: No space left on device" in text


def test_without_the_store_only_this_device_is_known():
    text = verdict(None, kept(), ORIGIN, LAST)
    assert text.startswith("The run's store is gone, so it is not known what the others kept.")
    assert "goes on after step 12 if their parts make it whole; if not, go on from" in text


def test_a_word_of_another_device_is_checked():
    assert Kept.from_plain(json.loads(json.dumps(kept().to_plain()))) == kept()
    for rubbish in ({}, [], {"step": "x", "folder": None, "why_not": None}):
        with pytest.raises((TypeError, KeyError, ValueError)):
            Kept.from_plain(rubbish)  # type: ignore[arg-type]
