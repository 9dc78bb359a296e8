"""Give every device its parameters of a model that none of them has whole.

    built in configure_model   the tape says how each weight comes about     (replicate.deferred)
    in a checkpoint            rank 0 has the file and sends what is asked for, tensor by tensor
    trained in this process    whoever held it in the run before sends it

Whatever the origin, a device never has more than its share and the one tensor under way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_edge.replicate import placeholder
from lightning_edge.replicate.deferred import Deferred
from lightning_edge.replicate.placeholder import (
    is_fake,
    like,
    materialize,
    parameter_sites,
    placeholder_like,
    swap_parameters,
)
from lightning_edge.replicate.state import (
    Exchange,
    checksum,
    hold_together,
    spread_initial,
    whole_again,
)

__all__: list[str] = []

Holders = Mapping[str, tuple[int, ...]]

# modules that a run left spread over the devices, and who holds what of them
_SPREAD: WeakKeyDictionary[nn.Module, Holders] = WeakKeyDictionary()


@dataclass
class Origin:
    """Where the values of a model come from.

    Attributes:
        deferred: How its weights were to be made.
        own: Parameters that were made outside `configure_model`, by each rank for itself.
        state: A checkpoint's `state_dict`, with stand-ins where only rank 0 has the file.
    """

    deferred: Deferred | None = None
    own: frozenset[nn.Parameter] = frozenset()
    state: Mapping[str, Tensor] | None = None


def is_spread(module: nn.Module) -> bool:
    """Whether a run has left this module without the parts that other devices hold."""
    return module in _SPREAD


def hand_back(
    module: nn.Module, holders: Holders, exchange: Exchange, device: torch.device, in_parts: bool
) -> None:
    """Give every rank the whole module at the end of a run; only buffers if it stays in parts."""
    if in_parts:
        _SPREAD[module] = holders  # for the next run
        names = _unlike_buffers(module, exchange)
    else:
        names = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    fakes = {n: parameter for n, parameter in module.named_parameters() if is_fake(parameter)}

    def real(name: str) -> None:
        fake = fakes.get(name)
        if fake is not None:
            new = materialize(fake, device)
            swap_parameters(module, lambda _, p: new if p is fake else None)

    whole_again(module, names, holders, exchange, real)


def _unlike_buffers(module: nn.Module, exchange: Exchange) -> list[str]:
    own = {n: None if is_fake(b) else checksum(b) for n, b in module.named_buffers()}
    everyone = exchange.all_gather(own)
    return [name for name, number in own.items() if any(o[name] != number for o in everyone)]


def place(
    module: nn.Module,
    holders: Holders,
    exchange: Exchange,
    mode: FakeTensorMode,
    device: torch.device,
    origin: Origin,
) -> bool:
    """Make this device's parameters real and all others placeholders; collective.

    Args:
        module: Whole and real on every rank, or not real anywhere.
        holders: By name of a parameter or buffer the ranks that hold it.
        exchange: Connects the ranks.
        mode: For the placeholders.
        device: Where this rank computes.
        origin: Where the values come from if the module is not whole.

    Returns:
        Whether the module is larger than this rank's memory may be: it is never made whole.
    """
    before = _SPREAD.pop(module, None)
    in_parts = before is not None or origin.deferred is not None
    if in_parts:
        _Placing(module, holders, exchange, device).run(before, origin)
    else:
        spread_initial(module, holders, exchange)
    swap_parameters(
        module,
        lambda name, p: None if exchange.rank in holders[name] else placeholder_like(p, mode),
    )
    if in_parts:
        hold_together(module, holders, exchange)
    return in_parts


class _Placing:
    def __init__(
        self, module: nn.Module, holders: Holders, exchange: Exchange, device: torch.device
    ) -> None:
        self._module, self._holders, self._exchange = module, holders, exchange
        self._rank, self._device = exchange.rank, device
        self._parameters = dict(module.named_parameters())
        self._sites: dict[int, list[tuple[nn.Module, str]]] = {}
        for _, owner, key, parameter in parameter_sites(module):
            self._sites.setdefault(id(parameter), []).append((owner, key))

    def run(self, before: Holders | None, origin: Origin) -> None:
        state = origin.state or {}
        self._from_file(state)
        rest = [name for name in self._parameters if name not in state]
        if before is not None:
            self._from_holders(before, rest)
        elif origin.deferred is not None:
            for name in rest:
                self._from_tape(name, origin.deferred)
            origin.deferred.forget()
            spread_initial(self._module, self._holders, self._exchange, self._settled(origin))

    def _settled(self, origin: Origin) -> set[str]:
        """What is not as each rank's own random numbers have made it."""
        small, own = placeholder.SMALL_ENTRIES, origin.own
        return {
            name
            for name, parameter in self._parameters.items()
            if name in (origin.state or ()) or (parameter.numel() > small and parameter not in own)
        }

    def _from_file(self, state: Mapping[str, Tensor]) -> None:
        mine = [name for name in self._parameters if name in state and self._holds(name)]
        far = [name for name in mine if is_fake(state[name])]
        for rank, names in enumerate(self._exchange.all_gather(far)):
            for name in names:
                if self._rank == 0:
                    self._exchange.send_tensor(rank, state[name])
                elif self._rank == rank:
                    self._set(name, self._exchange.receive_tensor(0))
        for name in mine:
            if not is_fake(state[name]):
                self._set(name, state[name])

    def _from_holders(self, before: Holders, names: list[str]) -> None:
        for name in names:
            first = before[name][0]
            for rank in self._holders[name]:
                if rank in before[name]:
                    continue
                if self._rank == first:
                    self._exchange.send_tensor(rank, self._parameters[name].detach())
                elif self._rank == rank:
                    self._set(name, self._exchange.receive_tensor(first))

    def _from_tape(self, name: str, deferred: Deferred) -> None:
        parameter = self._parameters[name]
        if self._holds(name):
            if is_fake(parameter):
                self._put(parameter, deferred.materialize(parameter).to(self._device))
            else:  # read from a file, perhaps, whose pages must not stay in use
                self._set(name, parameter.detach())

    def _holds(self, name: str) -> bool:
        return self._rank in self._holders[name]

    def _set(self, name: str, value: Tensor) -> None:
        parameter = self._parameters[name]
        own = torch.empty(tuple(parameter.shape), dtype=parameter.dtype, device=self._device)
        self._put(parameter, own.copy_(value))

    def _put(self, parameter: nn.Parameter, value: Tensor) -> None:
        new = like(nn.Parameter(value, requires_grad=parameter.requires_grad), parameter)
        for owner, key in self._sites[id(parameter)]:
            setattr(owner, key, new)
