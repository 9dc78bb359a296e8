"""Which part may import which: the direction that keeps the four phases apart."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from tests.ground.test_packaging import declared
from tests.ground.tree import PACKAGE, ROOT, Import, files, imports

#   errors <- plan <- replicate <- train <- profile          energy and the table
#   of boards stand alone
#   loop, strategy and callbacks use all of them; app uses strategy and callbacks
#   zoo is ordinary Lightning that knows nothing of devices
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "boards": set(),
    "room": set(),
    "plan": {"errors"},
    "energy": {"errors", "boards"},
    "replicate": {"errors", "plan"},
    "train": {"errors", "plan", "replicate", "room"},
    "profile": {"errors", "boards", "room", "plan", "replicate", "train", "energy"},
    "testbed": {"errors", "boards", "plan", "profile"},
    "loop": {"errors", "plan", "replicate", "train", "profile", "energy", "report"},
    "report": {"errors", "plan", "replicate", "train", "comparison"},
    "comparison": set(),
    "strategy": {"errors", "plan", "replicate", "train", "profile", "energy", "loop", "report"},
    "callbacks": {"errors", "plan", "profile", "energy", "loop", "strategy"},
    "zoo": {"errors"},
    "app": {
        *("errors", "plan", "profile", "energy", "strategy", "callbacks", "testbed", "zoo"),
        *("loop", "report", "boards"),
    },
}
ONLY_IN = {
    "lightning": {"__init__", "strategy", "loop", "callbacks", "app", "zoo"},
    "pytorch_lightning": {"__init__", "strategy", "loop"},
    "hydra": {"app"},
    "omegaconf": {"app"},
}
NO_TORCH = {"errors", "plan"}
NO_TORCH_AT_IMPORT = {"energy"}


def part_of(path: Path) -> str:
    """`lightning_edge/plan/schedule.py` -> plan, `lightning_edge/strategy.py` -> strategy."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def package_imports() -> Iterator[tuple[Path, str, Import]]:
    for path in files(".py", PACKAGE):
        for found in imports(path):
            yield path, part_of(path), found


def where(path: Path, found: Import) -> str:
    return f"{path.relative_to(ROOT)}:{found.line} imports {found.name}"


def test_every_part_has_its_place():
    parts = {part_of(path) for path in files(".py", PACKAGE)} - {"__init__"}
    assert parts <= set(ALLOWED), f"say in ALLOWED what {parts - set(ALLOWED)} may import"


def test_imports_go_one_way():
    wrong = []
    for path, part, found in package_imports():
        names = found.name.split(".")
        if names[0] != "lightning_edge" or part == "__init__" or len(names) < 2:
            continue
        if names[1] != part and names[1] in ALLOWED and names[1] not in ALLOWED[part]:
            wrong.append(where(path, found))
    assert not wrong, "\n".join(wrong)


def test_frameworks_stay_in_their_adapters():
    wrong = []
    for path, part, found in package_imports():
        top = found.name.split(".")[0]
        torch_here = top == "torch" and (
            part in NO_TORCH or (part in NO_TORCH_AT_IMPORT and not found.lazy)
        )
        if torch_here or part not in ONLY_IN.get(top, {part}):
            wrong.append(where(path, found))
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_in_a_circle():
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in files(".py", PACKAGE)
    }
    edges = {
        name: {
            target
            for found in imports(path)
            if not found.lazy
            for target in (found.name, found.name.rpartition(".")[0])
            if target in modules and target != name
        }
        for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in done:
            for target in sorted(edges[name]):
                visit(target, (*above, name))
            done.add(name)

    for name in sorted(modules):
        visit(name, ())


def test_what_is_imported_is_declared():
    known = {
        "nvidia-ml-py": "pynvml",
        "pyyaml": "yaml",
        "hydra-core": "hydra",
        "jetson-stats": "jtop",
        "scikit-learn": "sklearn",
    }
    names = {known.get(name, name.replace("-", "_")) for name in declared()}
    names |= {"lightning_edge", "omegaconf", *sys.stdlib_module_names}  # omegaconf is hydra's
    names |= {"pytorch_lightning", "typing_extensions"}  # come with lightning and with torch
    wrong = [
        where(p, found)
        for p, _, found in package_imports()
        if found.name.split(".")[0] not in names
    ]
    assert not wrong, "\n".join(wrong)
