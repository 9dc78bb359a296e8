"""How two devices talk before they train together: JSON lines, and who knows the secret.

    guest                                       host
    {run, nonce: g}                     ->
                                        <-      {nonce: h, proof: HMAC(secret, host g h)}
    {proof: HMAC(secret, guest g h), ...} ->
                                        <-      {here: ...} again and again
                                        <-      {start: ...}, {moved: ...} or {refused: ...}

Both prove that they know the secret without showing it. What follows is neither encrypted nor
signed: it keeps apart runs that share a network, and is no defence against who can change traffic.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import socket
import time
from typing import Any

__all__: list[str] = []

PROTOCOL = 1
LONGEST = 1 << 16  # bytes of a message
HELLO_S = 5.0  # for each message of the greeting


class WireError(Exception):
    """The other side is gone, silent, or speaks something else; the message says which."""


class Wire:
    """One connection that carries messages.

    Args:
        connection: Is closed by `close`.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = b""
        self.peer: str = connection.getpeername()[0]
        self.own: str = connection.getsockname()[0]

    def send(self, message: dict[str, Any]) -> None:
        """Send one message.

        Raises:
            WireError: It cannot be.
        """
        self._socket.settimeout(HELLO_S)
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise WireError(f"the connection broke ({error.strerror or error})") from None

    def receive(self, patience_s: float) -> dict[str, Any] | None:
        """The next message; None if there is none within `patience_s`.

        Raises:
            WireError: There will be none.
        """
        deadline_s = time.monotonic() + patience_s
        while b"\n" not in self._buffer:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return None
            self._socket.settimeout(left_s)
            try:
                data = self._socket.recv(4096)
            except TimeoutError:
                return None
            except OSError as error:
                raise WireError(f"the connection broke ({error.strerror or error})") from None
            if not data:
                raise WireError("it closed the connection")
            self._buffer += data
            if len(self._buffer) > LONGEST:
                raise WireError("it sent too long a message")
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message = _printable(json.loads(line))
        except (ValueError, RecursionError):
            raise WireError("it speaks something else") from None
        if not isinstance(message, dict):
            raise WireError("it speaks something else")
        return message

    def expect(self) -> dict[str, Any]:
        """The next message of a greeting.

        Raises:
            WireError: There is none.
        """
        message = self.receive(HELLO_S)
        if message is None:
            raise WireError(f"it said nothing for {HELLO_S:.0f} s")
        return message

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


def tag(secret: str, run: str) -> str:
    """What devices of one run announce: it tells neither the name nor the secret."""
    return proof(secret, "run", run, "")[:16]


def proof(secret: str, role: str, first: str, second: str) -> str:
    """What only who knows the secret can say."""
    text = json.dumps([PROTOCOL, role, first, second])
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def _same(said: object, expected: str) -> bool:
    return isinstance(said, str) and hmac.compare_digest(said.encode(), expected.encode())


def _printable(value: Any) -> Any:
    """What a stranger says without what would confuse a terminal, or could not be written."""
    if isinstance(value, str):
        return "".join(c if c.isprintable() else "?" for c in value)
    if isinstance(value, list):
        return [_printable(item) for item in value]
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    return value


def greet(wire: Wire, secret: str, run: str, about: dict[str, Any]) -> None:
    """The guest's part of the greeting.

    Args:
        wire: To the host.
        secret: Shared by the devices of a pool.
        run: The run's name.
        about: What to tell the host of this device.

    Raises:
        WireError: The host is another run's, or does not know the secret.
    """
    nonce = secrets.token_hex(16)
    wire.send({"run": tag(secret, run), "nonce": nonce})
    answer = wire.expect()
    if "refused" in answer:
        raise WireError(str(answer["refused"]))
    theirs = str(answer.get("nonce", ""))
    expected = proof(secret, "host", nonce, theirs)
    if not _same(answer.get("proof"), expected):
        raise WireError("it does not know this device's secret (LIGHTNING_EDGE_SECRET)")
    wire.send({"proof": proof(secret, "guest", nonce, theirs), "about": about})


def receive_guest(wire: Wire, secret: str, run: str) -> dict[str, Any]:
    """The host's part of the greeting; returns what the guest tells about itself.

    Raises:
        WireError: It is no guest of this run.
    """
    hello = wire.expect()
    if not _same(hello.get("run"), tag(secret, run)):
        text = "another run: run.name or the secret (LIGHTNING_EDGE_SECRET) differs from the host's"
        wire.send({"refused": text})
        raise WireError("it belongs to another run (run.name), or has another secret")
    nonce, theirs = secrets.token_hex(16), str(hello.get("nonce", ""))
    wire.send({"nonce": nonce, "proof": proof(secret, "host", theirs, nonce)})
    answer = wire.expect()
    expected = proof(secret, "guest", theirs, nonce)
    if not _same(answer.get("proof"), expected):
        raise WireError("it does not know the secret")
    about = answer.get("about")
    return dict(about) if isinstance(about, dict) else {}
