"""The command line: which word means what. Whatever a command needs is imported by it alone."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

__all__: list[str] = []

# name: (what it does, module with main(arguments) -> exit status)
_APP = "lightning_edge.app."
COMMANDS = {
    "train": ("train a model on one or several devices", _APP + "train"),
    "plan": ("who would do what, how fast, with which energy", _APP + "plan"),
    "report": ("a finished run as tables and as a page with pictures", _APP + "report"),
    "profile": ("measure devices, links and model, and write it down", _APP + "profile"),
    "doctor": ("what is in the way on this device, and the remedy", _APP + "doctor"),
    "run": ("start any script on all devices, as train does", _APP + "run"),
    "testbed": ("emulate unequal devices on this machine", "lightning_edge.testbed.cli"),
    "energy": ("what can be measured here; watch it", "lightning_edge.energy.__main__"),
}
_USAGE = """\
usage: lightning-edge COMMAND [SETTING=VALUE ...]

{commands}

Settings are Hydra overrides: lightning-edge train model=byte_gpt cluster.devices=2
`lightning-edge COMMAND --help` says more; `lightning-edge train --cfg job` shows all settings.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status.

    Args:
        arguments: What follows `lightning-edge`; by default this process' arguments.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0 if given else 2
    name, rest = given[0], given[1:]
    if name == "--version":
        from lightning_edge import __version__

        print(f"lightning-edge {__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"lightning-edge: there is no command {name!r}; {hint}", file=sys.stderr)
        return 2
    status: int = importlib.import_module(COMMANDS[name][1]).main(rest)
    return status


def usage() -> str:
    """The text of `lightning-edge --help`."""
    lines = [f"  {name:8} {text}" for name, (text, _) in COMMANDS.items()]
    return _USAGE.format(commands="\n".join(lines))
