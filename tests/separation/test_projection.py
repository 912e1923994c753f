"""The figure's plane: along the difference of the means, and across it."""

from __future__ import annotations

import torch

from es2.separation.projection import project


def clouds() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    harmful = 0.1 * torch.randn(30, 8)
    harmless = 0.1 * torch.randn(20, 8)
    others = 0.1 * torch.randn(10, 8)
    for states in (harmful, harmless, others):
        states[:, 3] += torch.linspace(-2, 2, len(states))  # spread across the difference
    harmful[:, 0] += 6
    others[:, 0] += 3
    return harmful, harmless, others


def test_classes_lie_opposite_each_other_along_the_first_axis() -> None:
    harmful, harmless, others = project(*clouds(), unit=2.0)
    assert abs(harmful[:, 0].mean().item() - 1.5) < 0.05
    assert abs(harmless[:, 0].mean().item() + 1.5) < 0.05
    assert abs(others[:, 0].mean().item()) < 0.1


def test_the_second_axis_is_the_greatest_spread_left() -> None:
    _, harmless, _ = project(*clouds(), unit=1.0)
    assert 1.7 < harmless[:, 1].max().item() < 2.3


def test_distances_in_the_plane_are_never_longer_than_in_space() -> None:
    groups = clouds()
    flat = torch.cat(project(*groups, unit=1.0))
    whole = torch.cat(groups)
    assert (torch.cdist(flat, flat) <= torch.cdist(whole, whole) + 1e-2).all()


def test_the_same_states_are_drawn_the_same() -> None:
    for one, two in zip(project(*clouds(), unit=1.0), project(*clouds(), unit=1.0), strict=True):
        assert torch.equal(one, two)
