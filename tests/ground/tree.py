"""The project's own files, and what Python files import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lightning_edge"
SKIPPED = {".git", ".venv", "build", "dist", "outputs", "lightning_logs", "results", "shared"}


def files(suffix: str, folder: Path = ROOT) -> list[Path]:
    """All files of the project with this suffix, without environments, caches and outputs."""
    found = []
    for path in sorted(folder.rglob(f"*{suffix}")):
        parts = path.relative_to(ROOT).parts
        if path.is_file() and not any(
            p in SKIPPED or p.endswith(("_cache", "egg-info")) for p in parts
        ):
            found.append(path)
    return found


@dataclass(frozen=True)
class Import:
    """One imported module, by its absolute name."""

    name: str
    line: int
    lazy: bool  # inside a function


def imports(path: Path) -> Iterator[Import]:
    """Yield what a file of the package imports when it runs (``if TYPE_CHECKING:`` left out)."""
    package = (*path.relative_to(ROOT).parent.parts,)
    for node, lazy in _walk(ast.parse(path.read_text()), lazy=False):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, lazy)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            for alias in node.names:  # `from lightning_edge import plan` imports a module too
                yield Import(f"{module}.{alias.name}", node.lineno, lazy)


def _walk(node: ast.AST, lazy: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from _walk(other, lazy)
            continue
        inside = lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield child, inside
        yield from _walk(child, inside)
