"""The critical layers are those that the stated rule says, or the user."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from es2.errors import Es2Error
from es2.separation.layers import LayerRow, check_layers, choose, parse_layers, survey
from es2.separation.probe import ClassStates


def rows(*accuracies: float) -> list[LayerRow]:
    return [
        LayerRow(layer, accuracy, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0)
        for layer, accuracy in enumerate(accuracies, 1)
    ]


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        # Nine tenths of the way from 0.5 to 1.0 is 0.95.
        ((0.5, 0.9, 0.94, 0.96, 1.0), (4, 5)),
        ((0.5, 0.95, 0.94, 0.96, 1.0), (2, 5)),
        # From 0.5 to 0.7: 0.68.
        ((0.6, 0.67, 0.69, 0.7, 0.6), (3, 5)),
        # A dip after the first does not matter.
        ((0.99, 0.6, 1.0, 1.0, 1.0), (1, 5)),
        # Two layers, even if the classes become separable at the very last.
        ((0.5, 0.5, 0.5, 0.5, 1.0), (4, 5)),
        # Nothing to tell the classes by: any layer is as good.
        ((0.5, 0.5, 0.5), (1, 3)),
    ],
)
def test_emergence_is_the_first_layer_nine_tenths_of_the_way_and_terminal_the_last(
    accuracies: tuple[float, ...], expected: tuple[int, int]
) -> None:
    chosen = choose(rows(*accuracies))
    assert chosen.layers == expected
    assert f"layer {expected[0]}" in chosen.why and f"layer {expected[1]}" in chosen.why
    record = chosen.record()
    assert (record["emergence"], record["terminal"]) == expected
    assert record["layers"] == list(expected) and record["why"] == chosen.why


@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=40))
def test_there_are_always_two_layers_in_order(accuracies: list[float]) -> None:
    emergence, terminal = choose(rows(*accuracies)).layers
    assert 1 <= emergence < terminal == len(accuracies)


def states(seed: int) -> ClassStates:
    """Layer 1 is noise; from layer 2 on the classes lie 2 layers' numbers apart in one dimension."""
    random = torch.Generator().manual_seed(seed)

    def group(count: int, side: float) -> Tensor:
        noise = 0.3 * torch.randn(count, 4, 6, generator=random)
        for layer in (2, 3, 4):
            noise[:, layer - 1, 0] += side * layer
        return noise

    return ClassStates(group(40, 1), group(50, -1), group(30, 1), group(20, -1))


def test_the_survey_measures_every_layer() -> None:
    found = survey(states(0))
    assert [row.layer for row in found] == [1, 2, 3, 4]
    assert found[0].accuracy < 0.7
    for row in found[1:]:
        assert row.accuracy == 1.0
        assert row.distance == pytest.approx(2 * row.layer, rel=0.1)
        assert row.separation == pytest.approx(row.distance / row.spread)
        # Half of the way between the classes, in units of the spread.
        assert row.margin == pytest.approx(row.layer / row.spread, rel=0.1)
        assert row.norm == pytest.approx(row.layer, rel=0.1)
        assert row.cosine < -0.7
    assert choose(found).layers == (2, 4)
    assert survey(states(0)) == found


def test_layers_are_read_in_order_each_once() -> None:
    assert parse_layers("29,15") == (15, 29)
    assert parse_layers(" 3, 3 ,1") == (1, 3)
    assert parse_layers("7") == (7,)


@pytest.mark.parametrize("text", ["x", "", "1,,2", "1;2", "1.5", "15-29"])
def test_layers_that_are_no_numbers_are_refused(text: str) -> None:
    with pytest.raises(Es2Error, match="such as 15,30"):
        parse_layers(text)


@pytest.mark.parametrize(("layers", "wrong"), [((0, 2), "0"), ((1, 5), "5"), ((-1,), "-1")])
def test_layers_out_of_range_are_refused(layers: tuple[int, ...], wrong: str) -> None:
    with pytest.raises(Es2Error, match=f"layer {wrong} is out of range.* 1 to 4"):
        check_layers(layers, 4)


def test_the_first_and_the_last_layer_are_in_range_and_none_is_not_enough() -> None:
    check_layers((1, 4), 4)
    with pytest.raises(Es2Error, match="no critical layers"):
        check_layers((), 4)
