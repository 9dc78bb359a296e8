"""Functions for the ranks of the pool that know the families."""

from __future__ import annotations

from typing import Any

import tests.families.zoo  # noqa: F401  (its models count among tests.models.MODELS)
from tests.train.stages import train_stage


def train_family(rank: int, world_size: int, *args: Any) -> Any:
    return train_stage(rank, world_size, *args)
