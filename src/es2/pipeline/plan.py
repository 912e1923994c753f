"""What a recipe will cost: arithmetic, time and memory of its stages, with no weights loaded.

Arithmetic: 2 operations a weight of the blocks and token forward, 2 more backward where the weights
themselves need no gradient (LoRA, attacks on inputs), and another 2 where they do (Kaplan et al., arXiv
2001.08361, without attention's quadratic term, which is small at these lengths). Writing is bound by
memory instead: each pass reads all weights, or waits for a GPU to be told of each layer's kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from es2.config import Recipe
from es2.errors import Es2Error
from es2.models.shape import Shape, shape_of
from es2.models.work import Lengths, Work
from es2.pipeline.comparison import Comparison
from es2.pipeline.experiment import load_all
from es2.pipeline.gpus import Gpu, gpu_named
from es2.pipeline.lengths import lengths_of
from es2.pipeline.stages import (
    Counting,
    Stage,
    available,
    evaluation_stages,
    run_stages,
    total,
    tuning,
)
from es2.results.comparison import without_seed

ROWS = 128
"""Of a batch without gradient on an accelerator, as `load` has it."""

ARITHMETIC = 0.4
"""Share of the peak that passes over whole rows are assumed to reach."""

BANDWIDTH = 0.6
"""Share of the peak bandwidth that a pass of one token a row is assumed to reach."""

LAUNCH = 0.7e-3
"""Seconds in which a layer's kernels are launched from Python: no pass is faster."""

SPARE = 0.9
"""Share of a GPU's memory that can be had for tensors."""


@dataclass(frozen=True)
class Row:
    """One stage's estimate.

    Attributes:
        member: of a comparison; "" in a run.
        stage: its name.
        work: tokens.
        flops: arithmetic.
        hours: on the GPU.
        memory: bytes at the most, on all devices together.
    """

    member: str
    stage: str
    work: Work
    flops: float
    hours: float
    memory: float


@dataclass(frozen=True)
class Plan:
    """A recipe's estimate.

    Attributes:
        shape: of the model.
        gpu: that hours are of.
        devices: how many of them.
        bits: of a weight.
        lengths: of prompts, in tokens.
        counted: how lengths were come by.
        rows: the stages.
        notes: what was assumed for want of data.
        warnings: what does not fit.
    """

    shape: Shape
    gpu: Gpu
    devices: int
    bits: int
    lengths: Lengths
    counted: str
    rows: Sequence[Row]
    notes: Sequence[str]
    warnings: Sequence[str]

    @property
    def whole(self) -> Work:
        """All stages' tokens."""
        return total([row.work for row in self.rows])

    @property
    def flops(self) -> float:
        """All stages' arithmetic."""
        return sum(row.flops for row in self.rows)

    @property
    def hours(self) -> float:
        """All stages' time; those that follow one another."""
        return sum(row.hours for row in self.rows)

    @property
    def memory(self) -> float:
        """Bytes a device: of the largest stage, spread evenly."""
        return max(row.memory for row in self.rows) / self.devices

    def record(self) -> dict[str, Any]:
        """As `--json` prints it."""
        length = asdict(self.lengths)
        del length["count"]
        rows = [
            {
                **({"member": row.member} if row.member else {}),
                "stage": row.stage,
                **_tokens(row.work),
                "flops": row.flops,
                "hours": row.hours,
                "bytes_per_device": row.memory / self.devices,
            }
            for row in self.rows
        ]
        return {
            "model": asdict(self.shape),
            "gpu": asdict(self.gpu),
            "devices": self.devices,
            "bits": self.bits,
            "lengths": {**length, "counted": self.counted},
            "assumed": ASSUMED,
            "stages": rows,
            "total": {
                **_tokens(self.whole),
                "flops": self.flops,
                "hours": self.hours,
                "bytes_per_device": self.memory,
            },
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }


ASSUMED: Mapping[str, float] = {
    "share_of_peak_arithmetic": ARITHMETIC,
    "share_of_peak_bandwidth": BANDWIDTH,
    "seconds_a_layer_and_pass": LAUNCH,
    "rows_a_batch": ROWS,
}
"""What estimates of time rest on; `benchmarks/large_shape.py` measures it on a GPU at hand."""


def _tokens(work: Work) -> dict[str, float]:
    return {
        "read": work.read,
        "generated": work.written,
        "with_gradient": work.graded,
        "drafted": work.drafted,
    }


def flops(work: Work, shape: Shape, whole: bool = False, draft: int = 0) -> float:
    """A stage's arithmetic.

    Args:
        work: its tokens.
        shape: of the model.
        whole: all weights are trained, not a LoRA.
        draft: weights of the blocks of a draft model.
    """
    head = shape.vocabulary * shape.hidden  # the output embedding, for every token that is written
    per_weight = 2 * (work.read + work.written) + (6 if whole else 4) * work.graded
    return per_weight * shape.blocks + 2 * head * work.written + 2 * draft * work.drafted


def seconds(work: Work, shape: Shape, gpu: Gpu, size: int, operations: float) -> float:
    """A stage's time.

    Layers that are spread over devices work one after the other, so more devices are no faster.

    Args:
        work: its tokens.
        shape: of the model.
        gpu: each device.
        size: bytes of a weight.
        operations: see `flops`.
    """
    peak = gpu.half if size == 2 else gpu.single
    weights = shape.parameters * size / (gpu.bandwidth * BANDWIDTH)
    return operations / (peak * ARITHMETIC) + work.passes * max(weights, shape.layers * LAUNCH)


def memory(stage: Stage, shape: Shape, size: int, draft: int = 0) -> float:
    """A stage's bytes at the most: weights, what training adds, activations, caches.

    Args:
        stage: the stage.
        shape: of the model.
        size: bytes of a weight.
        draft: parameters of a draft model.

    Raises:
        Es2Error: if a LoRA is wanted in linear maps that the model does not have.
    """
    work, train = stage.work, stage.train
    weights = (stage.models * shape.parameters + draft) * size
    trained = 0
    if train is not None:
        # In float32: gradient, AdamW's two moments, the best so far; a LoRA's weights are extra.
        own = 5 * train.rank * shape.lora(train.targets) if train.rank else 4 * shape.blocks
        trained = 4 * own
    # A block keeps about ten vectors of the stream's width and four of the feed-forward's a token.
    kept = work.batch * shape.layers * (10 * shape.hidden + 4 * shape.inner) * size
    scores = 4 * 4 * work.scored * shape.vocabulary  # logits, and what a loss makes of them
    cache = work.held * (shape.cached + 2 * shape.hidden + 3 * shape.inner) * size
    return weights + trained + max(kept + scores, cache)


def plan(wanted: Recipe | Comparison, gpu: str = "h100", devices: int = 1) -> Plan:
    """Estimates what a recipe or a comparison will take.

    Args:
        wanted: what would be run.
        gpu: a name in `GPUS`.
        devices: how many of them, with the layers spread over them.

    Raises:
        Es2Error: for an unknown GPU, fewer than one, a model whose config cannot be had, or a LoRA in
            linear maps that it does not have.
    """
    device = gpu_named(gpu)
    if devices < 1:
        raise Es2Error(f"--devices is {devices}, but has to be at least 1")
    common = wanted.run if isinstance(wanted, Comparison) else wanted
    shape = shape_of(common.model)
    size = 4 if common.dtype == "float32" else 2
    notes: dict[str, None] = {}
    note = notes.setdefault
    rows: list[Row] = []
    members = wanted.members() if isinstance(wanted, Comparison) else {"": wanted}
    load = available(note)
    first = load_all(next(iter(members.values())), load)
    lengths, counted = lengths_of(common.model, first.harmful.test)
    counting = Counting(first, lengths, ROWS, note, load)
    tuned: set[str] = set()
    for member, recipe in members.items():
        stages = run_stages(recipe, counting)
        name = without_seed(member)
        if isinstance(wanted, Comparison) and wanted.tune and recipe.defence and name not in tuned:
            tuned.add(name)  # its other seeds share the study
            stages.insert(0, tuning(recipe, wanted.tune, counting))
        if isinstance(wanted, Comparison) and wanted.evaluate is not None:
            stages += evaluation_stages(recipe, wanted.evaluate, counting)
        rows += [_row(member, stage, shape, device, size) for stage in stages]
    warnings = [
        text
        for text in (_too_large(row, shape, device, devices, size) for row in rows)
        if text is not None
    ]
    return Plan(shape, device, devices, 8 * size, lengths, counted, rows, list(notes), warnings)


def _row(member: str, stage: Stage, shape: Shape, gpu: Gpu, size: int) -> Row:
    draft = shape_of(stage.draft) if stage.draft else None
    whole = stage.train is not None and stage.train.rank == 0
    operations = flops(stage.work, shape, whole, draft.blocks if draft else 0)
    return Row(
        member,
        stage.name,
        stage.work,
        operations,
        seconds(stage.work, shape, gpu, size, operations) / 3600,
        memory(stage, shape, size, draft.parameters if draft else 0),
    )


def _too_large(row: Row, shape: Shape, gpu: Gpu, devices: int, size: int) -> str | None:
    """A line for a stage that needs more than there is, and what to do."""
    room = SPARE * gpu.memory
    if row.memory / devices <= room:
        return None
    where = f"{row.member}, {row.stage}" if row.member else row.stage
    more = int(-(-row.memory // room))
    need = f"{where} takes about {row.memory / devices / 1e9:.0f} GB a device on {gpu.name}"
    smaller = "a smaller train.batch_size, " if row.work.batch else ""
    narrower = "dtype bfloat16, " if size == 4 else ""
    return f"{need}; use {smaller}{narrower}or {more} devices (--device-map auto)"
