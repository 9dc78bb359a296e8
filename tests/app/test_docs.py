"""The documents: every command is one, every name exists, every argument is explained."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import subprocess
import sys

import hydra
import pytest
import yaml

import lightning_edge
from lightning_edge import errors
from lightning_edge.app.cli import COMMANDS, main
from tests.ground.tree import ROOT, files
from tests.plan.profiles import written

PAGES = [ROOT / "README.md", *files(".md", ROOT / "docs")]
COMPOSED = ("train", "plan", "profile")
# What needs other devices, root, or somebody who ends it.
ELSEWHERE = ("cluster=lan", "cluster=static", "--listen", "--with", "testbed", "energy watch")


def printed() -> list[str]:
    """Every line in a console block of a document that starts with our command."""
    return [
        line
        for page in PAGES
        for block in re.findall(r"```console\n(.*?)```", page.read_text(), flags=re.DOTALL)
        for line in block.splitlines()
        if line.startswith("lightning-edge ")
    ]


COMMANDS_PRINTED = sorted(set(printed()))
RUNNABLE = [line for line in COMMANDS_PRINTED if not any(word in line for word in ELSEWHERE)]
CHEAP = [
    line
    for line in RUNNABLE
    if "--cfg" in line or "--help" in line or "profile=saved" in line or line.endswith("doctor")
]


@pytest.mark.parametrize("line", COMMANDS_PRINTED)
def test_every_printed_command_is_one(line, capsys):
    words = shlex.split(line)[1:]
    if words[0].startswith("-"):
        return
    assert words[0] in COMMANDS
    overrides = words[1 : words.index("--")] if "--" in words else words[1:]
    overrides = [word for word in overrides if not word.startswith("-")]
    if words[0] in COMPOSED or words[0] == "run":
        primary = "run" if words[0] == "run" else "train"
        plain = [word for word in overrides if word not in ("job", "all")]
        if "-m" in words:
            plain = [word.partition(",")[0] for word in plain]
        with hydra.initialize_config_module("lightning_edge.conf", version_base="1.3"):
            hydra.compose(primary, plain)


@pytest.mark.parametrize("line", CHEAP)
def test_cheap_commands_end_well(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "profile.yaml").write_text(written())
    assert main(shlex.split(line)[1:]) == 0


@pytest.mark.slow
@pytest.mark.multiproc
@pytest.mark.timeout(1500)
def test_all_other_commands_end_well_one_after_the_other(tmp_path):
    (tmp_path / "profile.yaml").write_text(written())
    (tmp_path / "train.py").write_text("print('hello')\n")
    ordered = [line for line in printed() if line in RUNNABLE and line not in CHEAP]
    for line in dict.fromkeys(ordered):
        words = [sys.executable, "-m", "lightning_edge.app", *shlex.split(line)[1:]]
        done = subprocess.run(
            words, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def blocks(language: str) -> list[tuple[str, str]]:
    """Name of the page and text of each block in this language."""
    pattern = rf"^```{language}\n(.*?)^```"
    return [
        (page.name, block)
        for page in PAGES
        for block in re.findall(pattern, page.read_text(), flags=re.DOTALL | re.MULTILINE)
    ]


@pytest.mark.parametrize(("page", "text"), blocks("python"))
def test_python_on_a_page_is_python_and_imports_what_is_there(page, text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning_edge"):
            module = importlib.import_module(node.module)
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{page}: {node.module} has no {missing}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "lightning_edge":
            assert hasattr(lightning_edge, node.attr), f"{page}: lightning_edge.{node.attr}"


@pytest.mark.parametrize(("page", "text"), [b for b in blocks("yaml") if "pipelines:" in b[1]])
def test_a_plan_on_a_page_is_one(page, text):
    assert lightning_edge.Plan.from_mapping(yaml.safe_load(text)).stages, page


def test_every_command_is_explained():
    text = (ROOT / "docs" / "command.md").read_text()
    assert all(f"| `{name}` |" in text for name in COMMANDS)


def test_every_choice_of_a_group_is_named():
    text = (ROOT / "docs" / "command.md").read_text()
    folders = [path for path in (ROOT / "conf").iterdir() if path.is_dir()]
    missing = [
        f"{folder.name}={file.stem}"
        for folder in folders
        if folder.name not in ("testbed", "trainer", "__pycache__")
        for file in folder.glob("*.yaml")
        if f"`{file.stem}`" not in text
    ]
    assert not missing


@pytest.mark.parametrize(
    "name", ["EdgeCollabStrategy", "EnergyLogger", "Stage", "Plan", "Pipeline"]
)
def test_every_argument_is_in_the_reference(name):
    text = (ROOT / "docs" / "api.md").read_text()
    parameters = inspect.signature(getattr(lightning_edge, name)).parameters
    named = [key for key in parameters if not key.startswith("_")]
    missing = [key for key in named if not re.search(rf"`[^`]*\b{key}\b[^`]*`", text)]
    assert not missing, f"docs/api.md does not explain {missing} of {name}"


def test_every_public_name_and_error_is_in_the_reference():
    text = (ROOT / "docs" / "api.md").read_text()
    public = [name for name in lightning_edge.__all__ if name != "__version__"]
    raised = [
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and not name.startswith("_")
    ]
    missing = [name for name in [*public, *raised] if name not in text]
    assert not missing


def test_the_reference_names_nothing_that_is_not_there():
    text = (ROOT / "docs" / "api.md").read_text()
    headings = re.findall(r"^## (\w+(?:, \w+)*)$", text, flags=re.MULTILINE)
    names = [name for heading in headings for name in heading.split(", ")]
    known = [*lightning_edge.__all__, "register", "Errors"]
    assert [name for name in names if name not in known] == []


def test_examples_are_run_by_a_printed_command():
    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "starting.md").read_text()
    for path in (ROOT / "examples").glob("*.py"):
        assert f"python examples/{path.name}\n" in text, path.name


def test_the_pages_are_all_reached_from_the_first():
    text = (ROOT / "docs" / "README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert all(f"({page})" in text for page in pages), pages
