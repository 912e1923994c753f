"""The report's figures: numbers in, an SVG string out, one function a figure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, MaxNLocator, MultipleLocator, NullLocator

from es2.report.canvas import HEIGHT, WIDTH, draw, panel, strip
from es2.report.formats import name, power_of_ten
from es2.report.looks import CLASSES, PALETTE, PAPER, Look, looks_of, margin_look, series_looks
from es2.results.rates import Rate

Point = tuple[float, float]

_SMALL = 6.5
"""Points of print of a name beside a point."""


def layer_curve(
    series: Mapping[str, Sequence[Point]],
    chosen: Mapping[int, str],
    label: str,
    one: bool = False,
) -> str:
    """A measure of every layer, one line a model; the chosen layers marked.

    Args:
        series: (layer, value) by model.
        chosen: what the marked layers are, by layer.
        label: what the figure shows, for those who cannot see it.
        one: draw a line at 1, where a ratio means no change.
    """
    with panel() as (figure, axes):
        last = _last(series)
        gaps = [b - a for a, b in itertools.pairwise(sorted(chosen))]
        # Words of layers close together would run into each other.
        roomy = all(gap > 0.25 * last for gap in gaps)
        for layer, word in chosen.items():
            axes.axvline(layer, color=PALETTE["muted"], linewidth=0.8, dashes=(2, 2))
            axes.annotate(
                f"{layer} {word}" if roomy else str(layer),
                (layer, 1.02),
                xycoords=("data", "axes fraction"),
                ha="center" if layer < 0.65 * last or not roomy else "right",
                color=PALETTE["muted"],
                fontsize=7,
            )
        if one:
            axes.axhline(1, color=PALETTE["muted"], linewidth=0.8)
        _lines(axes, series, marker_every=True)
        axes.set_xlabel("layer")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        return draw(figure, label)


def sweep(rates: Mapping[str, Mapping[float, Rate]], published: Sequence[float], label: str) -> str:
    """Defence success over SCAV's P0, one band and line a model; harder attacks to the right.

    Args:
        rates: by model, then by P0.
        published: values of P0 to mark.
        label: what the figure shows, for those who cannot see it.
    """
    with panel() as (figure, axes):
        for key, look in looks_of(list(rates)).items():
            found = sorted(rates[key].items())
            axes.fill_between(
                [p0 for p0, _ in found],
                [100 * rate.low for _, rate in found],
                [100 * rate.high for _, rate in found],
                color=PALETTE[look.colour],
                alpha=0.16,
                linewidth=0,
            )
        points = {
            key: [(p0, 100 * rate.rate) for p0, rate in sorted(of.items())]
            for key, of in rates.items()
        }
        _lines(axes, points, marker_every=True)
        axes.set_ylim(-3, 103)
        axes.yaxis.set_major_locator(FixedLocator([0, 25, 50, 75, 100]))
        _p0_axis(axes, [p0 for of in rates.values() for p0 in of], published)
        return draw(figure, label)


def push(norms: Mapping[str, Sequence[Point]], published: Sequence[float], label: str) -> str:
    """How far SCAV moved the residual stream at each P0, in percent of the stream's norm."""
    with panel() as (figure, axes):
        _lines(axes, norms, marker_every=True)
        axes.set_ylim(bottom=0)
        _p0_axis(axes, [p0 for of in norms.values() for p0, _ in of], published)
        return draw(figure, label)


def margin(
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, Rate]]]],
    looks: Mapping[str, Look],
    label: str,
) -> str:
    """Shares complied with and incoherent as the stream is pushed harder, with their bands.

    Args:
        curves: by model, then `complied` and `incoherent`: (size as a share of the norm, rate).
        looks: of every model of the page, of which these may be some.
        label: what the figure shows, for those who cannot see it.
    """
    with panel() as (figure, axes):
        axes.axhline(50, color=PALETTE["muted"], linewidth=0.8, dashes=(2, 2), zorder=0.5)
        sizes = sorted({norm for of in curves.values() for norm, _ in of["complied"] if norm})
        # No push at all stands where the next smaller size would, left of the logarithmic axis.
        unpushed = sizes[0] ** 2 / sizes[1] if len(sizes) > 1 else sizes[0] / 2
        for key, of in curves.items():
            colour = PALETTE[looks[key].colour]
            for kind, found in of.items():
                at = [norm or unpushed for norm, _ in found]
                low, high = ([100 * end for end in ends] for ends in _ends(found))
                axes.fill_between(at, low, high, color=colour, alpha=0.13, linewidth=0)
                points = [(x, 100 * rate.rate) for x, (_, rate) in zip(at, found, strict=True)]
                _line(axes, points, margin_look(looks[key], kind == "complied"), markers=True)
        axes.set_ylim(-3, 103)
        axes.yaxis.set_major_locator(FixedLocator([0, 25, 50, 75, 100]))
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(ticks := [unpushed, *sizes[::-2][::-1]]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f"{100 * t:.2g}" if t != unpushed else "0" for t in ticks])
        axes.set_xlabel("push, % of the norm")
        return draw(figure, label)


def trade_off(
    points: Mapping[str, tuple[float, float]], frontier: Sequence[str], label: str
) -> str:
    """Safety against cost, a point a model; a line joins those that nobody beats in both.

    Args:
        points: cost and safety of every model, both as shares.
        frontier: labels of those on the frontier.
        label: what the figure shows, for those who cannot see it.
    """
    with panel(2.3 * WIDTH, 1.7 * HEIGHT, head=0.24) as (figure, axes):
        shown = {key: (100 * cost, 100 * safety) for key, (cost, safety) in points.items()}
        steps = sorted(shown[one] for one in frontier)
        axes.step(
            [x for x, _ in steps],
            [y for _, y in steps],
            where="post",
            color=PALETTE["muted"],
            linewidth=0.8,
            dashes=(2, 2),
            zorder=0.5,
        )
        for key, look in looks_of(list(shown)).items():
            _line(axes, [shown[key]], look, markers=True)
        axes.set_ylim(-3, 103)
        axes.yaxis.set_major_locator(FixedLocator([0, 25, 50, 75, 100]))
        axes.set_xlim(0, 1.06 * axes.get_xlim()[1])
        axes.set_xlabel("safe prompts declined, %")
        words = "judged DSR under the worst attack, %"
        axes.set_title(words, x=-0.05, loc="left", fontsize=8, color=PALETTE["muted"])
        _name_points(axes, shown)
        return draw(figure, label)


def intervals(columns: Mapping[str, Mapping[str, Rate]], models: Sequence[str], label: str) -> str:
    """Rates with their intervals: a row a model, a column a measure; the first model's rate dashed.

    All columns have one scale, from 0 to what they need, so that they can be compared.

    Args:
        columns: rates by title of the column, then by the model's label; a model may be missing.
        models: labels of the rows, from the top; one defence's training seeds share its look.
        label: what the figure shows, for those who cannot see it.
    """
    looks = looks_of(models)
    heights = range(len(models))[::-1]
    names = [name(model) for model in models]
    left = (0.6 * _SMALL * max(map(len, names)) + 8) / 72
    highest = max((rate.high for of in columns.values() for rate in of.values()), default=1.0)
    top = next(end for end in (10, 20, 50, 100) if 100 * highest <= end)
    titles = [wrap(title, 15) for title in columns]
    with strip(len(columns), len(models), left, max(map(len, titles))) as (figure, row):
        for axes, title, rates in zip(row, titles, columns.values(), strict=True):
            axes.set_title("\n".join(title), fontsize=_SMALL, color=PALETTE["ink"], pad=4)
            if (first := rates.get(models[0])) is not None:
                axes.axvline(100 * first.rate, color=PALETTE["muted"], linewidth=0.8, dashes=(2, 2))
            for model, height in zip(models, heights, strict=True):
                if (rate := rates.get(model)) is not None:
                    ends = [(100 * rate.low, height), (100 * rate.high, height)]
                    _line(axes, ends, Look(looks[model].colour), markers=False)
                    _line(axes, [(100 * rate.rate, height)], looks[model], markers=True)
            axes.set_xlim(0, top)
            axes.xaxis.set_major_locator(FixedLocator([0, top / 2, top]))
            axes.tick_params(axis="x", labelsize=_SMALL - 0.5)
        row[0].set_yticks(list(heights), names, fontsize=_SMALL, color=PALETTE["ink"])
        row[0].set_ylim(-0.6, len(models) - 0.4)
        return draw(figure, label)


def _name_points(axes: Axes, points: Mapping[str, Point]) -> None:
    """Names beside points: right or left of each, where neither point nor name is yet.

    Args:
        axes: to write on, whose limits are set.
        points: by name.
    """
    print_in_pixels = axes.figure.dpi / 72
    (left, bottom), (right, _) = axes.bbox.get_points() / print_in_pixels
    shown = axes.transData.transform(list(points.values())) / print_in_pixels - (left, bottom)
    places = dict(zip(points, shown.tolist(), strict=True))
    width = right - left
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in places.values()]
    for key, (x, y) in sorted(places.items(), key=lambda item: item[1]):
        long = 0.55 * _SMALL * len(name(key))
        boxes = [
            (start, y + up - 3, start + long, y + up + 3)
            for up in (0, 7, -7, 14, -14, 21, -21)
            for start in (x + 5, x - 5 - long)
        ]
        free = [box for box in boxes if not any(_overlap(box, other) for other in taken)]
        box = next((one for one in free if one[0] > 0 and one[2] < width), boxes[0])
        taken.append(box)
        axes.annotate(
            name(key),
            points[key],
            xytext=(box[0] - x, box[1] - y + 0.5),
            textcoords="offset points",
            color=PALETTE["muted"],
            fontsize=_SMALL,
            annotation_clip=False,
            # On the page's paper, so that a line behind a name does not strike it through.
            bbox={"boxstyle": "square,pad=0.1", "facecolor": PAPER, "edgecolor": "none"},
        )


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _ends(found: Sequence[tuple[float, Rate]]) -> tuple[list[float], list[float]]:
    return [rate.low for _, rate in found], [rate.high for _, rate in found]


def training_curve(
    series: Mapping[str, Sequence[Point]],
    label: str,
    kept: int | None = None,
    limit: float | None = None,
    one: bool = False,
) -> str:
    """A quantity over training steps.

    Args:
        series: (step, value) by what the line shows.
        label: what the figure shows, for those who cannot see it.
        kept: the step whose weights were kept.
        limit: a threshold, drawn across.
        one: draw a line at 1, where a ratio means no change.
    """
    with panel() as (figure, axes):
        if limit is not None:
            axes.axhline(limit, color=PALETTE["harmful"], linewidth=1, dashes=(4, 2))
            axes.annotate(
                f"threshold {limit:g}",
                (0, limit),
                xycoords=("axes fraction", "data"),
                xytext=(2, 2),
                textcoords="offset points",
                color=PALETTE["harmful"],
                fontsize=7,
            )
        if one:
            axes.axhline(1, color=PALETTE["muted"], linewidth=0.8)
        if kept is not None:
            axes.axvline(kept, color=PALETTE["muted"], linewidth=0.8, dashes=(2, 2))
            axes.annotate(
                f"kept: step {kept}",
                (kept, 1.02),
                xycoords=("data", "axes fraction"),
                ha="right" if kept > 0.6 * _last(series) else "left",
                color=PALETTE["muted"],
                fontsize=7,
            )
        for (_, points), look in zip(series.items(), series_looks(len(series)), strict=True):
            few = len(points) <= 25
            if not few:
                xs, ys = zip(*_thinned(points, 400), strict=True)
                axes.plot(xs, ys, color=PALETTE[look.colour], linewidth=0.7, alpha=0.4)
            smooth = points if few else _thinned(trailing_mean(points), 400)
            _line(axes, smooth, look, markers=few)
        if not one and all(y >= 0 for points in series.values() for _, y in points):
            axes.set_ylim(bottom=0)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        return draw(figure, label)


def trailing_mean(points: Sequence[Point], window: int = 4) -> list[Point]:
    """Each value's mean with the ones just before it; training holds KL to its threshold so."""
    recent = [points[max(0, i + 1 - window) : i + 1] for i in range(len(points))]
    return [(span[-1][0], sum(y for _, y in span) / len(span)) for span in recent]


def projection(
    classes: Mapping[str, Sequence[Point]],
    label: str,
    frame: tuple[float, float, float, float] | None = None,
) -> str:
    """Prompts as points, one marker a class; both axes at the same scale.

    Args:
        classes: (x, y) of every prompt by class.
        label: what the figure shows, for those who cannot see it.
        frame: x0, y0, x1, y1 of another panel's view, drawn as a box to compare scales.
    """
    with panel(width=3.6, height=2.5, head=0.06) as (figure, axes):
        axes.grid(True, axis="both")
        axes.spines["left"].set_visible(True)
        for key, points in classes.items():
            look = CLASSES.get(key, Look("ink"))
            colour = PALETTE[look.colour]
            thin = _thinned(points, 250)
            axes.scatter(
                [x for x, _ in thin],
                [y for _, y in thin],
                s=13,
                marker=look.marker,
                facecolors="none" if look.hollow else colour,
                edgecolors=colour,
                linewidths=0.8 if look.hollow else 0,
                alpha=1 if look.hollow else 0.72,
            )
        if frame:
            x0, y0, x1, y1 = frame
            box = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, linestyle=(0, (2, 2)))
            box.set(edgecolor=PALETTE["muted"], linewidth=0.9)
            axes.add_patch(box)
        axes.set_aspect("equal", adjustable="datalim")
        axes.apply_aspect()
        ticks = MaxNLocator(5).tick_values(*axes.get_xlim())
        axes.xaxis.set_major_locator(MultipleLocator(ticks[1] - ticks[0]))
        axes.yaxis.set_major_locator(MultipleLocator(ticks[1] - ticks[0]))
        return draw(figure, label)


def extent(classes: Mapping[str, Sequence[Point]]) -> tuple[float, float, float, float]:
    """The box round all points with a little air: x0, y0, x1, y1."""
    xs = [x for points in classes.values() for x, _ in points]
    ys = [y for points in classes.values() for _, y in points]
    air = 0.04 * max(max(xs) - min(xs), max(ys) - min(ys), 1e-9)
    return min(xs) - air, min(ys) - air, max(xs) + air, max(ys) + air


def _lines(axes: Axes, series: Mapping[str, Sequence[Point]], marker_every: bool) -> None:
    for key, look in looks_of(list(series)).items():
        _line(axes, series[key], look, marker_every)


def _line(axes: Axes, points: Sequence[Point], look: Look, markers: bool) -> None:
    colour = PALETTE[look.colour]
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=colour,
        linestyle=look.line,
        marker=look.marker if markers else None,
        markerfacecolor=PAPER if look.hollow else colour,
        markeredgewidth=1,
        clip_on=False,
    )


def _p0_axis(axes: Axes, values: Sequence[float], published: Sequence[float]) -> None:
    """P0 on a log axis that runs from weak to strong attacks."""
    axes.set_xscale("log")
    low, high = min(values), max(values)
    axes.set_xlim(high * 1.6, low / 1.6)
    decades = range(math.ceil(math.log10(low / 1.5)), math.floor(math.log10(high * 1.5)) + 1)
    # More labels than these would run into each other.
    ticks = [10.0**k for k in decades[::-1][:: -(-len(decades) // 6)]]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([power_of_ten(tick) for tick in ticks])
    axes.set_xlabel("P0 (attack pushes harder →)")
    for value in published:
        if low / 1.5 <= value <= high * 1.5:
            axes.axvline(value, color=PALETTE["muted"], linewidth=0.8, dashes=(2, 2), zorder=0.5)


def _thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most so many points, evenly picked, the last one kept."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def _last(series: Mapping[str, Sequence[Point]]) -> float:
    return max((x for points in series.values() for x, _ in points), default=0.0)
