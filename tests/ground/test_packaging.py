"""What is installed is what is in the tree, and what is pinned is what is declared."""

from __future__ import annotations

import re
import sys
from importlib.resources import files as resources
from typing import Any

import pytest
import yaml

import lightning_edge
from tests.ground.tree import PACKAGE, ROOT, files

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")


def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def name_of(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0].lower()


def declared() -> set[str]:
    project = settings()["project"]
    extras = [name for group in project["optional-dependencies"].values() for name in group]
    return {name_of(requirement) for requirement in [*project["dependencies"], *extras]}


def test_every_package_of_the_tree_is_listed():
    folders = {path.parent for path in files(".py", PACKAGE)}
    without = [str(f.relative_to(ROOT)) for f in folders if not (f / "__init__.py").is_file()]
    assert not without, f"no __init__.py in {without}"
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    listed = set(settings()["tool"]["setuptools"]["packages"])
    assert listed == found | {"lightning_edge.conf"}


def test_configs_are_reached_through_the_package():
    installed = resources("lightning_edge.conf")
    for path in files(".yaml", ROOT / "conf"):
        here = installed.joinpath(*path.relative_to(ROOT / "conf").parts)
        assert yaml.safe_load(here.read_text()) == yaml.safe_load(path.read_text())


def test_every_dependency_is_pinned_in_the_constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.match(r"[a-z0-9-]+==[^+]+$", pin.split(";")[0]) for pin in pins)
    # jetson-stats has to be the version of the board's service.
    missing = declared() - {name_of(pin) for pin in pins} - {"jetson-stats"}
    assert not missing


def test_every_dependency_says_why_its_bound_is_what_it_is():
    text = (ROOT / "pyproject.toml").read_text()
    block = text.split("\ndependencies = [")[1].split("]")[0]
    for line in block.strip().splitlines():
        assert re.fullmatch(r'\s*"[^"]*>=[^"]*",\s+# .{10,}', line), line


def test_there_is_one_version():
    import importlib.metadata

    assert importlib.metadata.version("lightning-edge") == lightning_edge.__version__
