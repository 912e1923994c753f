"""Distances and geometry against double loops and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from es2.separation.distance import (
    Form,
    batch_distance,
    centre_distance,
    class_distance,
    distance_term,
    geometry,
    pair_distance,
)


def slowly(harmful: Tensor, harmless: Tensor) -> float:
    """The mean over all pairs, by a double loop in double precision."""
    total = 0.0
    for one in harmful.double():
        for other in harmless.double():
            total += float((one - other).square().sum().sqrt())
    return total / (len(harmful) * len(harmless))


@given(n=st.integers(1, 9), m=st.integers(1, 9), d=st.integers(1, 20), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_pair_distance_is_the_mean_over_all_pairs(n: int, m: int, d: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    harmful = torch.randn(n, d, generator=random)
    harmless = torch.randn(m, d, generator=random) + 1
    assert pair_distance(harmful, harmless).item() == pytest.approx(
        slowly(harmful, harmless), rel=1e-5
    )


@pytest.mark.parametrize("size", [8, 40])
def test_pair_distance_is_exact_far_from_the_origin(size: int) -> None:
    """Residual streams have a few huge entries in common."""
    torch.manual_seed(0)
    common = torch.zeros(64)
    common[3] = 5000.0
    harmful, harmless = common + torch.randn(size, 64), common + torch.randn(size, 64)
    assert pair_distance(harmful, harmless).item() == pytest.approx(
        slowly(harmful, harmless), rel=1e-4
    )


def test_pair_distance_of_bfloat16_states_is_taken_in_float32() -> None:
    states = torch.randn(4, 32).to(torch.bfloat16)
    other = torch.randn(5, 32).to(torch.bfloat16)
    found = pair_distance(states, other)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(slowly(states, other), rel=1e-5)


@given(n=st.integers(1, 9), m=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_centres_are_never_further_apart_than_pairs(n: int, m: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    harmful = torch.randn(n, 6, generator=random)
    harmless = torch.randn(m, 6, generator=random)
    centres = centre_distance(harmful, harmless).item()
    assert centres <= pair_distance(harmful, harmless).item() + 1e-5
    expected = (harmful.sum(0) / n - harmless.sum(0) / m).square().sum().sqrt()
    assert centres == pytest.approx(expected.item(), rel=1e-5)


def test_the_gradient_of_the_centres_distance_moves_each_class_as_a_whole() -> None:
    torch.manual_seed(0)
    harmful = torch.randn(5, 8, requires_grad=True)
    harmless = torch.randn(4, 8)
    (gradient,) = torch.autograd.grad(centre_distance(harmful, harmless), harmful)
    apart = harmful.detach().mean(0) - harmless.mean(0)
    torch.testing.assert_close(gradient, (apart / apart.norm() / 5).expand(5, 8))


def test_the_gradient_of_the_distance_is_the_mean_of_unit_vectors() -> None:
    torch.manual_seed(0)
    harmful = torch.randn(3, 8, requires_grad=True)
    harmless = torch.randn(4, 8)
    (gradient,) = torch.autograd.grad(pair_distance(harmful, harmless), harmful)
    apart = harmful.detach()[:, None] - harmless[None]
    unit = apart / apart.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(gradient, unit.sum(1) / 12)


def test_states_that_coincide_have_a_finite_gradient() -> None:
    states = torch.ones(2, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(pair_distance(states, torch.ones(2, 4)), states)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("form", "cap", "distance", "term"),
    [
        ("raw", None, 7.0, -7.0),
        ("relative", None, 7.0, -3.5),
        ("raw", 4.0, 7.0, -7.0),
        ("raw", 3.0, 7.0, -6.0),
        ("relative", 4.0, 7.0, -3.5),
        ("centre", None, 7.0, -3.5),
        ("centre", 3.0, 7.0, -3.0),
        ("relative", 3.0, 7.0, -3.0),
    ],
)
def test_the_term_of_each_form_with_a_base_distance_of_two(
    form: Form, cap: float | None, distance: float, term: float
) -> None:
    assert distance_term(torch.tensor(distance), 2.0, form, cap).item() == pytest.approx(term)


@pytest.mark.parametrize("form", ["raw", "relative", "centre"])
@pytest.mark.parametrize(("distance", "pushes"), [(5.9, True), (6.1, False)])
def test_nothing_pushes_beyond_the_cap(form: Form, distance: float, pushes: bool) -> None:
    found = torch.tensor(distance, requires_grad=True)
    distance_term(found, 2.0, form, 3.0).backward()
    expected = (1.0 if form == "raw" else 0.5) if pushes else 0.0
    assert found.grad is not None
    assert found.grad.item() == pytest.approx(-expected)


@pytest.mark.parametrize(
    ("form", "measure"),
    [("raw", pair_distance), ("relative", pair_distance), ("centre", centre_distance)],
)
def test_a_form_measures_pairs_or_centres(form: Form, measure: Callable[..., Tensor]) -> None:
    harmful, harmless = torch.randn(5, 4), torch.randn(3, 4)
    assert torch.equal(class_distance(harmful, harmless, form), measure(harmful, harmless))


def test_a_model_that_has_not_moved_is_at_its_batches_distance_on_average() -> None:
    random = torch.Generator().manual_seed(0)
    harmful = torch.randn(400, 16, generator=random)
    harmless = torch.randn(400, 16, generator=random)
    base = batch_distance(harmful, harmless, "centre", 8)
    drawn = [torch.randperm(400, generator=random)[:8] for _ in range(800)]
    batches = zip(drawn[::2], drawn[1::2], strict=True)
    found = [float(centre_distance(harmful[one], harmless[two])) for one, two in batches]
    assert base == pytest.approx(sum(found) / len(found), rel=0.05)
    # Here the classes are the same: nearly all of it is the spread within them.
    assert base > 4 * float(centre_distance(harmful, harmless))


def test_fewer_prompts_than_a_batch_are_one_batch() -> None:
    harmful, harmless = torch.randn(3, 4), torch.randn(9, 4)
    expected = float(centre_distance(harmful, harmless))
    assert batch_distance(harmful, harmless, "centre", 8) == pytest.approx(expected)


def test_geometry_of_two_known_clouds() -> None:
    # Each class: two points at distance 1 from a mean that is 3, or 4, from the origin.
    harmful = torch.tensor([[3.0, 0.0, 1.0], [3.0, 0.0, -1.0]])
    harmless = torch.tensor([[0.0, 4.0, 1.0], [0.0, 4.0, -1.0]])
    shape = geometry(harmful, harmless)
    assert shape.distance == pytest.approx((5 + math.sqrt(29)) / 2)
    assert shape.spread == pytest.approx(1.0)
    assert shape.norm == pytest.approx((math.sqrt(10) + math.sqrt(17)) / 2)
    # Two pairs agree in the third coordinate, two are opposite there.
    assert shape.cosine == pytest.approx(0.0, abs=1e-6)
    assert shape.separation == pytest.approx(shape.distance)


def test_the_cosine_is_the_mean_over_pairs() -> None:
    harmful = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    harmless = torch.tensor([[3.0, 0.0]])
    assert geometry(harmful, harmless).cosine == pytest.approx(0.5)


@given(scale=st.floats(0.1, 100), seed=st.integers(0, 20))
@settings(max_examples=20, deadline=None)
def test_inflating_norms_moves_the_distance_but_not_the_separation(scale: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    harmful = torch.randn(6, 8, generator=random) + 2
    harmless = torch.randn(5, 8, generator=random)
    plain, inflated = geometry(harmful, harmless), geometry(scale * harmful, scale * harmless)
    assert inflated.distance == pytest.approx(scale * plain.distance, rel=1e-4)
    assert inflated.separation == pytest.approx(plain.separation, rel=1e-4)
    assert inflated.cosine == pytest.approx(plain.cosine, abs=1e-5)
