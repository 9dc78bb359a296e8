"""Rules that every file of the project keeps."""

from __future__ import annotations

import ast
import re

import pytest

from tests.ground.tree import PACKAGE, ROOT, files, imports

LONGEST = 400
UNSAFE_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "__import__", "import_module", "load", "loads", "unsafe_load"}
SAFE_CALLS = {"json.loads", "yaml.safe_load"}
PICKLING_COLLECTIVES = {
    *("all_gather_object", "gather_object", "broadcast_object_list"),
    *("scatter_object_list", "send_object_list", "recv_object_list"),
}
# Only under another strategy than ours, such as DDP, whose ranks send each other pickles anyway.
FOREIGN_STRATEGIES = {"callbacks/run_account.py"}
SUFFIXES = [".py", ".md", ".yaml", ".toml", ".txt", ".cfg"]


@pytest.mark.parametrize("path", files(".md"), ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = path.parent / target if target else path
        assert file.exists(), f"{path.relative_to(ROOT)} links to {link}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file.read_text()), f"{file.name} has no heading #{anchor}"


def anchors(markdown: str) -> set[str]:
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ +(.+)$", markdown, flags=re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def test_anchors_are_made_as_github_makes_them():
    assert anchors("# Two laptops\n## What `plan` does\n") == {"two-laptops", "what-plan-does"}


def test_no_file_knows_a_machine():
    path_of_a_machine = re.compile(r"(?<![\w.\-])/(?:home|root|Users|work|tmp|mnt|private)/\w")
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for suffix in SUFFIXES
        for path in files(suffix)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if path_of_a_machine.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_file_is_too_long():
    folders = (PACKAGE, ROOT / "examples", ROOT / "benchmarks")
    sources = [path for folder in folders for path in files(".py", folder)]
    lines = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in sources}
    assert {str(path): n for path, n in lines.items() if n > LONGEST} == {}


def test_nothing_received_can_run_code():
    """Bytes from the network become tensors and plain values, by code that cannot do more."""
    wrong = []
    for path in files(".py", PACKAGE):
        here = path.relative_to(ROOT)
        for found in imports(path):
            if found.name.split(".")[0] in UNSAFE_MODULES:
                wrong.append(f"{here}:{found.line} imports {found.name}")
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            last = name.rpartition(".")[2]
            foreign = path.relative_to(PACKAGE).as_posix() in FOREIGN_STRATEGIES
            pickles = name.startswith(("dist.", "torch.distributed.")) and not foreign
            collective = pickles and last in PICKLING_COLLECTIVES
            unsafe = here.parts[1] == "train" and last in UNSAFE_CALLS and name not in SAFE_CALLS
            if collective or unsafe:
                wrong.append(f"{here}:{node.lineno} calls {name}")
    assert not wrong, "\n".join(wrong)
