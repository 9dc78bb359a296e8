"""A text task that every machine has at hand: which package is this docstring from?"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from lightning_edge.zoo.tables import Labelled, Row

__all__ = ["Docstrings"]

PACKAGES = ("asyncio", "email", "importlib", "logging", "multiprocessing", "unittest", "urllib")


class Docstrings(Labelled):
    """Docstrings of functions and classes, labelled with their package.

    Args:
        tokenizer: A local directory with a tokenizer, such as that of the model.
        packages: Of the standard library; their number is the model's `num_labels`.
        max_tokens: Longer texts are cut.
        batch_rows: Rows of a batch.
    """

    def __init__(
        self,
        tokenizer: str,
        packages: Sequence[str] = PACKAGES,
        max_tokens: int = 64,
        batch_rows: int = 16,
    ) -> None:
        super().__init__(tokenizer, max_tokens, batch_rows)
        self.packages = tuple(packages)

    def rows(self) -> list[Row]:
        """Every docstring once."""
        library = Path(sysconfig.get_path("stdlib"))
        found: dict[str, str] = {}
        for package in self.packages:
            for path in sorted((library / package).rglob("*.py")):
                for node in ast.walk(ast.parse(path.read_bytes())):
                    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                        text = ast.get_docstring(node)
                        if text and len(text) > 20:
                            found.setdefault(text, package)
        return list(found.items())
