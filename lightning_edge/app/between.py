"""Can two devices talk? One runs `doctor --listen`, the other `doctor --with ADDRESS`.

--with                                     --listen
comes to the fixed port               ->
<-   versions, and a second port, chosen by the system
comes to that                         ->        as gloo's connections will
<-   comes to one of the caller's, the other way round
8 MB                                  ->   how fast
"""

from __future__ import annotations

import platform
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from lightning_edge import __version__
from lightning_edge.app.cluster.wire import Wire, WireError, greet, receive_guest
from lightning_edge.app.failure import CommandError
from lightning_edge.app.findings import Finding, ok

__all__: list[str] = []

RUN = "doctor"
BYTES = 8_000_000
WAIT_S = 5.0


def versions() -> dict[str, str]:
    """What has to be alike on both."""
    import torch

    return {
        "lightning-edge": __version__,
        "torch": ".".join(torch.__version__.split("+")[0].split(".")[:2]),
        "python": ".".join(platform.python_version_tuple()[:2]),
    }


def listen(port: int, secret: str, patience_s: float) -> None:
    """Answer one device that comes.

    Raises:
        CommandError: None came, or the port is taken.
    """
    try:
        listener = socket.create_server(("", port), backlog=4)
    except OSError as error:
        text = f"port {port} cannot be listened on ({error.strerror}): --port NUMBER"
        raise CommandError(text) from None
    deadline_s = time.monotonic() + patience_s
    with listener:
        while time.monotonic() < deadline_s:
            listener.settimeout(max(0.1, deadline_s - time.monotonic()))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                break
            wire = Wire(connection)
            try:
                _answer(wire, receive_guest(wire, secret, RUN))
                return
            except WireError as error:
                print(f"{wire.peer} came: {error}")
            finally:
                wire.close()
    raise CommandError(f"no device came to port {port} within {patience_s:.0f} s")


def _answer(wire: Wire, about: dict[str, Any]) -> None:
    with socket.create_server(("", 0)) as second:
        second.settimeout(WAIT_S)
        wire.send({"versions": versions(), "port": second.getsockname()[1]})
        came = _came(second)
        back = _reach(wire.peer, int(about["port"]))
        wire.send({"came": came, "back": back})
        wire.receive(WAIT_S)  # until it is done: closing may take the last words with it
        print(f"{wire.peer} came; it shows what was found")


def _came(listener: socket.socket) -> bool:
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        return False
    connection.settimeout(WAIT_S)
    left = BYTES
    try:
        while left > 0:
            data = connection.recv(1 << 16)
            if not data:
                break
            left -= len(data)
        connection.sendall(b"!")
    except OSError:
        return False
    finally:
        connection.close()
    return left <= 0


def _reach(ip: str, port: int) -> str:
    """Empty if it can be reached, else why not."""
    try:
        socket.create_connection((ip, port), WAIT_S).close()
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return str(error.strerror)
    return ""


def look(host: str, port: int, secret: str) -> Iterator[Finding]:
    """What can be found out about the way to another device and back."""
    where = f"{host}:{port}"
    try:
        start_s = time.monotonic()
        connection = socket.create_connection((host, port), WAIT_S)
        latency_ms = 1e3 * (time.monotonic() - start_s)
    except ConnectionRefusedError:
        yield Finding(
            where,
            "problem",
            "the device is there, and nothing listens at that port or a firewall refuses",
            f"run `lightning-edge doctor --listen` there; sudo ufw allow {port}/tcp",
        )
        return
    except TimeoutError:
        yield Finding(
            where,
            "problem",
            f"no answer within {WAIT_S:.0f} s",
            "is it on, and this its address (`ip -4 addr` there)? A firewall may drop packets, and"
            " guest Wi-Fi keeps devices apart (client isolation)",
        )
        return
    except OSError as error:
        yield Finding(where, "problem", str(error.strerror or error), "give its address")
        return
    yield ok(where, f"reached in {latency_ms:.1f} ms")
    wire = Wire(connection)
    with socket.create_server(("", 0)) as second:
        thread = threading.Thread(target=_accept_one, args=(second,), daemon=True)
        thread.start()
        try:
            greet(wire, secret, RUN, {"port": second.getsockname()[1]})
            yield from _compare(wire, host)
        except WireError as error:
            yield Finding(where, "problem", str(error), "the same secret on both devices")
        finally:
            wire.close()
            second.close()
            thread.join(WAIT_S + 1)


def _accept_one(listener: socket.socket) -> None:
    listener.settimeout(WAIT_S)
    try:
        listener.accept()[0].close()
    except OSError:
        return


def _compare(wire: Wire, host: str) -> Iterator[Finding]:
    hello = wire.expect()
    mine, theirs = versions(), hello["versions"]
    different = [f"{k} {mine[k]} here, {theirs.get(k)} there" for k in mine if mine[k] != theirs[k]]
    if different:
        serious = any(not text.startswith("python") for text in different)
        state = "problem" if serious else "note"
        yield Finding("versions", state, "; ".join(different), "install the same on both")
    else:
        yield ok("versions", ", ".join(f"{key} {value}" for key, value in mine.items()))
    rate = _rate(wire.peer, int(hello["port"]))
    remedy = (
        "gloo connects through ports that the system chooses: let the two devices reach each other"
        " at all ports, such as sudo ufw allow from 192.168.1.0/24"
    )
    if isinstance(rate, str):
        yield Finding(f"any port of {host}", "problem", rate, f"there: {remedy}")
    else:
        yield ok(f"any port of {host}", f"reached; {rate:.0f} Mbit/s over {BYTES / 1e6:.0f} MB")
    answer = wire.receive(2 * WAIT_S + 1)
    wire.send({"done": True})
    back = "it said nothing more" if answer is None else str(answer["back"])
    if back:
        yield Finding("the way back", "problem", back, f"here: {remedy}")
    else:
        yield ok("the way back", "reached")


def _rate(ip: str, port: int) -> float | str:
    """Mbit/s to a port, or why it cannot be reached."""
    try:
        with socket.create_connection((ip, port), WAIT_S) as connection:
            connection.settimeout(WAIT_S)
            start_s = time.monotonic()
            connection.sendall(bytes(BYTES))
            connection.recv(1)
            return 8e-6 * BYTES / (time.monotonic() - start_s)
    except TimeoutError:
        return "no answer, or slower than 13 Mbit/s"
    except OSError as error:
        return str(error.strerror or error)
