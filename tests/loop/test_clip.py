from __future__ import annotations

import warnings

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision

from lightning_edge.loop import clip


def parameters(seed, dtypes=(torch.float32,) * 3, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number, dtype in enumerate(dtypes):
        p = torch.nn.Parameter(torch.zeros(3 + number, 2, dtype=dtype))
        p.grad = (torch.randn(p.shape, generator=generator) * scale).to(dtype)
        made.append(p)
    return made


def copies(params):
    made = []
    for p in params:
        copied = torch.nn.Parameter(p.detach().clone())
        copied.grad = None if p.grad is None else p.grad.clone()
        made.append(copied)
    return made


def run(devices, max_norm, wanted=None):
    """Clip on several devices, whose sums meet in the middle; returns the norms they found."""
    contributions = [torch.zeros(1, dtype=torch.float64) for _ in devices]
    for number, owned in enumerate(devices):  # first round: what each device would send

        def note(value, number=number):
            contributions[number] = value.clone()
            return value * float("nan")

        grads = [None if p.grad is None else p.grad.clone() for p, _ in owned]
        clip.clip(wanted or {p for p, _ in owned}, owned, max_norm, note)
        for (p, _), g in zip(owned, grads, strict=True):
            p.grad = g
    total = sum(contributions)
    assert total.dtype == torch.float64
    assert total.shape == (1,)
    return [
        clip.clip(wanted or {p for p, _ in owned}, owned, max_norm, lambda _: total.clone())
        for owned in devices
    ]


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 1e6])
def test_devices_together_clip_like_torch_alone(max_norm):
    whole = parameters(0)
    tied = whole[1]
    first, second = copies(whole[:2]), copies(whole[1:])
    norm = torch.nn.utils.clip_grad_norm_(whole, max_norm)
    found = run(
        [[(first[0], True), (first[1], True)], [(second[0], False), (second[1], True)]], max_norm
    )
    assert found == [pytest.approx(norm.item(), rel=1e-6)] * 2
    for part, expected in ((first, whole[:2]), (second, whole[1:])):
        for one, other in zip(part, expected, strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(first[1].grad, second[0].grad, rtol=0, atol=0)
    assert tied.grad is not None


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_spreads_as_in_torch(bad):
    whole = parameters(1)
    whole[0].grad[0, 0] = bad
    first, second = copies(whole[:1]), copies(whole[1:])
    torch.nn.utils.clip_grad_norm_(whole, 1.0)
    run([[(first[0], True)], [(p, True) for p in second]], 1.0)
    for one, other in zip(first + second, whole, strict=True):
        torch.testing.assert_close(one.grad, other.grad, equal_nan=True)


def test_large_gradients_do_not_overflow():
    params = parameters(2, scale=5e18)
    squares = sum(p.grad.double().square().sum() for p in params)
    assert squares > torch.finfo(torch.float32).max
    (norm,) = run([[(p, True) for p in params]], 1.0)
    assert norm == pytest.approx(squares.sqrt().item(), rel=1e-6)
    after = sum(p.grad.double().square().sum() for p in params).sqrt()
    assert after.item() == pytest.approx(1.0, rel=1e-5)


def test_low_precision_gradients_have_a_precise_norm():
    params = parameters(3, (torch.bfloat16, torch.float16, torch.float32))
    exact = sum(p.grad.double().square().sum() for p in params).sqrt()
    (norm,) = run([[(p, True) for p in params]], 0.5)
    assert norm == pytest.approx(exact.item(), rel=1e-6)
    assert [p.grad.dtype for p in params] == [torch.bfloat16, torch.float16, torch.float32]


def test_parameters_without_gradient_or_of_another_optimizer_are_left_alone():
    one, other, third = parameters(4)
    other.grad = None
    before = third.grad.clone()
    expected = torch.linalg.vector_norm(one.grad).item()
    (norm,) = run([[(one, True), (other, True), (third, True)]], 0.1, wanted={one, other})
    assert norm.item() == pytest.approx(expected, rel=1e-6)
    assert torch.linalg.vector_norm(one.grad).item() == pytest.approx(0.1, rel=1e-5)
    assert torch.equal(third.grad, before)
    assert other.grad is None


def test_a_device_that_owns_nothing_still_takes_part():
    calls = []

    def reduce_sum(value):
        calls.append(value.item())
        return value

    clip.clip(set(), [], 1.0, reduce_sum)
    assert calls == [0.0]


@pytest.mark.parametrize("make", [Precision, lambda: MixedPrecision("bf16-mixed", "cpu")])
def test_the_plugin_has_its_own_method_back(make):
    plugin = make()
    (p,) = parameters(5, (torch.float32,))
    optimizer = torch.optim.SGD([p], lr=0.1)
    sums = []

    def reduce_sum(value):
        sums.append(value)
        return value

    remove = clip.install(plugin, lambda: [(p, True)], reduce_sum)
    plugin.clip_gradients(optimizer, 0.5)
    assert torch.linalg.vector_norm(p.grad) == pytest.approx(0.5, rel=1e-5)
    remove()
    remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plugin.clip_gradients(optimizer, 0.25)
    assert len(sums) == 1
    assert "clip_grad_by_norm" not in vars(plugin)
    assert torch.linalg.vector_norm(p.grad) == pytest.approx(0.25, rel=1e-5)


def test_clipping_by_value_stays_local():
    plugin = Precision()
    (p,) = parameters(6, (torch.float32,))
    clip.install(plugin, lambda: [(p, True)], lambda _: pytest.fail("no sum is needed"))
    plugin.clip_gradients(torch.optim.SGD([p], lr=0.1), 0.05, gradient_clip_algorithm="value")
    assert p.grad.abs().max() <= 0.05 + 1e-9
