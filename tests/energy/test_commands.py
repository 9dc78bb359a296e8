"""The commands, on faked trees: what they print, and that a recording replays as it was."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import threading
import time
from pathlib import Path

import pytest

from lightning_edge.energy import EnergyMeter, Scope
from lightning_edge.energy.__main__ import main
from lightning_edge.energy.record import record
from lightning_edge.energy.replay import Recording
from lightning_edge.energy.watch import watch
from lightning_edge.errors import EnergyError
from tests.energy import trees
from tests.energy.fakes import FakeSource, domain
from tests.energy.trees import faked_host


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the machine under the tree may have a GPU


def test_doctor_of_a_jetson(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees.jetson(tmp_path, trees.HWMON_BOARDS["AGX Orin"])
    trees.write(
        tmp_path,
        {
            "/proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit",
            "/etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=3 NAME=50W >",
            "/var/lib/nvpmodel/status": "pmode:0003",
            "/sys/class/thermal/thermal_zone0/temp": 48_000,
        },
    )
    status = main(["doctor", "--sysroot", str(tmp_path), "--seconds", "0.3", "--strict"])
    text = capsys.readouterr().out
    assert status == 0
    assert "NVIDIA Jetson AGX Orin Developer Kit" in text
    assert "total 22.4 W" in text
    assert "VDDQ_VDD2_1V8AO" in text
    assert "power mode 50W of MAXN, 50W" in text
    assert "hottest sensor 48 C" in text
    assert text.rstrip().endswith("This machine's energy is measured.")


def test_doctor_where_nothing_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees.cpu_stat(tmp_path, 1, 1)
    status = main(["doctor", "--sysroot", str(tmp_path), "--seconds", "0.05", "--strict", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert status == 2
    assert "ESTIMATE" in found["verdict"]
    refused = {choice["kind"]: choice for choice in found["choices"] if not choice["used"]}
    assert "load the kernel module" in refused["rapl"]["remedy"]
    assert found["report"]["domains"]["model:cpu"]["domain"]["provenance"] == "model"


def test_doctor_with_an_unknown_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--sysroot", str(tmp_path), "--sources", "rapl,nvlm"]) == 1
    assert "nvlm: no such source; known:" in capsys.readouterr().err


def test_watch_prints_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees.jetson(tmp_path, trees.HWMON_BOARDS["Orin Nano"])
    arguments = ["--seconds", "0.2", "--every", "0.05", "--csv", "--sysroot", str(tmp_path)]
    assert main(["watch", *arguments]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) >= 2
    assert float(rows[-1]["total_w"]) == pytest.approx(7.0)
    assert float(rows[-1]["ina:1-0040:VDD_SOC_w"]) == pytest.approx(1.5)
    assert float(rows[-1]["total_j"]) == pytest.approx(7.0 * float(rows[-1]["t_s"]), rel=0.2)


def test_watch_draws_a_table_and_ends_with_ctrl_c(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.jetson(tmp_path, trees.HWMON_BOARDS["Orin Nano"])
    sleeps = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) > 2:
            raise KeyboardInterrupt

    host = faked_host(tmp_path, time.monotonic)
    with EnergyMeter("jetson", host=host, background=False) as meter:
        monkeypatch.setattr("lightning_edge.energy.watch.time.sleep", sleep)
        watch(meter, float("inf"), 1.0, as_csv=False)
    text = capsys.readouterr().out
    assert "VDD_IN" in text
    assert "total" in text
    assert len(sleeps) == 3


def test_recording_replays_on_another_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A board whose power steps from 7 W to 10 W while it is recorded, and a failing rail."""
    board, elsewhere = tmp_path / "board", tmp_path / "elsewhere"
    trees.jetson(board, trees.HWMON_BOARDS["Orin Nano"])
    trees.write(
        board,
        {
            "/proc/device-tree/model": "NVIDIA Jetson Orin Nano",
            "/proc/device-tree/serial-number": "1420000000042",
            "/proc/sys/kernel/random/boot_id": "secret-boot",
        },
    )
    folder = board / "sys/bus/i2c/devices/1-0040/hwmon/hwmon3"
    (folder / "curr3_input").unlink()
    (folder / "curr3_input").mkdir()
    archive = tmp_path / "board.tar.gz"
    step = threading.Timer(0.3, (folder / "curr1_input").write_text, ["2000\n"])
    step.start()
    frames = record(faked_host(board, time.monotonic), archive, 0.6, period_s=0.03)
    step.join()
    assert frames >= 3

    elsewhere.mkdir()
    recording = Recording(archive, elsewhere)
    assert [choice["kind"] for choice in recording.meta["choices"] if choice["used"]] == ["jetson"]
    report = recording.play()
    assert report.measured_fraction == 1.0
    assert report.domains["ina:1-0040:VDD_IN"].max_power_w == pytest.approx(10.0)
    assert 7.0 < (report.power_w or 0.0) < 10.0
    assert "ina:1-0040:VDD_SOC" not in report.domains  # as on the board, it cannot be read
    with tarfile.open(archive) as tar:
        content = b"".join(
            file.read() for member in tar if (file := tar.extractfile(member)) is not None
        )
    assert b"1420000000042" not in content
    assert b"secret-boot" not in content

    assert main(["replay", str(archive)]) == 0
    text = capsys.readouterr().out
    assert "recorded on NVIDIA Jetson Orin Nano" in text
    assert "This machine's energy is measured." in text


def test_recorded_readings_stand_for_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class GpuSource(FakeSource):
        kind = "nvml"

    gpu = domain("gpu:GPU-x", scope=Scope.GPU)
    watts = GpuSource(time.monotonic, [gpu], lambda: {gpu.id: watts.now_s * 50})
    monkeypatch.setattr("lightning_edge.energy.record.open_sources", lambda *_: ([watts], []))
    archive, folder = tmp_path / "gpu.tar.gz", tmp_path / "gpu"
    record(faked_host(tmp_path / "root", time.monotonic), archive, 0.3, period_s=0.03)
    folder.mkdir()
    report = Recording(archive, folder).play()
    assert report.power_w == pytest.approx(50.0, rel=0.2)


def test_recording_of_a_raspberry_pi_replays_its_command(tmp_path: Path) -> None:
    board, folder = tmp_path / "board", tmp_path / "folder"
    trees.write(board, {"/proc/device-tree/model": "Raspberry Pi 5 Model B"})
    archive = tmp_path / "pi.tar.gz"
    record(faked_host(board, time.monotonic, run=trees.pmic_command), archive, 0.1, period_s=0.02)
    folder.mkdir()
    report = Recording(archive, folder).play()
    assert report.power_w == pytest.approx(1.1451 * 2.63 + 0.5879)


class TestBadArchives:
    def _archive(self, path: Path, members: dict[str, str]) -> Path:
        with tarfile.open(path, "w:gz") as tar:
            for name, text in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(text.encode())
                tar.addfile(entry, io.BytesIO(text.encode()))
        return path

    def test_not_an_archive(self, tmp_path: Path) -> None:
        path = tmp_path / "x.tar.gz"
        path.write_bytes(b"nothing")
        with pytest.raises(EnergyError, match="no recording of energy readings"):
            Recording(path, tmp_path)
        assert main(["replay", str(path)]) == 1

    def test_another_archive(self, tmp_path: Path) -> None:
        path = self._archive(tmp_path / "x.tar.gz", {"README": "hello"})
        with pytest.raises(EnergyError, match=r"no recording .*'meta\.json'"):
            Recording(path, tmp_path)

    def test_newer_format(self, tmp_path: Path) -> None:
        members = {"meta.json": '{"format": 9}', "frames.jsonl": "", "readings.jsonl": ""}
        path = self._archive(tmp_path / "x.tar.gz", members)
        with pytest.raises(EnergyError, match="has format 9, not 1"):
            Recording(path, tmp_path)

    @pytest.mark.parametrize("where", ["tree", "frame", "unreadable"])
    def test_nothing_is_written_outside(self, tmp_path: Path, where: str) -> None:
        evil = "/../../evil"
        meta = {"format": 1, "unreadable": {evil: "OSError"} if where == "unreadable" else {}}
        frame = {"t_s": 0.0, "commands": {}, "files": {evil: "x"} if where == "frame" else {}}
        members = {
            "meta.json": json.dumps(meta),
            "frames.jsonl": json.dumps(frame),
            "readings.jsonl": "",
        }
        if where == "tree":
            members[f"tree{evil}"] = "x"
        path = self._archive(tmp_path / "x.tar.gz", members)
        folder = tmp_path / "a" / "b"
        folder.mkdir(parents=True)
        with pytest.raises(EnergyError, match="outside of its tree"):
            Recording(path, folder)
        assert not (tmp_path / "evil").exists()
