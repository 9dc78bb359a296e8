"""The links of a profile as the simulator takes messages over them.

A message passes four places, each of which serves one message after the other:

    sender's output --> the pair's own path --> shared media --> receiver's input --> + latency
     fastest link of     seconds_per_byte        one message      fastest link to
     the sender          of the link             at a time        the receiver

So a fast device can feed two slow ones at once, two senders share a receiver's connection, and both
directions of a half-duplex link take turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from lightning_edge.errors import PlanError
from lightning_edge.plan.profile import Profile

__all__: list[str] = []


class NoLinkError(PlanError):
    """Two devices have to talk and the profile has no link between them."""


class Path(NamedTuple):
    """From one device to another."""

    seconds_per_byte: float
    latency_s: float
    media: tuple[int, ...]
    output_s_per_byte: float
    input_s_per_byte: float


class Ring(NamedTuple):
    """What an all-reduce over some devices costs.

    Attributes:
        seconds_per_byte: Of the tensor that is summed.
        latency_s: Once per sum.
        members: Ranks, ascending.
        media: Indices of the shared media that its messages pass.
    """

    seconds_per_byte: float
    latency_s: float
    members: tuple[int, ...]
    media: tuple[int, ...]


class Network:
    """All paths between the devices of a profile."""

    def __init__(self, profile: Profile) -> None:
        self.size = size = len(profile.devices)
        self._names = profile.names
        ranks = {name: rank for rank, name in enumerate(profile.names)}
        media = sorted({medium for link in profile.links for medium in link.media})
        self.media = tuple(media)
        output, inputs = [float("inf")] * size, [float("inf")] * size
        for link in profile.links:
            source, target = ranks[link.source], ranks[link.target]
            output[source] = min(output[source], link.seconds_per_byte)
            inputs[target] = min(inputs[target], link.seconds_per_byte)
        self.paths: list[Path | None] = [None] * (size * size)
        for link in profile.links:
            source, target = ranks[link.source], ranks[link.target]
            self.paths[source * size + target] = Path(
                link.seconds_per_byte,
                link.latency_s,
                tuple(media.index(medium) for medium in link.media),
                output[source],
                inputs[target],
            )
        self._rings: dict[tuple[int, ...], Ring] = {}

    def path(self, source: int, target: int) -> Path:
        """The path from one rank to another.

        Raises:
            NoLinkError: If there is none.
        """
        found = self.paths[source * self.size + target]
        if found is None:
            a, b = self._names[source], self._names[target]
            raise NoLinkError(
                f"{a} has to send to {b}, and the profile has no link between them: add"
                f" {{from: {a}, to: {b}, ...}} to links, or keep them from being neighbours"
            )
        return found

    def busy_s(
        self, pair_bytes: Mapping[int, float], sums: Iterable[tuple[Ring, float]] = ()
    ) -> float:
        """Return how long the busiest place of the network needs for a step's messages.

        Args:
            pair_bytes: `source * size + target` -> bytes.
            sums: Bytes of tensors that are summed.
        """
        output, inputs = [0.0] * self.size, [0.0] * self.size
        media = [0.0] * len(self.media)
        most = 0.0
        for pair, amount in pair_bytes.items():
            path = self.paths[pair]
            assert path is not None
            source, target = divmod(pair, self.size)
            most = max(most, amount * path.seconds_per_byte)
            output[source] += amount * path.output_s_per_byte
            inputs[target] += amount * path.input_s_per_byte
            for medium in path.media:
                media[medium] += amount * path.seconds_per_byte
        for ring, amount in sums:
            for rank in ring.members:
                output[rank] += amount * ring.seconds_per_byte
            for medium in ring.media:
                media[medium] += amount * ring.seconds_per_byte
        return max([most, *output, *inputs, *media])

    def ring(self, ranks: Sequence[int]) -> Ring:
        """The cost of summing a tensor over ranks, as gloo does.

        Each of n devices sends 2 (n - 1) pieces of 1/n of the tensor to the next one; the slowest
        link, or the medium that most of them share, sets the pace.
        """
        members = tuple(sorted(ranks))
        found = self._rings.get(members)
        if found is None:
            number = len(members)
            around = [self.path(rank, members[(i + 1) % number]) for i, rank in enumerate(members)]
            shared: dict[int, float] = {}
            for path in around:
                for medium in path.media:
                    shared[medium] = shared.get(medium, 0.0) + path.seconds_per_byte
            slowest = max([path.seconds_per_byte for path in around] + list(shared.values()))
            found = self._rings[members] = Ring(
                2 * (number - 1) / number * slowest,
                2 * (number - 1) * max(path.latency_s for path in around),
                members,
                tuple(shared),
            )
        return found
