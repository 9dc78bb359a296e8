"""``python -m lightning_edge.energy doctor | watch | record | replay``."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lightning_edge.energy import doctor
from lightning_edge.energy.host import HostEnv
from lightning_edge.energy.meter import EnergyMeter
from lightning_edge.energy.record import record
from lightning_edge.energy.replay import Recording
from lightning_edge.energy.select import Choice, Wanted
from lightning_edge.energy.table import choices_table
from lightning_edge.energy.watch import watch
from lightning_edge.errors import EdgeError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    width = shutil.get_terminal_size((100, 24)).columns
    try:
        status: int = arguments.run(arguments, width)
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lightning_edge.energy", description=__doc__)
    commands = parser.add_subparsers(required=True)

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    for sub in (
        command("doctor", _doctor, "what can be read here, what cannot, why, and the remedy"),
        command("watch", _watch, "power of every domain, live"),
    ):
        sub.add_argument("--sources", default="auto", help="such as rapl,nvml; all by default")
        sub.add_argument("--sysroot", type=Path, default=Path("/"), help="read another root")
    doctor_, watch_ = (commands.choices[name] for name in ("doctor", "watch"))
    doctor_.add_argument("--seconds", type=float, default=2.0, help="length of the live reading")
    doctor_.add_argument("--json", action="store_true", help="for programs")
    doctor_.add_argument("--strict", action="store_true", help="status 2 unless all is measured")
    watch_.add_argument(
        "--seconds", type=float, default=float("inf"), help="until Ctrl-C if left out"
    )
    watch_.add_argument("--every", type=float, default=1.0, help="seconds between two lines")
    watch_.add_argument("--csv", action="store_true", help="lines instead of a table")

    sub = command("record", _record, "a tarball of readings: a test fixture of this machine")
    sub.add_argument("--seconds", type=float, default=10.0)
    sub.add_argument("--sysroot", type=Path, default=Path("/"))
    sub.add_argument("--output", type=Path, default=Path("energy-recording.tar.gz"))

    sub = command("replay", _replay, "what the meter makes of another machine's recording")
    sub.add_argument("archive", type=Path)
    return parser


def _sources(text: str) -> str | list[Wanted]:
    return "auto" if text == "auto" else [name.strip() for name in text.split(",")]


def _doctor(arguments: argparse.Namespace, width: int) -> int:
    host = HostEnv(sysroot=arguments.sysroot)
    found = doctor.examine(host, _sources(arguments.sources), arguments.seconds)
    print(doctor.as_json(found) if arguments.json else doctor.text(found, width))
    measured = found["verdict"] == doctor.MEASURED
    return 2 if arguments.strict and not measured else 0


def _watch(arguments: argparse.Namespace, width: int) -> int:
    host = HostEnv(sysroot=arguments.sysroot)
    with EnergyMeter(_sources(arguments.sources), host=host) as meter:
        watch(meter, arguments.seconds, arguments.every, as_csv=arguments.csv)
    return 0


def _record(arguments: argparse.Namespace, width: int) -> int:
    frames = record(HostEnv(sysroot=arguments.sysroot), arguments.output, arguments.seconds)
    print(f"{frames} frames in {arguments.output}")
    return 0


def _replay(arguments: argparse.Namespace, width: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        recording = Recording(arguments.archive, Path(folder))
        report = recording.play()
        print(f"recorded on {recording.meta['board'] or recording.meta['architecture']}")
        choices = [Choice(**choice) for choice in recording.meta["choices"]]
        print(choices_table(choices, width), end="")
        print(doctor.domains_table(report, width), end="")
        print(doctor.verdict(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
