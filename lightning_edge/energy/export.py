"""The account of a run as JSON and as CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_edge.energy.budget import carbon_g
from lightning_edge.energy.pool import PoolReport

FORMAT = 1
COLUMNS = (
    "stage", "device", "rank", "domain", "scope", "provenance", "counted", "energy_j",
    "uncertainty_j", "mean_w", "max_w", "duration_s", "covered_s",
)  # fmt: skip


def pool_mapping(pool: PoolReport, carbon_g_per_kwh: float | None = None) -> dict[str, Any]:
    """One stage of a run: totals, then each rank's account. Unknown values are null."""
    energy_j, samples, tokens = pool.energy_j, pool.samples, pool.tokens
    names = pool.device_names()
    return {
        "energy_j": energy_j,
        "uncertainty_j": pool.uncertainty_j,
        "measured_j": pool.measured_j if energy_j is not None else None,
        "estimated_j": pool.estimated_j if energy_j is not None else None,
        "measured_fraction": pool.measured_fraction,
        "is_lower_bound": pool.is_lower_bound,
        "devices": len(pool.accounts),
        "devices_measured": pool.devices_measured,
        "silent_ranks": list(pool.silent),
        "samples": samples,
        "joules_per_sample": per(energy_j, samples),
        "tokens": tokens,
        "joules_per_token": per(energy_j, tokens),
        "carbon_g": None
        if carbon_g_per_kwh is None or energy_j is None
        else carbon_g(energy_j, carbon_g_per_kwh),
        "phase_j": pool.phase_j(),
        "earlier_runs_j": [earlier.energy_j for earlier in pool.earlier],
        "ranks": [
            account.to_mapping()
            | {"name": names[account.rank], "owned_domains": list(pool.owned[account.rank])}
            for account in pool.accounts
        ],
    }


def per(energy_j: float | None, count: float | None) -> float | None:
    """Joules for each of `count`; None if either is unknown or nothing was counted."""
    return None if energy_j is None or not count else energy_j / count


def write_json(path: Path, stages: Mapping[str, PoolReport], extra: Mapping[str, Any]) -> None:
    """Write the account of every stage.

    Args:
        path: The file; its directory is made.
        stages: Account per stage.
        extra: Further top-level entries; ``carbon_g_per_kwh`` is used for grams.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    intensity = extra.get("carbon_g_per_kwh")
    content = {
        "format": FORMAT,
        **extra,
        "stages": {name: pool_mapping(pool, intensity) for name, pool in stages.items()},
    }
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_csv(path: Path, stages: Mapping[str, PoolReport]) -> None:
    """Write one line per stage, device and domain.

    `counted` tells which lines make up the total.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for stage, pool in stages.items():
            names = pool.device_names()
            for account in pool.accounts:
                for key, entry in account.report.domains.items():
                    domain = entry.domain
                    writer.writerow(
                        (
                            stage,
                            names[account.rank],
                            account.rank,
                            key,
                            domain.scope.value,
                            domain.provenance.value,
                            int(key in pool.owned[account.rank]),
                            entry.energy_j,
                            entry.uncertainty_j,
                            entry.power_w,
                            entry.max_power_w,
                            entry.duration_s,
                            entry.covered_s,
                        )  # fmt: skip
                    )
