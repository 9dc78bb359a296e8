"""`lightning-edge plan` without devices: a profile in a file, or a pool of known boards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_edge.app.cli import main
from lightning_edge.app.pool import find_board, profile_of_pool
from lightning_edge.boards import known_boards
from lightning_edge.errors import ProfileError
from lightning_edge.plan.objective import Objective
from lightning_edge.plan.plan import Plan
from lightning_edge.plan.profile import Profile
from lightning_edge.plan.search import search
from tests.ground.tree import ROOT, files
from tests.plan.profiles import simple, written

POOLS = [
    path for path in files(".yaml", ROOT / "conf" / "profile") if "devices:" in path.read_text()
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(written())
    return tmp_path


def folder_of(place: Path) -> Path:
    (folder,) = (place / "outputs").iterdir()
    return folder


def test_a_profile_in_a_file_is_planned_with(here, capsys):
    assert main(["plan", "profile=saved", "profile.path=mine.yaml", "objective=energy"]) == 0
    shown = capsys.readouterr().out
    goal = Objective.parse("energy", power_modes="keep")
    choice = search(Profile.from_yaml("mine.yaml"), rows=16, objective=goal)
    assert str(choice) in shown
    assert choice.prediction.draw() in shown
    folder = folder_of(here)
    assert Plan.from_yaml(folder / "plan.yaml") == choice.plan
    assert Profile.from_yaml(folder / "profile.yaml") == Profile.from_yaml("mine.yaml")
    found = json.loads((folder / "prediction.json").read_text())
    assert found["prediction"]["step_s"] == choice.prediction.step_s
    assert (folder / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_a_plan_that_is_given_is_predicted(here, capsys):
    plan = {"pipelines": [{"stages": [{"devices": ["laptop"]}]}], "micro_batches": 2}
    (here / "plan.yaml").write_text(yaml.safe_dump(plan))
    words = ["plan", "profile=saved", "profile.path=mine.yaml", "strategy.plan=plan.yaml"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "2 laptop 100%" in shown
    assert "per step of 16 rows" in shown


def test_groups_are_kept_to(here, capsys):
    words = ["plan", "profile=saved", "profile.path=mine.yaml", "groups=two_orins_and_a_laptop"]
    assert main([*words, "groups.orins.parallelism=data"]) == 0
    plan = Plan.from_yaml(folder_of(here) / "plan.yaml")
    assert [len(stage.devices) for stage in plan.stages] == [2, 1]


def test_a_sweep_ends_in_one_table(here, capsys):
    words = ["plan", "profile=saved", "profile.path=mine.yaml", "-m", "objective=time,energy"]
    assert main(words) == 0
    table = capsys.readouterr().out.rpartition("2 runs")[2]
    fast, frugal = (
        next(line for line in table.splitlines() if f"objective={name}" in line).split("│")
        for name in ("time", "energy")
    )
    assert float(fast[4]) < float(frugal[4])
    assert float(fast[6]) > float(frugal[6])


GROUPS = ("groups=two_orins_and_a_laptop", "groups.orins.parallelism=tensor")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["profile.path=none.yaml"], "none.yaml"),
        (["profile.path=mine.yaml", *GROUPS], '"tensor" is not supported yet'),
        (["profile.path=mine.yaml", "planning.rows=0"], "planning.rows=0 is not a number"),
        (["profile.path=mine.yaml", "+objective.max_step_s=0.001"], "1 ms are allowed"),
    ],
)
def test_what_cannot_be_planned_is_said_without_a_trace(here, capsys, words, sentence):
    assert main(["plan", "profile=saved", *words]) in (1, 2)
    said = capsys.readouterr().err
    assert said.startswith("lightning-edge plan: ")
    assert sentence in said
    assert "Traceback" not in said


def test_planning_with_a_profile_imports_no_torch(here):
    code = (
        "import sys; sys.orig_argv[1:] = ['lightning-edge']; from lightning_edge.app.cli import"
        " main; status = main(['plan', 'profile=saved', 'profile.path=mine.yaml']);"
        " sys.exit(status or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", POOLS, ids=lambda path: path.stem)
def test_pools_that_come_along_can_be_planned_for(path):
    pool = yaml.safe_load(path.read_text())
    measured = simple([1.0])
    profile = profile_of_pool(pool, measured.model, measured.devices[0], 100.0)
    assert [device.name for device in profile.devices] == [d["name"] for d in pool["devices"]]
    assert not profile.missing()
    assert all(device.power_mode().has_power for device in profile.devices)
    assert search(profile, rows=8, objective=Objective.parse("edp")).plan


def test_seconds_on_a_board_are_those_here_times_the_ratio_of_speeds():
    measured = simple([1.0])
    board = find_board("tx2:15W")
    pool = {"devices": [{"name": "a", "board": "tx2:15w"}, {"name": "b", "board": "pi5"}],
            "links": [{"between": "all", "mbit_per_s": 100}]}  # fmt: skip
    profile = profile_of_pool(pool, measured.model, measured.devices[0], 2 * board.gflops)
    (block, *_) = profile.model.blocks
    here = measured.model.blocks[0].timings["any"]
    assert block.timings["tx2:15W"].forward_s[0] == pytest.approx(2 * here.forward_s[0])
    assert profile.devices[0].provenance_of("memory_bytes") == "prior"
    assert profile.devices[0].mode == "15W"
    assert {mode.name for mode in profile.devices[0].modes} == {
        row.mode for row in known_boards() if row.name == "tx2"
    }


def test_unknown_boards_are_all_named():
    measured = simple([1.0])
    pool = {"devices": [{"name": "a", "board": "orion"}, {"name": "b", "board": "pi5:1W"}]}
    with pytest.raises(ProfileError, match=r"a: board 'orion' is not known") as caught:
        profile_of_pool(pool, measured.model, measured.devices[0], 1.0)
    assert len(caught.value.problems) == 2
