"""The executor's benchmark: one command, one table.

    python -m benchmarks.executor                       everything, about half an hour on two cores
    python -m benchmarks.executor --only loopback       one part (or several)
    python -m benchmarks.executor --quick               fewer turns, for a look

Contestants alternate in one run; every number is a median, every comparison the median of paired
ratios. The table is printed, and written with the machine and the date as JSON and as Markdown.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import latency, links, loopback, memory, table, whole
from benchmarks.contest import ContestError
from benchmarks.table import Row

SECTIONS: dict[str, Callable[[bool], list[Row]]] = {
    "loopback": loopback.run,
    "links": links.run,
    "ddp": whole.run_ddp,
    "single": whole.run_single,
    "latency": latency.run,
    "memory": memory.run,
}
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    parser.add_argument("--json", type=Path, default=RESULTS / "executor.json")
    arguments = parser.parse_args()
    start_s = time.monotonic()
    rows: list[Row] = []
    for name in arguments.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            rows += SECTIONS[name](arguments.quick)
        except ContestError as error:
            print(error, file=sys.stderr)
            rows.append(Row(name, "", "", None, note="failed: see above"))
    table.show(rows)
    table.write(rows, arguments.json, time.monotonic() - start_s)
    return 1 if any(row.failed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
