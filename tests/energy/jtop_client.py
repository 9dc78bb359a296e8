"""A faithful fake of jtop's client, as far as it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_edge.energy import HostEnv
from tests.energy.trees import Clock, faked_host


class FakeModel:
    """jtop's nvpmodel: setting is asynchronous, and shown by `name` later."""

    def __init__(self, models: list[str], now: str) -> None:
        self.models, self.name, self.refuses = models, now, ""

    def is_running(self) -> bool:
        return False


class FakeClient:
    """The client as far as it is used, with its habits: values never age, an error is kept."""

    board: dict[str, dict[str, Any]] = {}
    gives_values = True

    def __init__(self, interval: float) -> None:
        self.observers: list[Any] = []
        self.error: Exception | None = None
        self.closed = False
        self.power: dict[str, Any] = {}
        self.model = FakeModel(["15W", "25W"], "25W")

    def attach(self, observer: Any) -> None:
        self.observers.append(observer)

    def detach(self, observer: Any) -> None:
        self.observers.remove(observer)

    def start(self) -> None:
        if self.gives_values:
            self.update(self.board)

    def update(self, rails: dict[str, Any]) -> None:
        rails = {name: dict(rail) for name, rail in rails.items()}
        for name in ("VIN", "POM_5V_IN", "VDD_IN"):
            if name in rails:
                total = rails.pop(name) | {"name": name}
                break
        else:
            total = {"power": sum(rail["power"] for rail in rails.values()), "avg": 0}
        self.power = {"tot": total, "rail": rails}
        for observer in self.observers:
            observer(self)

    def ok(self, spin: bool = False) -> bool:
        if self.error is not None:
            raise self.error
        return True

    @property
    def nvpmodel(self) -> FakeModel:
        return self.model

    @nvpmodel.setter
    def nvpmodel(self, name: str) -> None:
        if name != self.model.refuses:
            self.model.name = name

    def close(self) -> None:
        self.closed = True


class FakeJtop:
    class JtopException(Exception):
        pass

    def __init__(self, rails: dict[str, int]) -> None:
        self.client = FakeClient(0.1)
        self.client.board = {name: {"power": power} for name, power in rails.items()}

    def jtop(self, interval: float) -> FakeClient:
        return self.client


def host_with(root: Path, clock: Clock, fake: FakeJtop) -> HostEnv:
    """A faked machine with this jtop."""
    base = faked_host(root, clock)
    return HostEnv(root, {}, base.run, clock, base.nvml, lambda: fake, "faked")
