"""Links are measured over the real transport; shared media follow from how they slow each other."""

from __future__ import annotations

from datetime import timedelta
from itertools import permutations

import pytest

from lightning_edge.plan.participants import Link
from lightning_edge.profile.link import LinkEffort, LinkReport, measure_links
from lightning_edge.profile.media import Found, assign_media
from lightning_edge.train.rendezvous import connect
from lightning_edge.train.transport import Transport
from tests.pool import Pool

EFFORT = LinkEffort(seconds=0.02, bytes=1 << 20)


def measure(rank: int, world_size: int, latency_s: float) -> tuple[LinkReport, int]:
    limit = timedelta(seconds=30)
    store, rank, world_size = connect(limit)
    with Transport(store, rank, world_size, timeout=limit, latency_s=latency_s) as transport:
        names = [f"d{i}" for i in range(world_size)]
        report = measure_links(transport, names, EFFORT)
        assert transport.all_gather(rank) == [0, 1, 2]  # nothing is left in the streams
        return report, transport.counters.bytes_sent


def test_all_pairs_are_measured_both_ways_and_alike_on_all_ranks(pool: Pool) -> None:
    results = pool.run(measure, 3, 0.0)
    links = results[0][0].links
    assert all(report.links == links for report, _ in results)
    assert {(link.source, link.target) for link in links} == set(
        permutations(["d0", "d1", "d2"], 2)
    )
    for link in links:
        assert 0 < link.seconds_per_byte < 1e-6
        assert link.provenance_of("latency_s") == "measured"
    for report, sent in results:
        assert report.copy_s_per_byte > 0
        # two pairs x (pilot, burst, both ways), and the ring
        assert sent < 2 * (2 * (EFFORT.bytes + (8 << 17))) + 3 * EFFORT.bytes


def test_latency_is_that_of_the_transport(pool: Pool) -> None:
    for link in pool.run(measure, 3, 0.02)[0][0].links:
        assert link.latency_s >= 0.02


RATE = 1e-7


def table(half: set[tuple[int, int]], ranks: int) -> dict[tuple[int, int], Found]:
    return {
        (a, b): Found(RATE, 1e-3, (min(a, b), max(a, b)) in half)
        for a, b in permutations(range(ranks), 2)
    }


NAMES = ["pi", "orin", "laptop", "desktop"]
EVERY = {(a, b) for a in range(4) for b in range(a + 1, 4)}


def test_a_switch_shares_nothing() -> None:
    assert assign_media(table(set(), 3), [0.98, 0.95, 0.99], [], [], NAMES) == {}


def test_one_radio_channel_is_one_medium_for_all() -> None:
    ring = [0.27, 0.24, 0.26, 0.25]
    media = assign_media(table(EVERY, 4), ring, [0, 1, 2, 3], ring, NAMES)
    assert set(media.values()) == {("shared by pi, orin, laptop, desktop",)}
    assert len(media) == 12


def test_half_duplex_links_on_a_switch_are_media_of_their_devices() -> None:
    media = assign_media(table(EVERY, 4), [0.5] * 4, [0, 1, 2, 3], [0.5] * 4, NAMES)
    assert media[0, 1] == ("pi", "orin")
    assert media[3, 1] == ("orin", "desktop")


def test_a_radio_beside_wires_is_a_medium_of_what_passes_it() -> None:
    half = {(a, b) for a, b in EVERY if a < 3}
    media = assign_media(table(half, 4), [0.3, 0.3, 0.5, 0.5], [0, 1, 2], [0.33] * 3, NAMES)
    assert media[0, 3] == media[1, 2] == ("shared by pi, orin, laptop",)


def test_two_devices_with_half_duplex_share_one_medium_both_ways() -> None:
    media = assign_media(table({(0, 1)}, 2), [], [0, 1], [], NAMES)
    assert media[0, 1] == media[1, 0] == ("pi - orin",)


@pytest.mark.parametrize("pairs", [1, 28, 120])
def test_many_pairs_take_no_longer_in_all(pairs: int) -> None:
    assert 3 * pairs * LinkEffort().burst_s(pairs) <= LinkEffort().total_seconds


def test_links_are_values() -> None:
    assert Link("a", "b", 1e-7).mbit_per_s == pytest.approx(80)
