"""The real nvidia-ml-py on a stub libnvidia-ml.so.1 that the test compiles."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_edge.energy import Unavailable
from lightning_edge.energy.sources.nvml import NvmlSource
from tests.energy.trees import Clock, faked_host

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the source says to each kind of GPU; one process, as a library once loaded stays."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the stub of libnvidia-ml.so.1")
    folder = tmp_path_factory.mktemp("nvml")
    library = folder / "libnvidia-ml.so.1"
    source = str(HERE / "stub_nvml.c")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), source],
        check=True,
        timeout=30,
    )
    root = HERE.parent.parent
    environ = os.environ | {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(root)}
    environ.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run(
        [sys.executable, str(HERE / "nvml_probe.py")],
        env=environ,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_desktop_is_read_by_counter_and_uuid(answers: dict[str, Any]) -> None:
    found = answers["desktop"]
    assert found["domains"] == {
        "gpu:GPU-aaaa-1111": ["RTX Stub", "counter"],
        "gpu:GPU-bbbb-2222": ["RTX Stub", "counter"],
    }
    assert all(joules > 5e6 for joules in found["energy_j"].values())  # mJ became J
    assert found["aux"] == {"gpu:0:temp_c": 61.0, "gpu:1:temp_c": 61.0}


def test_old_gpu_is_read_by_power(answers: dict[str, Any]) -> None:
    found = answers["pascal"]
    assert found["domains"] == {"gpu:GPU-aaaa-1111": ["GTX 1080", "sampled"]}
    assert found["power_w"] == {"gpu:GPU-aaaa-1111": 50.0}
    assert found["energy_j"] == {}


def test_module_scope_is_tried_where_gpu_scope_fails(answers: dict[str, Any]) -> None:
    found = answers["hopper"]
    assert found["domains"] == {"gpu:GPU-aaaa-1111": ["RTX Stub", "counter"]}
    assert found["energy_j"]["gpu:GPU-aaaa-1111"] > 5e6


def test_jetson_is_refused_although_nvml_initialises(answers: dict[str, Any]) -> None:
    assert answers["jetson"]["refused"].startswith(
        "Orin (nvgpu) tells no energy and no power (energy: Not Supported"
    )


def test_card_without_power_is_estimated_by_its_load(answers: dict[str, Any]) -> None:
    assert "tells no energy and no power" in answers["laptop"]["refused"]
    found = answers["laptop_estimated"]
    # 25 W by its maker, 40 % busy, a tenth of it at rest: 11.5 W for 10 s.
    assert found["energy_j"] == {"model:gpu:GPU-aaaa-1111": pytest.approx(115.0)}
    assert found["domain"]["provenance"] == "model"
    assert "its maker's limit of 25 W" in found["domain"]["name"]
    assert answers["limit_estimated"]["energy_j"] == {
        "model:gpu:GPU-aaaa-1111": pytest.approx(10 * 60 * 0.46)
    }


def test_measured_and_integrated_cards_are_not_estimated(answers: dict[str, Any]) -> None:
    for name in ("desktop_estimated", "jetson_estimated"):
        assert answers[name]["refused"] == "no graphics card here tells its load and not its power"
    assert "model:gpu:GPU-aaaa-1111" in answers["laptop_automatic"]["domains"]
    assert not [d for d in answers["desktop_automatic"]["domains"] if d.startswith("model:gpu")]


def test_lost_gpu_is_refused(answers: dict[str, Any]) -> None:
    assert "GPU is lost" in answers["lost"]["refused"]


def test_no_driver(answers: dict[str, Any]) -> None:
    assert answers["none"]["refused"] == "NVML does not start: Driver Not Loaded"


def test_mig_slice_is_its_whole_gpu(answers: dict[str, Any]) -> None:
    domains = answers["mig"]["domains"]
    assert list(domains) == ["gpu:GPU-aaaa-1111"]
    assert "shared by its MIG slices" in domains["gpu:GPU-aaaa-1111"][0]


@pytest.mark.parametrize("how", ["by_number", "by_uuid"])
def test_only_visible_gpus_count(answers: dict[str, Any], how: str) -> None:
    assert list(answers[how]["domains"]) == ["gpu:GPU-bbbb-2222"]


def test_invalid_entry_hides_what_follows_as_in_cuda(answers: dict[str, Any]) -> None:
    assert list(answers["invalid_ends_the_list"]["domains"]) == ["gpu:GPU-aaaa-1111"]


def test_hidden_gpus(answers: dict[str, Any]) -> None:
    assert answers["hidden"]["refused"] == "no NVIDIA GPU is visible to this process"


def test_every_user_of_nvml_leaves_it(answers: dict[str, Any]) -> None:
    counts = {
        name: answer["users"]
        for name, answer in answers.items()
        if isinstance(answer, dict) and "users" in answer
    }
    assert len(counts) > 10
    assert set(counts.values()) == {0}


def test_a_gpu_lost_during_the_run_keeps_its_account(answers: dict[str, Any]) -> None:
    found = answers["lost_later"]
    assert found["known_j"] > 10.0  # two GPUs of 50 W for 0.2 s and more
    assert found["after_j"] == pytest.approx(found["known_j"])
    assert found["coverage"] < 0.8
    assert any("nvml was lost" in note for note in found["notes"])
    assert answers["one_lost"].startswith("SourceLost: RTX Stub: GPU is lost")


def test_counter_in_steps_is_within_its_stated_uncertainty(answers: dict[str, Any]) -> None:
    found = answers["measured"]
    truth_j = 2 * 50.0 * found["duration_s"]
    assert found["energy_j"] == pytest.approx(truth_j, abs=2 * 2 * 50.0 * 0.1)
    assert abs(found["energy_j"] - truth_j) <= 2 * found["uncertainty_j"]
    # The steps of the counter, seen by faster polling, are no peaks of power.
    assert max(found["max_w"]) <= 2 * 50.0 + 1.0


def test_missing_binding(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="pip install nvidia-ml-py"):
        NvmlSource.probe(faked_host(tmp_path, Clock()))
