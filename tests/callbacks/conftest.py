from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_edge.energy import EnergyMeter
from tests.callbacks.fits import meter_of


@pytest.fixture
def meter(tmp_path: Path) -> Iterator[EnergyMeter]:
    made = meter_of(tmp_path)
    yield made
    made.close()
