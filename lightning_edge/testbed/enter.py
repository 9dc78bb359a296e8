"""Becomes one device, then the command: started as a script, without the rest of the package.

    python -I -S enter.py SETTINGS COMMAND...

SETTINGS is JSON: `parent` (process id), `namespace` (file of the network namespace), `hostname`,
`hosts` (a file to see as /etc/hosts) and `groups` (files to write the own process id into).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys

__all__: list[str] = []

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWNET = 0x00020000, 0x04000000, 0x40000000  # sched.h
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000  # sys/mount.h
_PR_SET_PDEATHSIG = 1  # sys/prctl.h
NOT_STARTED = 127  # what shells return for a command that is not there


def main() -> None:
    """Enter the device described by the first argument and run the rest."""
    settings, command = json.loads(sys.argv[1]), sys.argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int, what: str) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")

    try:
        # A testbed that is killed takes its devices with it.
        check(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL), "prctl")
        if os.getppid() != settings["parent"]:
            sys.exit(NOT_STARTED)
        with open(settings["namespace"]) as file:
            check(libc.setns(file.fileno(), _CLONE_NEWNET), "setns")
        # A host name and a list of hosts of its own.
        check(libc.unshare(_CLONE_NEWNS | _CLONE_NEWUTS), "unshare")
        private = _MS_REC | _MS_PRIVATE
        check(libc.mount(b"none", b"/", None, private, None), "mount private /")
        hosts = os.fsencode(settings["hosts"])
        check(libc.mount(hosts, b"/etc/hosts", None, _MS_BIND, None), "mount /etc/hosts")
        name = settings["hostname"].encode()
        check(libc.sethostname(name, len(name)), "sethostname")
        # Last, so that the device does not pay for all this.
        for path in settings["groups"]:
            with open(path, "w") as file:
                file.write(str(os.getpid()))
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot run {command[0]!r}: {error}", file=sys.stderr)
        sys.exit(NOT_STARTED)


if __name__ == "__main__":
    main()
