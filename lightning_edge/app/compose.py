"""Hydra: from overrides to a configuration, and from its errors to sentences."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import hydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_edge.app.failure import FULL_ERROR, CommandError

__all__: list[str] = []

CONFIGS = "pkg://lightning_edge.conf"
_ANYWHERE = ("-m", "--multirun", "--resolve")
Job = Callable[[DictConfig], None]


def with_config(command: str, primary: str, arguments: Sequence[str], job: Job) -> None:
    """Call `job` with each configuration that the arguments ask for; several with `-m`.

    Args:
        command: What the user typed, for Hydra's own texts.
        primary: Name of the configuration.
        arguments: Overrides, and Hydra's flags.
        job: Takes a configuration without the node `hydra`.

    Raises:
        CommandError: The arguments make no configuration.
    """
    failed: list[Exception] = []
    in_full = os.environ.get(FULL_ERROR)

    def kept(config: DictConfig) -> None:
        try:
            _check_complete(config)
            with _full_error(in_full):
                job(config)
        except Exception as error:  # Hydra would print lines of its own about it
            failed.append(error)

    start = hydra.main(config_path=CONFIGS, config_name=primary, version_base="1.3")(kept)
    with _as_command(f"lightning-edge {command}", arguments):
        try:
            start()
        except (HydraException, OmegaConfBaseException) as error:
            if in_full == "1":
                raise
            raise CommandError(sentence(error, primary, arguments), status=2) from None
        except SystemExit as end:
            if end.code not in (None, 0):
                raise CommandError("see the lines above", status=2) from None
    if failed:
        raise failed[0]


def _check_complete(config: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        words = " ".join(f"{key}=..." for key in missing)
        raise CommandError(f"{', '.join(missing)} must be set: add {words}", status=2)


def is_sweep() -> bool:
    """Whether the job that runs is one of several."""
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def job_overrides() -> list[str]:
    """The overrides of the job that runs."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task)


def sentence(error: Exception, primary: str, arguments: Sequence[str]) -> str:
    """What is wrong with the arguments, in one sentence.

    Args:
        error: Hydra's or OmegaConf's.
        primary: Name of the configuration.
        arguments: What was to be composed.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = error.options or []
        near = difflib.get_close_matches(name, options, n=1)
        hint = f"did you mean {group}={near[0]}?" if near else f"there are {', '.join(options)}"
        if options:
            return f"{group}={name}: there is no {group} {name!r}; {hint}"
    text = " ".join(str(error).split())
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read: {text.partition(' See https')[0]}"
    unknown = re.match(r"Could not override '([^']+)'(.*No match in the defaults list)?", text)
    if unknown and unknown[2]:
        return f"{unknown[1]} is no group of this configuration; `--cfg job` shows what there is"
    if unknown:
        near = difflib.get_close_matches(unknown[1], _keys(primary), n=1, cutoff=0.7)
        hint = f"did you mean {near[0]}?" if near else "`--cfg job` shows all keys"
        return f"{unknown[1]} is no key here; {hint} (a new key is set by +{unknown[1]}=...)"
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and str(cause) not in text:
        text = f"{text} ({' '.join(str(cause).split())})"
    return text


def _keys(primary: str) -> list[str]:
    """All keys of the configuration as it comes, with dots."""
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with hydra.initialize_config_module("lightning_edge.conf", version_base="1.3"):
        return sorted(flat(hydra.compose(primary)))


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Keys with dots, of nodes and leaves, to plain values; interpolations are left as they are."""
    if isinstance(config, DictConfig):
        config = OmegaConf.to_container(config, resolve=False)
    found: dict[str, Any] = {}
    for key, value in config.items():
        found[f"{prefix}{key}"] = value
        if isinstance(value, dict):
            found.update(flat(value, f"{prefix}{key}."))
    return found


@contextlib.contextmanager
def _as_command(name: str, arguments: Sequence[str]) -> Iterator[None]:
    """Let Hydra see these arguments, and let its errors through instead of printing them."""
    argv = sys.argv
    # argparse wants flags on one side of the overrides; users write them anywhere
    front = [word for word in arguments if word in _ANYWHERE]
    sys.argv = [name, *front, *(word for word in arguments if word not in _ANYWHERE)]
    try:
        with _full_error("1"):
            yield
    finally:
        sys.argv = argv


@contextlib.contextmanager
def _full_error(value: str | None) -> Iterator[None]:
    before = os.environ.get(FULL_ERROR)
    _put(value)
    try:
        yield
    finally:
        _put(before)


def _put(value: str | None) -> None:
    if value is None:
        os.environ.pop(FULL_ERROR, None)
    else:
        os.environ[FULL_ERROR] = value
