"""Is every key of a node with `_target_` a parameter of what it names? Asked before all else."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

__all__: list[str] = []

_WORDS = {int: "a whole number", float: "a number", bool: "true or false"}
_HYDRAS = {"_target_", "_args_", "_partial_", "_recursive_", "_convert_"}


def problems(config: DictConfig) -> list[str]:
    """Say what cannot be instantiated, one sentence each.

    Args:
        config: Resolved, of any depth.
    """
    tree = OmegaConf.to_container(config)
    return [text for path, node in _targets(tree, "") for text in _of_node(path, node)]


def _targets(node: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(node, Mapping):
        if node.get("_target_"):
            yield path, node
        for key, value in node.items():
            yield from _targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _targets(value, f"{path}[{index}]")


def _of_node(path: str, node: Mapping[str, Any]) -> list[str]:
    name = str(node["_target_"])
    log = logging.getLogger("hydra.utils")
    quiet, log.disabled = log.disabled, True  # it would say the same in three lines
    try:
        target = get_object(name)
    except Exception as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        return [f"{path}._target_={name} cannot be imported: {reason}"]
    finally:
        log.disabled = quiet
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return []  # built in, without a signature
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return []
    found = []
    numbers = _numbers(target)
    for key, value in node.items():
        if key not in parameters and key not in _HYDRAS:
            near = difflib.get_close_matches(str(key), parameters, n=1)
            hint = f"; did you mean {path}.{near[0]}?" if near else ""
            found.append(f"{path}.{key} is no parameter of {name}{hint}")
        elif key in numbers and isinstance(value, str):
            found.append(f"{path}.{key}={value} is not {numbers[key]}, which {name} wants")
    needed = [
        key
        for key, one in parameters.items()
        if one.default is inspect.Parameter.empty
        and one.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        and key not in node
    ]
    if needed and not node.get("_partial_") and not node.get("_args_"):
        found.append(f"{path}: {name} needs {', '.join(f'{path}.{key}' for key in needed)}")
    return found


def _numbers(target: Any) -> dict[str, str]:
    """Parameters that take numbers and no text, each with what it takes."""
    try:
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # names that only a type checker sees
        return {}
    found = {}
    for name, hint in hints.items():
        kinds = set(get_args(hint)) - {type(None)} or {hint}
        if kinds and kinds <= {int, float, bool}:
            found[name] = " or ".join(_WORDS[kind] for kind in (int, float, bool) if kind in kinds)
    return found
