"""The host's side of a meeting: a port that other devices come to."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

from lightning_edge.app.cluster.wire import Wire, WireError, receive_guest

__all__: list[str] = []

MOST = 1 << 16  # devices, processes
AT_ONCE = 32  # connections that are being greeted
SILENT_S = 20.0  # until a guest that says nothing counts as gone


@dataclass
class Guest:
    """A device that has come.

    Attributes:
        about: What it says of itself: name, processes, devices, version.
        wire: The connection to it.
        heard_s: When it was last heard of.
    """

    about: dict[str, Any]
    wire: Wire
    heard_s: float

    @property
    def name(self) -> str:
        """What it is called."""
        return str(self.about.get("name", "?"))


def _checked(about: dict[str, Any]) -> dict[str, Any]:
    """What a guest says of itself, or the invitation that it brings."""
    if "invite" in about:
        return about
    whole = (about.get("devices"), about.get("processes"), about.get("rank") or 0)
    texts = (about.get("name"), about.get("version"))
    if not (
        all(type(number) is int and 0 <= number < MOST for number in whole)
        and all(isinstance(text, str) for text in texts)
        and isinstance(about.get("peers", []), list)
    ):
        raise WireError("it speaks something else")
    return about


class Reception:
    """Greets who comes, in threads of its own.

    Args:
        port: To listen on; any free one if it is taken and `fallback` is set.
        secret: Shared by the devices of a pool.
        run: The run's name.
        fallback: Whether another port does as well.

    Raises:
        OSError: The port is taken.
    """

    def __init__(self, port: int, secret: str, run: str, fallback: bool) -> None:
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._listener.bind(("", port))
        except OSError:
            if not fallback:
                self._listener.close()
                raise
            self._listener.bind(("", 0))
        self._listener.listen(AT_ONCE)
        self.port: int = self._listener.getsockname()[1]
        self._secret, self._run = secret, run
        self._lock = threading.Lock()
        self._guests: list[Guest] = []
        self._invitations: list[dict[str, Any]] = []
        self.turned_away: list[str] = []
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._start(self._accept)

    def guests(self) -> list[Guest]:
        """Who is here; whoever left is dropped."""
        with self._lock:
            present = [guest for guest in self._guests if self._is_here(guest)]
            self._guests = present
            return list(present)

    def invitations(self) -> list[dict[str, Any]]:
        """Hosts that asked this device to come to them."""
        with self._lock:
            found, self._invitations = self._invitations, []
            return found

    def tell(self, message: dict[str, Any], guests: list[Guest] | None = None) -> None:
        """Send a message to guests; who cannot be reached is dropped."""
        for guest in self.guests() if guests is None else guests:
            with contextlib.suppress(WireError):
                guest.wire.send(message)

    def dismiss(self, message: dict[str, Any], guests: list[Guest] | None = None) -> None:
        """Send guests a last message and away."""
        leaving = self.guests() if guests is None else guests
        self.tell(message, leaving)
        with self._lock:
            self._guests = [guest for guest in self._guests if guest not in leaving]
        for guest in leaving:
            guest.wire.close()

    def close(self) -> None:
        """Greet nobody any more."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for guest in self._guests:
                guest.wire.close()
        for thread in self._threads:
            thread.join(10.0)

    def _start(self, target: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads = [one for one in self._threads if one.is_alive()]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if len(self._threads) > AT_ONCE:
                connection.close()
                continue
            self._start(self._greet, connection)

    def _greet(self, connection: socket.socket) -> None:
        try:
            wire = Wire(connection)
        except OSError:
            connection.close()
            return
        try:
            about = _checked(receive_guest(wire, self._secret, self._run))
        except WireError as error:
            self.turned_away.append(f"{wire.peer}: {error}")
            wire.close()
            return
        if "invite" in about:
            with self._lock:
                self._invitations.append(about)
            wire.close()
            return
        with self._lock:
            self._guests.append(Guest(about, wire, time.monotonic()))

    @staticmethod
    def _is_here(guest: Guest) -> bool:
        try:
            while (message := guest.wire.receive(0.0005)) is not None:
                guest.heard_s = time.monotonic()
                if isinstance(message.get("peers"), list):
                    guest.about["peers"] = message["peers"]
        except WireError:
            guest.wire.close()
            return False
        if time.monotonic() - guest.heard_s > SILENT_S:
            guest.wire.close()
            return False
        return True
