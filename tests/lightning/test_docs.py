"""docs/lightning.md: every row has a verdict and a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split("|")]
    for line in (ROOT / "docs" / "lightning.md").read_text().splitlines()
    if line.startswith("|") and not line.startswith(("| feature", "|---"))
]


def functions_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS, ids=[row[0][:40] for row in ROWS])
def test_every_row_is_backed_by_a_test(row):
    feature, verdict, _, test = row
    assert verdict in ("works", "with a remark", "refused"), feature
    match = re.fullmatch(r"`([\w/]+)::(test_\w+)`", test)
    assert match, f"{feature}: {test} is not `file::test`"
    file = ROOT / "tests" / f"{match[1]}.py"
    assert match[2] in functions_in(file), f"{feature}: {match[2]} is not in {file.name}"


def test_every_scenario_is_in_the_table():
    named = {row[-1].strip("`").rpartition("::")[2] for row in ROWS}
    files = sorted((ROOT / "tests" / "lightning").glob("test_*.py"))
    tests = {n for file in files for n in functions_in(file) if n.startswith("test_")}
    inner = {
        "test_every_row_is_backed_by_a_test",
        "test_every_scenario_is_in_the_table",
        "test_no_optimizer_of_torch_is_forgotten",
        "test_all_problems_are_named_at_once",
        "test_boring_model_as_a_pipeline",
        "test_a_killed_save_leaves_the_checkpoint_before_it",
        "test_what_cannot_be_written_leaves_the_old_file",
    }
    assert tests - named == inner
