from __future__ import annotations

import pytest
import torch

from lightning_edge.errors import TransportTimeout
from lightning_edge.loop.mailbox import Mailbox
from tests.loop import fakes
from tests.loop.fakes import run_ranks


def test_messages_wait_until_they_are_asked_for():
    def main(rank, transport):
        mailbox = Mailbox(transport, rank)
        mailbox.open(senders=[0], everyone=range(3))
        if rank == 0:
            mailbox.post(range(3), "a", 1, {"x": torch.ones(2)}, "a")
            mailbox.post([1, 2], "b", ("path", 3), None, "b")
            mailbox.post([1, 2], "a", 2, "later", "a")
            return None
        assert mailbox.take(0, "a", 2, "a") == "later"
        assert mailbox.take(0, "b", ("path", 3), "b") is None
        return mailbox.take(0, "a", 1, "a")["x"].tolist()

    assert run_ranks(3, main) == [None, [1.0, 1.0], [1.0, 1.0]]


def test_what_nobody_asked_for_does_not_reach_the_next_run():
    def main(rank, transport):
        for run in range(2):
            mailbox = Mailbox(transport, rank)
            mailbox.open(senders=[0], everyone=range(2))
            if rank == 0:
                mailbox.post([1], "value", ("path", 1), f"unread of run {run}", "a value")
                mailbox.post([1], "record", run, None, "a record")
            else:
                mailbox.take(0, "record", run, "a record")
                last = mailbox
        return last.take(0, "value", ("path", 1), "a value") if rank == 1 else None

    assert run_ranks(2, main)[1] == "unread of run 1"


def test_older_versions_are_dropped():
    def main(rank, transport):
        mailbox = Mailbox(transport, rank)
        mailbox.open(senders=[0], everyone=range(2))
        if rank == 0:
            for key in (("a", 1), ("a", 2), ("b", 1), ("end", 0)):
                mailbox.post([1], "value", key, key, "a value")
            return None
        mailbox.take(0, "value", ("end", 0), "a value")
        mailbox.drop("value", older_than=("a", 2))
        return sorted(mailbox._shelf[0])

    assert run_ranks(2, main)[1] == [("value", ("a", 2)), ("value", ("b", 1))]


def test_a_wait_ends_and_says_for_what(monkeypatch):
    monkeypatch.setattr(fakes, "TIMEOUT_S", 0.1)

    def main(rank, transport):
        mailbox = Mailbox(transport, rank)
        mailbox.open(senders=[0], everyone=range(2))
        if rank == 1:
            mailbox.take(0, "value", ("acc", 1), "the value of the metric 'acc'")

    with pytest.raises(TransportTimeout, match="waited for the value of the metric 'acc' from"):
        run_ranks(2, main)
