"""`lightning-edge doctor`: what this device can do, what is in the way, and the remedy."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from io import StringIO

from rich.console import Console
from rich.table import Table

from lightning_edge.app import between
from lightning_edge.app.cluster import PORT, secret_of
from lightning_edge.app.failure import guarded
from lightning_edge.app.findings import Finding, findings, ok
from lightning_edge.energy import doctor as energy
from lightning_edge.energy.host import HostEnv

__all__: list[str] = []

_MARKS = {"ok": "ok", "note": "NOTE", "problem": "PROBLEM"}


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit status is 1 if there is a problem."""
    return guarded("doctor", lambda: _doctor(arguments))


def _doctor(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("lightning-edge doctor", description=__doc__)
    parser.add_argument("--with", dest="host", metavar="ADDRESS", help="the way to a device")
    parser.add_argument("--listen", action="store_true", help="let another device try the way here")
    parser.add_argument("--port", type=int, default=PORT, help=f"for these two; default {PORT}")
    parser.add_argument("--wait", type=float, default=300.0, help="seconds to listen; default 300")
    parser.add_argument("--json", action="store_true", help="for programs")
    given = parser.parse_args(list(arguments))
    secret = secret_of(None)
    if given.listen:
        print(f"listening at port {given.port}: run `lightning-edge doctor --with ADDRESS` there")
        between.listen(given.port, secret, given.wait)
        return 0
    if given.host is not None:
        found = list(between.look(given.host, given.port, secret))
    else:
        found = [*findings(), *energy_of(HostEnv())]
    if given.json:
        print(json.dumps([asdict(finding) for finding in found], indent=1))
    else:
        print(text(found), end="")
    return 1 if any(finding.state == "problem" for finding in found) else 0


def energy_of(host: HostEnv) -> Iterator[Finding]:
    """What can be measured here, and what would have to be done for more."""
    found = energy.examine(host, "auto", seconds=0.5)
    if found["verdict"] == energy.MEASURED:
        yield ok("energy", found["verdict"])
        return
    text = "`lightning-edge energy doctor` says what each source lacks"
    yield Finding("energy", "note", found["verdict"], text)
    for choice in found["choices"]:
        if choice["remedy"] and not choice["remedy"].startswith("sources="):
            name = f"energy: {choice['kind']}"
            yield Finding(name, "note", choice["reason"], choice["remedy"])


def text(found: Sequence[Finding]) -> str:
    """The findings for people."""
    grid = Table(box=None, show_header=False, pad_edge=False)
    for _ in range(3):
        grid.add_column(overflow="fold")
    for finding in found:
        remedy = f"\n-> {finding.remedy}" if finding.remedy else ""
        grid.add_row(_MARKS[finding.state], finding.what, finding.found + remedy)
    problems = sum(finding.state == "problem" for finding in found)
    out = StringIO()
    width = shutil.get_terminal_size((100, 24)).columns
    Console(file=out, width=width, highlight=False).print(grid, markup=False)
    return f"{out.getvalue()}{problems or 'no'} problem{'' if problems == 1 else 's'}\n"
