"""The report's panels: what each figure is given, its title, its words and its legend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from es2.report import figures, formats
from es2.report.figures import Point
from es2.report.looks import CLASSES, Look, looks_of, series_looks
from es2.report.marks import swatch
from es2.report.reading import READINGS, RunFolder, models, number, rate_of
from es2.results.comparison import without_seed
from es2.results.schema import Results

# SCAV's code and its paper name different values.
_PUBLISHED_P0 = (1e-3, 1e-4)


@dataclass(frozen=True)
class Panel:
    """One figure with the title above it, if it has none of its own."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class Key:
    """An entry of a legend."""

    swatch: Markup
    text: str


@dataclass(frozen=True)
class Figures:
    """Panels that share a legend."""

    panels: Sequence[Panel]
    legend: Sequence[Key] = ()


def legend(looks: Mapping[str, Look]) -> list[Key]:
    """One entry a model; one for all training seeds of a defence."""
    names = {without_seed(label): look for label, look in looks.items()}
    return [Key(Markup(swatch(look)), formats.name(key)) for key, look in names.items()]


def sweep(results: Results) -> Figures:
    """SCAV over P0: each reading's defence success, and how far the attack pushed."""
    swept = {
        key: {p0: result for name, result in scav.settings.items() if (p0 := _p0(name))}
        for key, model in models(results).items()
        if (scav := model.attacks.get("scav"))
    }
    panels = []
    for reading in READINGS:
        rates = {
            key: {p0: rate_of(result.dsr, reading) for p0, result in of.items()}
            for key, of in swept.items()
        }
        rates = {key: of for key, of in rates.items() if len(of) > 1}
        if rates:
            title = f"{reading.capitalize()} DSR, %"
            label = f"{title} over P0. " + _in_words(
                {k: [(p0, 100 * r.rate) for p0, r in of.items()] for k, of in rates.items()}
            )
            panels.append(Panel(title, Markup(figures.sweep(rates, _PUBLISHED_P0, label))))
    norms = {
        key: sorted((p0, 100 * r.relative_norm) for p0, r in of.items() if r.relative_norm)
        for key, of in swept.items()
    }
    norms = {key: of for key, of in norms.items() if len(of) > 1}
    if norms:
        title = "Perturbation, % of the norm"
        svg = figures.push(norms, _PUBLISHED_P0, f"{title}, over P0. {_in_words(norms)}")
        panels.append(Panel(title, Markup(svg)))
    return Figures(panels, legend(looks_of(list(swept))))


def _p0(setting: str) -> float | None:
    try:
        value = float(setting.removeprefix("p0="))
    except ValueError:
        return None
    return value if value > 0 else None


def separability(layers: Mapping[str, Any], looks: Mapping[str, Look]) -> Figures:
    """Probe accuracy, separation and distance ratio of every layer."""
    curves = {key: rows for key, rows in (layers.get("curves") or {}).items() if rows}
    chosen = layers.get("chosen") or {}
    marks = {chosen[word]: word for word in ("emergence", "terminal") if chosen.get(word)}
    base = dict(_column(curves.get("base", []), "distance"))
    accuracy = {key: _column(rows, "accuracy", 100.0) for key, rows in curves.items()}
    separation = {key: _column(rows, "separation") for key, rows in curves.items()}
    ratio = {
        key: [(layer, d / base[layer]) for layer, d in _column(rows, "distance") if base.get(layer)]
        for key, rows in curves.items()
        if key != "base"
    }
    panels = []
    for title, series, one in (
        ("Probe accuracy, %", accuracy, False),
        ("Separation (distance / spread)", separation, False),
        ("Distance, × the base's", ratio, True),
    ):
        series = {key: points for key, points in series.items() if points}
        if series:
            label = f"{title}, by layer. {_in_words(series)}"
            panels.append(Panel(title, Markup(figures.layer_curve(series, marks, label, one))))
    return Figures(panels, legend({k: looks.get(k, looks_of([k])[k]) for k in curves}))


def _column(rows: Iterable[Mapping[str, Any]], key: str, scale: float = 1.0) -> list[Point]:
    found = [(number(row.get("layer")), number(row.get(key))) for row in rows]
    return [(layer, scale * v) for layer, v in found if layer is not None and v is not None]


def training(folder: RunFolder) -> list[tuple[Panel, list[Key]]]:
    """Distance ratios, KL, validation and the loss's other terms, each with a legend of its own."""
    metrics = folder.metrics
    names = list(dict.fromkeys(key for line in metrics for key in line))
    kept = folder.run.get("best_step")
    kept = int(kept) if isinstance(kept, int) and metrics and kept > 0 else None
    limit = number(_find(folder.config, "kl_threshold"))
    ratios = {n: f"layer {n.removeprefix('distance_ratio_')}" for n in names if _is_ratio(n)}
    kls = {
        "kl": "harmless prompts",
        "kl_harmful": "harmful prompts",
        "kl_moved": "harmful prompts, moved",
    }
    checks = [n for n in names if n.startswith("validation_") and _is_share(metrics, n)]
    shares = {n: n.removeprefix("validation_").replace("_", " ") for n in checks}
    drawn = {*ratios, *kls, *_BOOKKEEPING}
    terms = [n for n in names if n not in drawn and not n.startswith(("distance_", "validation_"))]
    found = []
    for title, wanted, scale, line, one in (
        ("Distance, × the base's", ratios, 1.0, None, True),
        ("KL from the base, nats", kls, 1.0, limit, False),
        ("Validation, %", shares, 100.0, None, False),
        *((_title(n), {n: n.replace("_", " ")}, 1.0, None, False) for n in terms),
    ):
        series = {text: _steps(metrics, key, scale) for key, text in wanted.items()}
        series = {text: points for text, points in series.items() if points}
        if series:
            label = f"{title}, by training step. {_in_words(series)}"
            svg = figures.training_curve(series, label, kept, line, one)
            keys = [
                Key(Markup(swatch(look)), text)
                for text, look in zip(series, series_looks(len(series)), strict=True)
            ]
            found.append((Panel(title, Markup(svg)), keys))
    return found


_BOOKKEEPING = ("step", "loss", "grad_norm", "seconds", "broken")
"""What the trainer logs whatever the defence."""


def _title(key: str) -> str:
    """A term of the loss, by the name that its objective logs it under."""
    return key.replace("_", " ").capitalize()


def _is_ratio(key: str) -> bool:
    return key.startswith("distance_ratio_")


def _is_share(metrics: Iterable[Mapping[str, Any]], key: str) -> bool:
    values = [number(line[key]) for line in metrics if key in line]
    return all(value is not None and 0 <= value <= 1 for value in values)


def _steps(metrics: Iterable[Mapping[str, Any]], key: str, scale: float) -> list[Point]:
    found = [(number(line.get("step")), number(line.get(key))) for line in metrics]
    return [(step, scale * v) for step, v in found if step is not None and v is not None]


def _find(config: Any, key: str) -> Any:
    """A key's value wherever it stands in nested mappings."""
    if not isinstance(config, Mapping):
        return None
    if key in config:
        return config[key]
    return next((v for part in config.values() if (v := _find(part, key)) is not None), None)


def projections(embeddings: Mapping[str, Any]) -> list[tuple[str, Figures]]:
    """Each critical layer's prompts before and after, the base's view boxed in the others."""
    found = []
    for layer, drawn in (embeddings.get("layers") or {}).items():
        clean = {key: _classes(classes) for key, classes in drawn.items()}
        clean = {key: classes for key, classes in clean.items() if classes}
        panels = []
        for key, classes in clean.items():
            title = formats.name(key).capitalize() if key == "base" else formats.name(key)
            counts = ", ".join(f"{len(points)} {kind}" for kind, points in classes.items())
            label = f"Layer {layer} of {title}: {counts} prompts as points."
            frame = figures.extent(clean["base"]) if key != "base" and "base" in clean else None
            panels.append(Panel(title, Markup(figures.projection(classes, label, frame))))
        kinds = dict.fromkeys(kind for classes in clean.values() for kind in classes)
        legend = [Key(Markup(swatch(_class(kind), line=False)), kind) for kind in kinds]
        if panels:
            found.append((str(layer), Figures(panels, legend)))
    return found


def _class(kind: str) -> Look:
    return CLASSES.get(kind, Look("ink"))


def _classes(classes: Mapping[str, Any]) -> dict[str, list[Point]]:
    points = {
        kind: [(float(x), float(y)) for x, y in rows if None not in (number(x), number(y))]
        for kind, rows in classes.items()
    }
    return {kind: rows for kind, rows in points.items() if rows}


def _in_words(series: Mapping[str, Sequence[Point]]) -> str:
    """Where each line starts, ends and turns, for those who cannot see it."""
    parts = []
    for key, points in series.items():
        ys = [y for _, y in points]
        parts.append(
            f"{formats.name(key)}: {formats.decimal(ys[0])} at {formats.decimal(points[0][0])} to "
            f"{formats.decimal(ys[-1])} at {formats.decimal(points[-1][0])}, "
            f"between {formats.decimal(min(ys))} and {formats.decimal(max(ys))}"
        )
    return "; ".join(parts) + "."
