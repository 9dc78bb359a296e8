"""A parameter keeps what users have put on it, whoever takes its place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_edge.replicate.placeholder import fake_mode, like, materialize, placeholder_like


def test_attributes_and_hooks_survive_a_placeholder() -> None:
    first = nn.Parameter(torch.ones(3))
    first.no_decay = True  # type: ignore[attr-defined]
    seen: list[Tensor] = []
    first.register_hook(lambda gradient: gradient * 2)
    first.register_post_accumulate_grad_hook(seen.append)  # type: ignore[no-untyped-call]

    away = placeholder_like(first, fake_mode())
    assert away.no_decay
    assert not away._backward_hooks
    with torch.no_grad():
        back = materialize(away, torch.device("cpu")).fill_(1)
    assert back.no_decay
    assert set(vars(back)) == set(vars(first))
    back.sum().backward()
    assert torch.equal(back.grad, torch.full((3,), 2.0))
    assert seen == [back]


def test_a_new_parameter_takes_the_place_of_a_placeholder() -> None:
    away = placeholder_like(nn.Parameter(torch.ones(3), requires_grad=False), fake_mode())
    away.group = "b"  # type: ignore[attr-defined]
    new = like(nn.Parameter(torch.zeros(3), requires_grad=False), away)
    assert new.group == "b"
    assert not hasattr(new, "fake_mode")
