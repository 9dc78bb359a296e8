"""Several ranks, several machines: each physical domain is counted once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_edge.energy import EnergyMeter, HostEnv, Provenance, Scope
from lightning_edge.energy.domain import Domain
from lightning_edge.energy.pool import Ledger, RankAccount, alone, combine
from lightning_edge.energy.report import DomainEnergy, EnergyReport, count_roots
from tests.energy.fakes import domain

GPU_X = domain("gpu:GPU-x", scope=Scope.GPU)
GPU_Y = domain("gpu:GPU-y", scope=Scope.GPU)
PACKAGE = domain("rapl:package-0")
PSYS = domain("rapl:psys", scope=Scope.PLATFORM)
PACKAGE_IN_PSYS = domain("rapl:package-0", parent="rapl:psys")
MODEL = domain("model:cpu", provenance=Provenance.MODEL)
PLATFORM_MODEL = domain("model:platform", provenance=Provenance.MODEL, scope=Scope.PLATFORM)


def account(
    rank: int,
    host: str,
    joules: dict[Domain, float],
    *,
    samples: float = 10.0,
    covered_s: float = 10.0,
    whole_samples: float | None = None,
    tokens: float | None = None,
    phase_j: dict[str, float] | None = None,
) -> RankAccount:
    entries = [DomainEnergy(d, 10.0, covered_s, j, None, j / 10) for d, j in joules.items()]
    report = EnergyReport("train", 10.0, count_roots(entries))
    return RankAccount(
        rank, f"dev-{host}", host, report, samples, tokens, whole_samples, phase_j=phase_j
    )


def test_shared_package_and_own_gpus() -> None:
    pool = combine(
        [
            account(0, "A", {PACKAGE: 100.0, GPU_X: 500.0}),
            account(1, "A", {PACKAGE: 101.0, GPU_Y: 400.0}),
            account(2, "B", {MODEL: 30.0}),
        ]
    )
    assert pool.energy_j == pytest.approx(1030.0)
    assert pool.measured_j == pytest.approx(1000.0)
    assert pool.estimated_j == pytest.approx(30.0)
    assert pool.measured_fraction == pytest.approx(1000 / 1030)
    assert (pool.devices_measured, len(pool.accounts)) == (2, 3)
    assert pool.device_energy_j(0) == pytest.approx(600.0)
    assert pool.device_energy_j(1) == pytest.approx(400.0)
    assert pool.device_names() == {0: "dev-A-0", 1: "dev-A-1", 2: "dev-B"}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_ranks_on_a_board_count_it_once(ranks: int) -> None:
    pool = combine([account(r, "A", {PACKAGE: 100.0}) for r in range(ranks)])
    assert pool.energy_j == pytest.approx(100.0)
    assert [pool.device_energy_j(r) for r in range(ranks)] == [100.0] + [None] * (ranks - 1)
    assert pool.samples == 10.0 * ranks


@pytest.mark.parametrize("ranks", [2, 4])
def test_equal_ids_on_different_machines_are_different(ranks: int) -> None:
    pool = combine([account(r, f"host{r}", {PACKAGE: 100.0}) for r in range(ranks)])
    assert pool.energy_j == pytest.approx(100.0 * ranks)


def test_who_covered_it_best_counts_it() -> None:
    pool = combine(
        [
            account(0, "A", {PACKAGE: 40.0}, covered_s=4.0),
            account(1, "A", {PACKAGE: 100.0}, covered_s=10.0),
        ]
    )
    assert pool.energy_j == pytest.approx(100.0)
    assert pool.device_energy_j(0) is None


def test_who_counts_does_not_change_with_milliseconds() -> None:
    for first_s, second_s in ((9.99, 10.0), (10.0, 9.99)):
        accounts = [
            account(0, "A", {PACKAGE: 100.0}, covered_s=first_s),
            account(1, "A", {PACKAGE: 100.0}, covered_s=second_s),
        ]
        assert list(combine(accounts).owned[0]) == [PACKAGE.id]


def test_what_one_rank_sees_inside_anothers_domain_is_not_added() -> None:
    """Rank 0 may read psys; rank 1, in a container, only the package inside it."""
    pool = combine(
        [
            account(0, "A", {PSYS: 180.0, PACKAGE_IN_PSYS: 100.0}),
            account(1, "A", {PACKAGE_IN_PSYS: 100.0, GPU_X: 500.0}),
        ]
    )
    assert pool.energy_j == pytest.approx(680.0)


def test_an_estimate_of_one_rank_gives_way_to_anothers_measurement() -> None:
    pool = combine([account(0, "A", {PLATFORM_MODEL: 55.0}), account(1, "A", {PACKAGE: 40.0})])
    assert pool.energy_j == pytest.approx(40.0)
    assert pool.measured_fraction == 1.0


def test_nothing_known() -> None:
    pool = combine([RankAccount(0, "a", "A", EnergyReport("train", 5.0, {}))])
    assert pool.energy_j is None
    assert pool.measured_fraction is None
    assert pool.is_lower_bound
    assert pool.devices_measured == 0


def test_pipeline_stages_share_their_samples() -> None:
    stages = [
        account(0, "A", {PACKAGE: 60.0}, samples=6.0, whole_samples=10.0, tokens=600.0),
        account(1, "B", {PACKAGE: 50.0}, samples=4.0, whole_samples=10.0, tokens=400.0),
        account(2, "C", {PACKAGE: 40.0}, samples=10.0, whole_samples=10.0, tokens=1000.0),
    ]
    pool = combine(stages)
    assert pool.samples == 10.0
    assert pool.tokens == pytest.approx(1000.0)


def test_tokens_of_data_parallel_ranks_add_up() -> None:
    pool = combine([account(r, "A", {PACKAGE: 1.0}, tokens=100.0) for r in range(3)])
    assert pool.tokens == pytest.approx(300.0)
    assert combine([account(0, "A", {PACKAGE: 1.0})]).tokens is None


def test_phases_of_a_shared_board_count_once() -> None:
    phases = {"compute": 80.0, "waiting": 20.0}
    pool = combine([account(r, "A", {PACKAGE: 100.0}, phase_j=phases) for r in range(2)])
    assert pool.phase_j() == {"compute": pytest.approx(80.0), "waiting": pytest.approx(20.0)}
    other = account(2, "B", {PACKAGE: 50.0})
    assert combine([*pool.accounts, other]).phase_j() is None  # not all devices have them apart


def test_a_rank_that_dies_keeps_its_last_account() -> None:
    ledger = Ledger()
    first = [account(r, f"h{r}", {PACKAGE: 10.0}).to_mapping() for r in range(3)]
    ledger.update(first)
    later = [account(r, f"h{r}", {PACKAGE: 25.0}).to_mapping() for r in (0, 2)]
    pool = ledger.update([later[0], None, later[1]])
    assert pool.energy_j == pytest.approx(60.0)
    assert pool.silent == (1,)


def test_run_goes_on_with_another_number_of_ranks() -> None:
    before = Ledger()
    before.update([account(r, "A", {PACKAGE: 100.0}).to_mapping() for r in range(4)])
    state = json.loads(json.dumps(before.state_dict()))  # plain values only
    ledger = Ledger()
    ledger.load_state_dict(state)
    pool = ledger.update([account(0, "Z", {MODEL: 7.0}).to_mapping()])
    assert pool.energy_j == pytest.approx(107.0)
    assert pool.measured_j == pytest.approx(100.0)
    assert pool.samples == 50.0
    again = Ledger()
    again.load_state_dict(json.loads(json.dumps(ledger.state_dict())))
    assert again.pool().energy_j == pytest.approx(107.0)


def test_accounts_travel_as_plain_values() -> None:
    original = account(1, "A", {PSYS: 18.0, PACKAGE_IN_PSYS: 10.0}, phase_j={"compute": 18.0})
    copy = RankAccount.from_mapping(json.loads(json.dumps(original.to_mapping())))
    assert copy == original


def test_alone() -> None:
    assert alone({"a": 1}) == [{"a": 1}]


def _measure(rank: int, world_size: int, folder: str, shared: bool) -> tuple[float, list[str]]:
    """One process: a counter file of its own or the shared one, accounts through gloo."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    name = "board" if shared else f"board{rank}"
    meter_dir = Path(folder) / name
    host = HostEnv(
        sysroot=Path(folder) / ("root" if shared else f"root{rank}"),
        environ={"LIGHTNING_EDGE_METER_DIR": str(meter_dir), "LIGHTNING_EDGE_TESTBED": "t"},
        clock=lambda: float((meter_dir / "time_s").read_text()),
    )
    with EnergyMeter("emulated", host=host, background=False) as meter:
        window = meter.window("train")
        dist.barrier()
        if rank == 0 or not shared:
            (meter_dir / "energy_uj").write_text(f"{(rank + 2) * 10_000_000:020d}\n")
            (meter_dir / "time_s").write_text("1001.0\n")
        dist.barrier()
        own = RankAccount(rank, "dev", host.boot_id, window.close(), samples=1.0)
    found: list[object] = [None] * world_size
    dist.all_gather_object(found, own.to_mapping())
    pool = Ledger().update(found)  # type: ignore[arg-type]
    dist.destroy_process_group()
    return pool.energy_j or 0.0, sorted(key for owned in pool.owned.values() for key in owned)


@pytest.mark.multiproc
@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("shared", [True, False])
def test_processes_with_shared_and_own_boards(
    pool: object, tmp_path: Path, world_size: int, shared: bool
) -> None:
    names = ["board"] if shared else [f"board{rank}" for rank in range(world_size)]
    for number, name in enumerate(names):
        folder = tmp_path / name
        folder.mkdir()
        about = {"format": 1, "device": name, "board": None, "update_period_s": 1.0}
        (folder / "meter.json").write_text(json.dumps(about))
        (folder / "energy_uj").write_text(f"{10_000_000:020d}\n")
        (folder / "power_w").write_text("1\n")
        (folder / "time_s").write_text("1000.0\n")
        root = tmp_path / ("root" if shared else f"root{number}") / "proc/sys/kernel/random"
        root.mkdir(parents=True)
        (root / "boot_id").write_text("one-host" if shared else f"host-{number}")
    results = pool.run(_measure, world_size, str(tmp_path), shared)  # type: ignore[attr-defined]
    # Board r goes from 10 J to (r + 2) x 10 J; the shared one is driven by rank 0.
    truth_j = 10.0 if shared else sum(10.0 * (rank + 1) for rank in range(world_size))
    assert [energy_j for energy_j, _ in results] == [pytest.approx(truth_j)] * world_size
    assert len(results[0][1]) == len(names)
