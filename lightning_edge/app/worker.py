"""One rank of a run: `python -m lightning_edge.app.worker MODE CONFIG`, started by the agent.

Ends with status 1 after an error, whose words are in the file that the agent names: the agent's
process prints them, once for all ranks. What no error of ours explains is shown with its trace.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_edge.app.agent import ERROR_FILE
from lightning_edge.app.failure import FULL_ERROR
from lightning_edge.errors import EdgeError, PeerError

__all__: list[str] = []

ORPHAN_POLL_S = 1.0


def main(arguments: Sequence[str]) -> int:
    """Run one rank and return its exit status."""
    mode, path = arguments
    _end_with_parent()
    try:
        from lightning_edge.app import fit

        fit.run(mode, Path(path))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as end:  # Lightning's, after Ctrl-C
        return int(end.code or 0) if not isinstance(end.code, str) else 1
    except BaseException as error:
        cause = _cause(error)
        expected = _is_users(cause) and os.environ.get(FULL_ERROR) != "1"
        if not (expected or isinstance(cause, PeerError)):
            traceback.print_exception(cause)
        _leave_word(cause)
        sys.stdout.flush()
        sys.stderr.flush()
        return 1
    return 0


def _cause(error: BaseException) -> BaseException:
    """The error itself, without Hydra's words around it."""
    from hydra.errors import InstantiationException

    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_users(error: BaseException) -> bool:
    """Whether the words of an error say what to change: ours, and Lightning's for its users."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    return isinstance(error, (EdgeError, MisconfigurationException))


def _leave_word(error: BaseException) -> None:
    file = os.environ.get(ERROR_FILE)
    ours = _is_users(error)
    text = str(error) if ours else f"{type(error).__name__}: {error}"
    rank, device = os.environ.get("RANK", "0"), os.environ.get("LIGHTNING_EDGE_DEVICE")
    if not ours and os.environ.get("WORLD_SIZE", "1") != "1":
        text = f"rank {rank}{f' ({device})' if device else ''}: {text}"
    word: dict[str, Any] = {
        "message": text,
        "timestamp": int(time.time()),
        "kind": type(error).__name__,
    }
    if file is not None:
        Path(file).write_text(json.dumps(word))
    else:
        print(f"lightning-edge: {text}", file=sys.stderr)


def _end_with_parent() -> None:
    """End soon after the agent's process has ended in a way that left it no time to say so."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_POLL_S)
        time.sleep(ORPHAN_POLL_S)  # connections break first, and say more
        if (launcher := sys.modules.get("lightning_edge.loop.launcher")) is not None:
            launcher.wait_until_it_may_end()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
