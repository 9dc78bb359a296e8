"""The examples run, and the one with three devices learns what the plain one learns."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ground.tree import ROOT

SHORTER = "StandardLibrary(train_bytes=40_000, val_bytes=8_000)"


def run(folder: Path, name: str) -> str:
    """Run a script as its printed command does; returns what it prints."""
    environ = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}  # no test itself
    done = subprocess.run(
        [sys.executable, f"examples/{name}"], cwd=folder, stdin=subprocess.DEVNULL, env=environ,
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.multiproc
@pytest.mark.timeout(600)
def test_the_examples_run_and_agree(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=lambda *_: ["outputs"])
    for script in (tmp_path / "examples").glob("train_*.py"):
        text = script.read_text()
        assert "StandardLibrary()" in text
        script.write_text(text.replace("StandardLibrary()", SHORTER))
    plain = re.findall(r"bits per byte: (\S+) -> (\S+)", run(tmp_path, "train_plain.py"))
    said = run(tmp_path, "demo.py")  # which runs train_edge.py
    edge = re.findall(r"bits per byte: (\S+) -> (\S+)", said)
    assert len(plain) == len(edge) == 1
    assert [float(x) for x in edge[0]] == pytest.approx([float(x) for x in plain[0]], abs=0.011)
    assert float(edge[0][1]) < float(edge[0][0]) - 1
    assert "What each device did" in said
    assert said.count("-" * 80) == 3  # three texts that the checkpoint wrote in plain Lightning
