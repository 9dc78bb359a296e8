from __future__ import annotations

import pytest

from lightning_edge.testbed import units


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (units.fraction, "60%", 0.6),
        (units.fraction, "0.6", 0.6),
        (units.fraction, 1.5, 1.5),
        (units.memory_bytes, "2G", 2 * 2**30),
        (units.memory_bytes, "1.5GiB", 3 * 2**29),
        (units.memory_bytes, "512mb", 512 * 2**20),
        (units.memory_bytes, 4096, 4096),
        (units.rate_mbit, "100mbit", 100.0),
        (units.rate_mbit, "1Gbit", 1000.0),
        (units.rate_mbit, "800 kbit", 0.8),
        (units.seconds, "5ms", 0.005),
        (units.seconds, "1.5", 1.5),
        (units.seconds, "2min", 120.0),
        (units.watts, "7.5W", 7.5),
    ],
)
def test_quantities_are_read(read, text, value):
    assert read(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (units.fraction, "60W"),
        (units.memory_bytes, "2 gallons"),
        (units.rate_mbit, "100"),
        (units.rate_mbit, "1.2.3mbit"),
        (units.seconds, "5 weeks"),
        (units.watts, "-3W"),
        (units.watts, "nan"),
    ],
)
def test_other_texts_are_refused_with_an_example(read, text):
    with pytest.raises(ValueError, match="write"):
        read(text)


def test_a_rate_is_written_without_loss():
    assert units.show_rate(2.5) == "2500000bit"
    assert units.show_rate(1e-9) == "1bit"


def test_bytes_are_written_in_powers_of_1024():
    assert units.show_bytes(1536 * 2**20) == "1.5 GiB"
    assert units.show_bytes(12) == "12 B"
