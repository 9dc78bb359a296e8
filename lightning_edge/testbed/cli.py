"""The command line: `lightning-edge testbed run | boards | clean`."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console

from lightning_edge.errors import TestbedError
from lightning_edge.testbed import show, slots, units
from lightning_edge.testbed.bed import Testbed
from lightning_edge.testbed.boards import known_boards
from lightning_edge.testbed.faults import Fault
from lightning_edge.testbed.machine import missing_requirements
from lightning_edge.testbed.resolve import Pool
from lightning_edge.testbed.spec import DeviceSpec, PoolSpec, raise_all, read_medium

__all__: list[str] = []

_EXAMPLE = """\
example:
  %(prog)s --device orin-nano:15W --device pi5,link=50mbit -- python train.py
  %(prog)s --device cpu=60%%,memory=2G,link=100mbit --device cpu=20%% -- python train.py
"""


def main(arguments: Sequence[str]) -> int:
    """Run one command line.

    Args:
        arguments: What follows `lightning-edge testbed`.

    Returns:
        The exit status: 0 if all went well on every device, 1 if not, 2 if it could not start, and
        128 plus the signal if it was interrupted.
    """
    parsed = _parser().parse_args(arguments)
    try:
        return int(parsed.call(parsed))
    except TestbedError as error:
        print(f"lightning-edge testbed: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-edge testbed", description="Unequal devices on one Linux machine (root)."
    )
    commands = parser.add_subparsers(required=True, metavar="run | boards | clean")
    run = commands.add_parser(
        "run",
        help="run a command on every device of a pool",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="SPEC",
        help="BOARD[:MODE] and/or name=, cpu=60%%, memory=2G, link=100mbit (or wifi-indoors, or a "
        "CSV file with t_s,mbit), latency=5ms, loss=1%%, power=2W-8W; once per device",
    )
    run.add_argument("--pool", metavar="FILE", help="devices from a YAML file, or one by name")
    run.add_argument("--medium", metavar="RATE", help="one rate or trace for all, as on one Wi-Fi")
    run.add_argument(
        "--scale-links",
        action="store_true",
        help="slow links down as the boards are, so that compute : communication is theirs",
    )
    run.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="WHAT",
        help="kill|freeze|thaw|slow|cut|restore:DEVICE[=VALUE]@12s or @step30; any number",
    )
    run.add_argument(
        "--free-start",
        action="store_true",
        help="no CPU quota until a device announces something, so that starting up is quick",
    )
    run.add_argument("--timeout", type=_time, metavar="TIME", help="stop everything after 120s")
    run.add_argument(
        "--grace", type=_time, default=90.0, metavar="TIME", help="wait after a failure (90s)"
    )
    run.add_argument("--json", type=Path, metavar="FILE", help="write what was measured to FILE")
    run.add_argument("command", nargs="+", metavar="-- COMMAND", help="the same on every device")
    run.set_defaults(call=_run)
    boards = commands.add_parser("boards", help="list the boards known by name")
    boards.set_defaults(call=_boards)
    clean = commands.add_parser("clean", help="remove what killed testbeds have left")
    clean.set_defaults(call=_clean)
    return parser


def _time(text: str) -> float:
    try:
        return units.seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _run(parsed: argparse.Namespace) -> int:
    console = Console(highlight=False)
    interrupted: list[int] = []
    with _signals(interrupted):
        try:
            with Testbed(_pool_spec(parsed)) as bed:
                _introduce(console, bed.pool)
                result = bed.run(
                    parsed.command,
                    timeout_s=parsed.timeout,
                    faults=parsed.fault,
                    printer=_Printer(bed.pool),
                    grace_s=parsed.grace,
                    free_start=parsed.free_start,
                )
        except KeyboardInterrupt:
            print("lightning-edge testbed: interrupted, all removed", file=sys.stderr)
            return 128 + (interrupted[0] if interrupted else signal.SIGINT)
    console.print(show.result_table(result))
    for text, fired_s in result.faults:
        when = "never came to it" if fired_s is None else f"at {fired_s:.2f} s"
        console.print(f"fault {text}: {when}", markup=False)
    if parsed.json is not None:
        parsed.json.write_text(result.to_json())
    if result.ok:
        return 0
    try:
        result.check()
    except TestbedError as error:
        print(f"lightning-edge testbed: {error}", file=sys.stderr)
    return 1


def _pool_spec(parsed: argparse.Namespace) -> PoolSpec:
    problems, devices = [], []
    for text in parsed.device:
        try:
            devices.append(DeviceSpec.parse(text))
        except TestbedError as error:
            problems.append(str(error))
    pool = PoolSpec(())
    try:
        pool = PoolSpec.from_yaml(_pool_file(parsed.pool)) if parsed.pool else pool
        if parsed.medium is not None:
            pool = replace(
                pool, **{"medium_mbit": None, "medium_trace": None, **read_medium(parsed.medium)}
            )
    except TestbedError as error:
        problems.append(str(error))
    for text in parsed.fault:
        try:
            Fault.parse(text)
        except TestbedError as error:
            problems.append(str(error))
    raise_all(problems, "the command line")
    scale_links = pool.scale_links or parsed.scale_links
    return replace(pool, devices=(*pool.devices, *devices), scale_links=scale_links)


def _pool_file(name: str) -> Path:
    """Return the file of that name, or the pool that comes with the package."""
    path = Path(name)
    if path.suffix or path.exists():
        return path
    shipped = Path(str(files("lightning_edge.conf"))) / "testbed"
    if (shipped / f"{name}.yaml").is_file():
        return shipped / f"{name}.yaml"
    known = ", ".join(sorted(file.stem for file in shipped.glob("*.yaml")))
    raise TestbedError(f"there is no file and no pool {name!r}; pools that come along: {known}")


def _introduce(console: Console, pool: Pool) -> None:
    console.print(show.pool_table(pool))
    for note in pool.notes:
        console.print(f"note: {note}", markup=False)


class _Printer:
    """Prints lines under their device's name, in columns."""

    def __init__(self, pool: Pool) -> None:
        self._width = max(len(device.name) for device in pool.devices)

    def __call__(self, name: str, line: str) -> None:
        print(f"[{name}]{' ' * (self._width - len(name))} {line}", flush=True)


@contextlib.contextmanager
def _signals(received: list[int]) -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the run as Ctrl-C does; a second one does not stop the cleanup."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        received.append(number)
        for again in handled:
            signal.signal(again, signal.SIG_IGN)
        raise KeyboardInterrupt

    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _boards(parsed: argparse.Namespace) -> int:
    console = Console(highlight=False)
    console.print(show.boards_table(known_boards()))
    console.print("* the mode that the name alone means; watts in a mode's name are its label only")
    return 0


def _clean(parsed: argparse.Namespace) -> int:
    raise_all(missing_requirements(), "the testbed")
    removed = slots.remove_stale()
    print(f"removed what {len(removed)} killed testbeds had left")
    return 0
