"""Figures show the numbers they are given and take the page's colours."""

import re
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from es2.report.figures import (
    extent,
    intervals,
    layer_curve,
    projection,
    sweep,
    trade_off,
    trailing_mean,
    training_curve,
)
from es2.report.looks import PALETTE, looks_of
from es2.report.marks import interval_mark, verdict_bar
from es2.report.standalone import size, standalone
from es2.results.rates import Rate

LINE = [(1.0, 0.5), (2.0, 0.75), (3.0, 1.0)]

MEASURED = {
    "SCAV": {"base": Rate(0.2, 0.1, 0.4, 20), "es2@1": Rate(0.8, 0.6, 0.9, 20)},
    "safe prompts declined": {"es2@1": Rate(0.1, 0.0, 0.2, 20)},
}

POINTS = {"base": (0.1, 0.2), "es2@1": (0.2, 0.8), "dpl": (0.3, 0.8)}


def drawn():
    rates = {p0: Rate(0.5, 0.3, 0.7, 20) for p0 in (0.05, 1e-3, 1e-6)}
    return {
        "layers": layer_curve({"base": LINE, "es2": LINE}, {2: "emergence"}, "<curve>"),
        "sweep": sweep({"base": rates, "es2": rates}, (1e-3,), "sweep"),
        "training": training_curve({"kl": LINE}, "training", kept=2, limit=0.8),
        "projection": projection(
            {"harmful": LINE, "harmless": LINE}, "points", (0.0, 0.0, 1.0, 1.0)
        ),
        "trade-off": trade_off(POINTS, ["base", "es2@1"], "safety against cost"),
        "intervals": intervals(MEASURED, ["base", "es2@1"], "rates"),
    }


NAMES = list(drawn())


@pytest.mark.parametrize("name", NAMES)
def test_figure_is_an_inline_element_with_a_description_and_no_outside_reference(name):
    svg = drawn()[name]
    assert re.match(r'<svg class="panel" viewBox="[^"]+" role="img" aria-label="[^"<]+">', svg)
    assert svg.endswith("</svg>")
    assert "http" not in svg and "xmlns" not in svg and "<style" not in svg


@pytest.mark.parametrize("name", NAMES)
def test_every_colour_is_a_variable_of_the_page(name):
    bare = re.sub(r"var\(--[\w-]+,#[0-9a-f]{6}\)", "", drawn()[name])
    assert re.findall(r"#[0-9a-f]{6}\b(?!-)", bare) == []


def test_ids_of_two_figures_do_not_collide():
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in drawn().values()]
    assert len(set.union(*ids)) == sum(map(len, ids))


def test_references_inside_a_figure_lead_to_its_own_ids():
    for svg in drawn().values():
        ids = set(re.findall(r'\bid="([^"]+)"', svg))
        assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg)) <= ids


def test_same_numbers_draw_the_same_figure():
    assert drawn() == drawn()


def test_chosen_layers_and_threshold_are_named_in_the_figure():
    figures = drawn()
    assert "2 emergence" in figures["layers"]
    assert "threshold 0.8" in figures["training"] and "kept: step 2" in figures["training"]


@pytest.mark.parametrize("decades, labels", [(4, 4), (6, 6), (12, 6)])
def test_powers_of_ten_on_an_axis_leave_each_other_room(decades, labels):
    rates = {10.0**-k: Rate(0.5, 0.3, 0.7, 20) for k in range(2, 2 + decades)}
    drawn = sweep({"base": rates}, (), "sweep")
    assert drawn.count(">10⁻") == labels and ">10⁻²<" in drawn


def test_every_point_of_the_trade_off_is_named():
    svg = drawn()["trade-off"]
    assert all(f">{name}<" in svg for name in ("base", "ES2, seed 1", "DPL"))


def test_every_row_and_column_of_intervals_is_named_and_rates_that_are_missing_leave_a_gap():
    svg = drawn()["intervals"]
    assert all(f">{word}<" in svg for word in ("base", "ES2, seed 1", "SCAV", "declined"))
    without = intervals({"GCG": {}, **MEASURED}, ["base", "es2@1"], "rates")
    assert size(without)[0] > size(svg)[0]


def test_intervals_grow_by_as_much_for_every_model():
    def height(count: int) -> float:
        models = [f"model_{place}" for place in range(count)]
        return size(intervals({"SCAV": dict.fromkeys(models, Rate(0.5, 0.4, 0.6, 9))}, models, ""))[
            1
        ]

    assert height(6) - height(5) == pytest.approx(height(3) - height(2), abs=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_stands_alone_as_an_image_of_the_same_proportions(name):
    svg = drawn()[name]
    root = ElementTree.fromstring(standalone(svg))
    assert standalone(Markup(svg)) == standalone(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert float(root.attrib["width"]) / float(root.attrib["height"]) == pytest.approx(
        width / height, rel=0.01
    )


def test_names_of_chosen_layers_close_together_give_way_to_their_numbers():
    line = [(float(layer), 1.0) for layer in range(1, 31)]
    svg = layer_curve({"base": line}, {28: "emergence", 30: "terminal"}, "label")
    assert ">28<" in svg and ">30<" in svg and "emergence" not in svg


def test_dollar_signs_are_not_read_as_mathematics():
    assert "$x$" in layer_curve({"base": LINE}, {2: "$x$"}, "label")


def test_interval_mark_stands_where_the_rate_is():
    mark = interval_mark(Rate(0.5, 0.25, 0.75, 9), looks_of(["base"])["base"])
    assert 'x1="25.00%" x2="75.00%"' in mark and 'x="50.00%"' in mark


def test_verdict_bar_fills_the_whole_width_in_order():
    bar = verdict_bar({"refused": 0.5, "incoherent": 0.2, "complied": 0.3})
    parts = re.findall(r'class="(\w+)" x="([\d.]+)%" width="([\d.]+)%"', bar)
    assert parts == [
        ("refused", "0.00", "50.00"),
        ("incoherent", "50.00", "20.00"),
        ("complied", "70.00", "30.00"),
    ]
    assert 'aria-label="refused 50 %, incoherent 20 %, complied 30 %"' in bar


def test_trailing_mean_is_the_mean_of_the_last_four():
    points = [(float(step), float(step * step)) for step in range(10)]
    smooth = trailing_mean(points)
    assert smooth[7] == (7, (16 + 25 + 36 + 49) / 4)
    assert smooth[0] == points[0]


def test_models_never_share_a_look():
    named = looks_of(["base", "es2", "lat", "repbend", "dpl"])
    assert len(set(named.values())) == 5


def test_training_seeds_of_a_defence_share_its_look():
    looks = looks_of(["base", "es2@0", "es2@1", "lat@0", "dpl", "lat@1"])
    assert looks["es2@0"] == looks["es2@1"] == looks_of(["es2"])["es2"]
    assert looks["lat@0"] == looks["lat@1"] != looks["dpl"]


def test_palette_has_no_colour_twice():
    assert len(set(PALETTE.values())) == len(PALETTE)


def test_extent_holds_every_point():
    x0, y0, x1, y1 = extent({"harmful": [(0.0, 1.0), (4.0, -2.0)]})
    assert x0 < 0 and y0 < -2 and x1 > 4 and y1 > 1


def test_one_point_can_be_drawn():
    assert extent({"harmful": [(1.0, 1.0)]})[0] < 1
    assert "<svg" in projection({"harmful": [(1.0, 1.0)]}, "one point")
    assert "<svg" in training_curve({"kl": [(1.0, 0.1)]}, "one step")
