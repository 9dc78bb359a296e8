"""Devices of one network hear of each other: each announces itself by multicast DNS (zeroconf)."""

from __future__ import annotations

import socket
from types import TracebackType

from zeroconf import InterfaceChoice, ServiceBrowser, ServiceInfo, ServiceListener, Zeroconf

from lightning_edge.app.cluster import addresses
from lightning_edge.app.cluster.meeting import Meeting, Peer
from lightning_edge.app.cluster.wire import tag
from lightning_edge.app.failure import CommandError

__all__: list[str] = []

SERVICE = "_lightning-edge._tcp.local."
ASK_MS = 2000


class Announced:
    """While this is open, others hear of this device, and the meeting of them.

    Args:
        meeting: This device's.

    Raises:
        CommandError: There is no network to announce anything in.
    """

    def __init__(self, meeting: Meeting) -> None:
        assert meeting.reception is not None
        ips = [address.ip for address in addresses.reachable(meeting.own)]
        try:
            self._zeroconf = Zeroconf(interfaces=ips or InterfaceChoice.Default)
        except OSError as error:
            raise CommandError(
                f"this device cannot announce itself on {', '.join(ips)}"
                f" ({error.strerror or error}): use cluster=static cluster.host=ADDRESS"
            ) from None
        settings = meeting.settings
        mine = tag(settings.secret, settings.run)
        # The key in front keeps two devices of one name apart.
        self._info = ServiceInfo(
            SERVICE,
            f"{meeting.key}.{SERVICE}",
            addresses=[socket.inet_aton(ip) for ip in ips],
            port=meeting.reception.port,
            properties={"run": mine, "key": meeting.key, "name": settings.name},
            server=f"{meeting.key}.local.",
        )
        self._zeroconf.register_service(self._info, strict=False)
        self._browser = ServiceBrowser(self._zeroconf, SERVICE, listener=_Listener(meeting, mine))

    def __enter__(self) -> Announced:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._browser.cancel()
        self._zeroconf.close()


class _Listener(ServiceListener):
    """Tells the meeting of devices of the same run, as often as they are heard of."""

    def __init__(self, meeting: Meeting, run: str) -> None:
        self._meeting, self._run = meeting, run

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        info = zc.get_service_info(type_, name, ASK_MS)
        if info is None:
            return
        said = {
            key.decode(errors="replace"): (value or b"").decode(errors="replace")
            for key, value in info.properties.items()
        }
        if said.get("run") != self._run or not said.get("key") or info.port is None:
            return
        ips = tuple(info.parsed_addresses())
        self._meeting.hear_of(Peer(said["key"], said.get("name", "?"), ips, info.port))

    update_service = add_service

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self._meeting.peers.pop(name.partition(".")[0], None)
