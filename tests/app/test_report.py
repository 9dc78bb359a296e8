"""`lightning-edge report` and `doctor`: what is shown is what the files and the machine say."""

from __future__ import annotations

import json
import re
import socket
import threading
import time

import pytest

from lightning_edge.app import between, findings
from lightning_edge.app.cli import main
from lightning_edge.plan.search import search
from tests.plan.profiles import simple


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run with a plan, a profile, and what two devices did."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "outputs" / "20260102-030405-ab12"
    folder.mkdir(parents=True)
    profile = simple([1.0, 1.0], mbit=1000)
    plan = search(profile, rows=8).plan
    plan.to_yaml(folder / "plan.yaml")
    profile.to_yaml(folder / "profile.yaml")
    (folder / "overrides.yaml").write_text("- model=digits\n- run.name=<b>\n")
    (folder / "metrics.json").write_text(json.dumps({"val_loss": 0.125, "batch_rows": 8}))
    devices = [
        {
            "rank": rank, "name": f"d{rank}", "stage": 0, "peak_memory_bytes": 5e8,
            "measured": {"batches": 4, "rows": 16, "compute_s": 0.8, "wait_s": 0.2,
                         "communication_s": 0.04, "total_s": 1.2},
        }
        for rank in range(2)
    ]  # fmt: skip
    step = {"device": None, "what": "step", "unit": "s", "predicted": 0.25, "measured": 0.3}
    joules = {"device": "0 d0", "what": "energy", "unit": "J", "predicted": None, "measured": 2.5}
    compared = [{**step, "off": -1 / 6}, {**joules, "off": None}]
    text = json.dumps({"devices": devices, "compared": compared})
    (folder / "report.json").write_text(text)
    (folder / "logs").mkdir()
    (folder / "logs" / "metrics.csv").write_text("step,train_loss\n1,2.0\n2,1.0\n")
    return folder


def test_predicted_and_measured_stand_side_by_side(run, capsys):
    assert main(["report"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"all .* step .* 250 ms .* 300 ms .* -16.7 %", shown)
    assert re.search(r"0 d0 .* energy .* \? .* 2.5 J", shown)
    assert re.search(r"0 d0 .* 200 ms .* 10 ms .* 50 ms .* 300 ms .* 500 MB", shown)
    assert "0.125" in shown


def test_the_page_needs_no_other_file(run, capsys):
    assert main(["report", str(run), "--html", "x.html"]) == 0
    page = (run.parents[1] / "x.html").read_text()
    assert page.count('src="data:image/png;base64,') == 2  # the timeline and the curves
    assert "src=" not in page.replace('src="data:', "")
    assert "href=" not in page
    assert "run.name=&lt;b&gt;" in page


@pytest.mark.parametrize("words", [["none"], ["."]])
def test_a_folder_without_runs_is_said_so(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("lightning-edge report: ")


def test_stale_variables_and_a_missing_secret_are_found():
    found = list(findings.variables({"RANK": "1", "NODE_RANK": "0"}))
    assert [(f.what, f.state) for f in found] == [("environment", "note"), ("secret", "note")]
    assert found[0].remedy.startswith("unset RANK NODE_RANK")


def test_a_firewall_is_found(tmp_path):
    (tmp_path / "etc/ufw").mkdir(parents=True)
    (tmp_path / "etc/ufw/ufw.conf").write_text("# x\nENABLED=yes\n")
    (found,) = findings.firewall(tmp_path)
    assert found.state == "note"
    assert "sudo ufw allow" in found.remedy


def test_a_host_that_only_has_loopback_has_a_problem(monkeypatch):
    monkeypatch.setattr(findings.addresses, "own", list)
    found = {finding.what: finding for finding in findings.network()}
    assert found["addresses"].state == "problem"
    assert "ip -4 addr" in found["addresses"].remedy


def test_a_port_in_use_is_found(monkeypatch):
    with socket.create_server(("", 0)) as taken:
        monkeypatch.setattr(findings, "PORT", taken.getsockname()[1])
        assert next(findings.ports()).state == "note"


def pair(secret: str, other: str) -> list[findings.Finding]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    thread = threading.Thread(target=_listen, args=(port, secret))
    thread.start()
    try:
        for _ in range(100):
            found = list(between.look("127.0.0.1", port, other))
            if "nothing listens" not in found[0].found:
                return found
            time.sleep(0.05)
        return found
    finally:
        thread.join(30)


def _listen(port: int, secret: str) -> None:
    try:
        between.listen(port, secret, 3.0)
    except between.CommandError:
        return


def test_two_devices_find_both_ways(capsys):
    found = pair("s", "s")
    assert [finding.state for finding in found] == ["ok"] * 4
    assert "Mbit/s" in found[2].found


def test_two_devices_with_different_secrets_say_so(capsys):
    found = pair("s", "t")
    assert found[-1].state == "problem"
    assert "secret" in found[-1].found


def test_a_device_that_is_not_there_comes_with_what_to_do():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (found,) = between.look("127.0.0.1", port, "")
    assert found.state == "problem"
    assert "doctor --listen" in found.remedy
