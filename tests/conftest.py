"""Settings of every test: one thread, a fixed seed, and nothing left behind."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
import tqdm

from tests import hygiene
from tests.pool import Pool

torch.set_num_threads(1)
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # for the processes that tests start
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need the network
os.environ["TOKENIZERS_PARALLELISM"] = "false"
tqdm.tqdm.monitor_interval = 0  # no monitor thread behind each progress bar
hypothesis.settings.register_profile(
    "project", deadline=None, derandomize=True, database=None, print_blob=True
)
hypothesis.settings.load_profile("project")


@pytest.fixture(scope="session", autouse=True)
def own_temporary_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Make this session's temporary directory its own, so that only its own leaks are seen."""
    folder = tmp_path_factory.mktemp("scratch")
    before = os.environ.get("TMPDIR")
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    yield
    tempfile.tempdir = None
    del os.environ["TMPDIR"]
    if before is not None:
        os.environ["TMPDIR"] = before


@pytest.fixture(scope="session")
def pool(own_temporary_directory: None) -> Iterator[Pool]:
    """Resident worker processes: ``pool.run(function, world_size, *arguments)``."""
    workers = Pool()
    yield workers
    workers.close()


@pytest.fixture(autouse=True)
def leave_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seed the random generators before a test, and fail it for what it leaves behind."""
    resident = request.getfixturevalue("pool") if "pool" in request.fixturenames else None
    traces = [
        hygiene.Trace("process", lambda: hygiene.children(resident.pids if resident else ())),
        hygiene.Trace("thread", hygiene.threads),
        hygiene.Trace("environment variable", hygiene.variables),
        hygiene.Trace("process group", hygiene.process_groups),
        hygiene.Trace("socket", hygiene.sockets),
        hygiene.Trace("file", hygiene.files),
        hygiene.Trace("setting", hygiene.settings),
    ]
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    environment, directory = dict(os.environ), Path.cwd()
    before = [list(trace.look()) for trace in traces]
    yield
    found = [
        f"{trace.what}: {left}"
        for trace, seen in zip(traces, before, strict=True)
        for left in hygiene.leaks(trace, seen)
    ]
    _restore(environment, directory)
    if found:
        pytest.fail("the test left behind\n  " + "\n  ".join(found), pytrace=False)


def _restore(environment: dict[str, str], directory: Path) -> None:
    """Put back what the next test relies on, whether or not this one failed."""
    os.chdir(directory)
    for name in set(os.environ) - set(environment) - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    for name, value in environment.items():
        if name != "PYTEST_CURRENT_TEST" and os.environ.get(name) != value:
            os.environ[name] = value
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    if torch.are_deterministic_algorithms_enabled():  # setting it imports half of torch
        torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    torch.autograd.set_detect_anomaly(False)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what this machine cannot run, and say what is missing."""
    if item.get_closest_marker("root") is None:
        return
    missing = []
    if sys.platform != "linux":
        missing.append("Linux")
    elif os.geteuid() != 0:
        missing.append("root")
    missing += [f"`{tool}` (iproute2)" for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
