"""The training loop that all defences share: LoRA or full weights, stops, checkpoints, resume.

A defence brings an objective: a loss for the batch of a step. The batch depends only on the seed and
the step, so that a run killed anywhere goes on from its last checkpoint and ends the same.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from es2.errors import Es2Error
from es2.models.blocks import LINEAR, check_targets
from es2.models.loading import ChatModel

Scope = Literal["all", "to-terminal", "critical"]


@dataclass(frozen=True)
class TrainSettings:
    """How the weights move, whatever the objective.

    Attributes:
        steps: at most this many optimiser steps.
        batch_size: prompts of each class a step.
        lr: AdamW's peak learning rate, after `warmup` steps.
        min_lr_rate: share of `lr` to which the rate then falls, in a line, until the last step; 1
            for a constant rate.
        rank: LoRA rank; 0 trains all weights.
        alpha: LoRA alpha.
        scope: blocks that get LoRA: all, up to the terminal layer, or the critical two alone.
        targets: the linear maps that get LoRA in them, such as q_proj v_proj; none named: all.
        clip: gradient norm limit.
        validate_every: steps between validations; 0 for none.
        patience: training ends after this many validations in a row that find the model broken.
        checkpoint_every: steps between checkpoints.
        seed: of the adapter's initial weights and the batches.
    """

    steps: int = 48
    batch_size: int = 8
    lr: float = 2e-4
    warmup: int = 5
    min_lr_rate: float = 0.1
    rank: int = 16
    alpha: int = 32
    scope: Scope = "all"
    targets: tuple[str, ...] = ()
    clip: float = 1.0
    validate_every: int = 24
    patience: int = 2
    checkpoint_every: int = 24
    seed: int = 0


@runtime_checkable
class Objective(Protocol):
    """What a defence minimises; a dataclass, so that its settings can be replaced."""

    @property
    def settings(self) -> TrainSettings:
        """Of the training loop."""
        ...

    def loss(self, chat: ChatModel, step: int) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """The loss of the batch of a step, and what to log of it."""
        ...


@runtime_checkable
class Stopping(Objective, Protocol):
    """An objective that may end training before the last step."""

    def stop(self, history: Sequence[Mapping[str, float]]) -> str | None:
        """Why training ends after the last of these steps' metrics; None to go on."""
        ...


@runtime_checkable
class InParts(Objective, Protocol):
    """An objective whose loss is a sum that need not be held in memory at once."""

    def parts(
        self, chat: ChatModel, step: int
    ) -> Iterator[tuple[Float[Tensor, ""], dict[str, float]]]:
        """The summands of the loss, and what to log of each.

        Each is made when the one before it has been gone back through, so that memory holds one.
        """
        ...


class Diverged(Es2Error):
    """The loss or its gradient is no longer finite."""


@dataclass(frozen=True)
class Validation:
    """What the validation prompts say of a model in training.

    Attributes:
        metrics: to be logged.
        score: greater is better, and above 0; the best checkpoint has the greatest. None: the last
            that is not broken is the best.
        broken: why the model must not be kept as it is, or None.
        lost: why it is not expected to mend, or None.
    """

    metrics: dict[str, float]
    score: float | None
    broken: str | None = None
    lost: str | None = None


LEAST: Mapping[str, float] = {
    "steps": 1,
    "batch_size": 1,
    "min_lr_rate": 0,
    "rank": 0,
    "validate_every": 0,
    "patience": 1,
    "checkpoint_every": 1,
}
"""The least that training settings may be."""


LAST = Path("checkpoints/last.pt")
"""Where in a run's folder training goes on from."""


@dataclass
class Progress:
    """What is left of a training run besides its weights; saved with every checkpoint.

    Attributes:
        batch_size: that it is trained with, which may have been halved to fit into memory; 0 in
            checkpoints that do not say.
    """

    batch_size: int = 0
    step: int = 0
    best_step: int = 0
    best_score: float = 0.0
    stopped: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)


def seeded(seed: int, number: int) -> torch.Generator:
    """What is random in an epoch or a step, a pure function of both."""
    return torch.Generator().manual_seed(seed * 1_000_003 + number)


def batch_indices(count: int, size: int, step: int, seed: int) -> list[int]:
    """The members of a step's batch: epochs of seeded permutations, cut in order.

    A pure function of the step, so that resuming needs no sampler state.
    """
    size = min(size, count)
    first = step * size
    picked: list[int] = []
    for position in range(first, first + size):
        epoch, index = divmod(position, count)
        if not picked or index == 0:
            order = torch.randperm(count, generator=seeded(seed, epoch)).tolist()
        picked.append(order[index])
    return picked


def attach_lora(chat: ChatModel, settings: TrainSettings, layers: tuple[int, ...]) -> ChatModel:
    """The model with a fresh, trainable LoRA on linear modules of the blocks in scope.

    Raises:
        Es2Error: if one of `settings.targets` names no such module.
    """
    blocks = {
        "all": list(range(chat.depth)),
        "to-terminal": list(range(max(layers, default=chat.depth))),
        "critical": [layer - 1 for layer in layers],
    }[settings.scope]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(settings.seed)
    if settings.scope != "all" or settings.targets:
        config.target_modules = _linear_names(chat, blocks, settings.targets)
    model = get_peft_model(chat.inner, config)
    model.peft_config["default"].base_model_name_or_path = chat.name
    return ChatModel(chat.name, model, chat.tokenizer, batch_size=chat.batch_size)


def _linear_names(chat: ChatModel, blocks: list[int], targets: tuple[str, ...]) -> list[str]:
    wanted = {id(m) for i in blocks for m in chat.blocks[i].modules() if isinstance(m, LINEAR)}
    names = [name for name, module in chat.inner.named_modules() if id(module) in wanted]
    found = {name.rpartition(".")[2] for name in names}
    check_targets(targets, found, chat.name)
    return [name for name in names if not targets or name.rpartition(".")[2] in targets]


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Linear warm-up, then linear decay to a share of the peak at the last step."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    left = (settings.steps - step) / max(1, settings.steps - settings.warmup)
    return settings.lr * (settings.min_lr_rate + (1 - settings.min_lr_rate) * left)


def adapter_off(chat: ChatModel) -> AbstractContextManager[None]:
    """Within the context, a model with a LoRA attached is its base."""
    return chat.model.disable_adapter() if isinstance(chat.model, PeftModel) else nullcontext()


def frozen_copy(chat: ChatModel, settings: TrainSettings) -> ChatModel | None:
    """The base model, kept beside the one in training; None where a LoRA can be switched off."""
    return None if settings.rank else copy.deepcopy(chat)


def unfreeze(chat: ChatModel) -> None:
    """Full fine-tuning: all weights of the blocks move.

    Embeddings, final norm and output embedding stay, so that the base's cached final hidden states
    still give the base's logits.
    """
    chat.blocks.requires_grad_(True)


def trainable(chat: ChatModel) -> dict[str, torch.nn.Parameter]:
    """The parameters that training moves, by name."""
    return {name: p for name, p in chat.model.named_parameters() if p.requires_grad}


def train(
    chat: ChatModel,
    objective: Objective,
    settings: TrainSettings,
    out: Path,
    resume: bool = False,
    validate: Callable[[ChatModel], Validation] | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Trains until the objective stops it, validation finds it broken for good, or steps are done.

    Leaves the weights of the best validated step in `chat` (the last step's without validation).
    Writes `metrics.jsonl` and `checkpoints/` under `out`.

    Raises:
        Es2Error: if the loss is not a number, or the disk is full.
    """
    parameters = trainable(chat)
    optimiser = torch.optim.AdamW(parameters.values(), lr=settings.lr, weight_decay=0.0)
    optimiser.zero_grad(set_to_none=True)  # a training that diverged has left its gradients
    state = out / LAST
    progress = Progress()
    # Step 0 is the model as it came: kept if no later step passes validation.
    validating = validate is not None and settings.validate_every > 0
    best = {name: p.detach().clone() for name, p in parameters.items()} if validating else {}
    if resume and state.is_file():
        saved = torch.load(state, map_location="cpu", weights_only=True)
        progress = Progress(**saved["progress"])
        _restore(parameters, saved["weights"])
        optimiser.load_state_dict(saved["optimiser"])
        best = saved["best"]

    progress.batch_size = settings.batch_size

    def checkpoint() -> None:
        save_state(
            state,
            {
                "progress": vars(progress),
                "weights": {name: p.detach() for name, p in parameters.items()},
                "optimiser": optimiser.state_dict(),
                "best": best,
            },
        )

    while progress.step < settings.steps and not progress.stopped:
        started = time.perf_counter()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(progress.step, settings)
        loss, metrics = gradients(chat, objective, progress.step)
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), settings.clip)
        if not (math.isfinite(loss) and torch.isfinite(norm)):
            raise Diverged(
                f"training diverged at step {progress.step + 1} (loss {loss}, "
                f"gradient norm {float(norm)}); lower the learning rate or load the model in float32"
            )
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        progress.step += 1
        line: dict[str, Any] = {"step": progress.step, "loss": loss, **metrics}
        line |= {"grad_norm": float(norm), "seconds": time.perf_counter() - started}
        progress.history.append(line)
        if isinstance(objective, Stopping):
            progress.stopped = objective.stop(progress.history) or ""
        last = progress.step == settings.steps or bool(progress.stopped)
        every = settings.validate_every
        if validate and every and (last or progress.step % every == 0):
            verdict = validate(chat)
            line |= {f"validation_{name}": value for name, value in verdict.metrics.items()}
            better = verdict.score is None or verdict.score > progress.best_score
            if better and not verdict.broken:
                progress.best_score, progress.best_step = verdict.score or 0.0, progress.step
                best = {name: p.detach().clone() for name, p in parameters.items()}
            line["broken"] = verdict.broken
            if verdict.broken and broken_in_a_row(progress.history) >= settings.patience:
                progress.stopped = progress.stopped or verdict.broken
        report(progress)
        if last or progress.stopped or progress.step % settings.checkpoint_every == 0:
            checkpoint()
            write_metrics(out / "metrics.jsonl", progress.history)
    progress.stopped = progress.stopped or "step limit reached"
    if best:
        _restore(parameters, best)
    else:
        progress.best_step = progress.step
    return progress


def begun_with(out: Path) -> int:
    """The batch size of the training that a folder holds; 0 if it holds none, or does not say."""
    if not (out / LAST).is_file():
        return 0
    saved = torch.load(out / LAST, map_location="cpu", weights_only=True)
    return Progress(**saved["progress"]).batch_size


def gradients(chat: ChatModel, objective: Objective, step: int) -> tuple[float, dict[str, float]]:
    """Adds a step's gradient to what is trained; the loss, and what to log of it."""
    if not isinstance(objective, InParts):
        loss, metrics = objective.loss(chat, step)
        loss.backward()
        return float(loss.detach()), metrics
    total, metrics = 0.0, {}
    for part, more in objective.parts(chat, step):
        part.backward()
        total, metrics = total + float(part.detach()), metrics | more
    return total, metrics


def broken_in_a_row(history: Sequence[Mapping[str, Any]]) -> int:
    """How many validations, up to the last, found the model broken one after the other."""
    found = [line["broken"] for line in history if "broken" in line]
    return sum(1 for _ in takewhile(bool, reversed(found)))


def write_metrics(path: Path, history: list[dict[str, Any]]) -> None:
    """One JSON line a training step; replaces the file, so that a resumed run repeats none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text("".join(json.dumps(line) + "\n" for line in history))
    os.replace(draft, path)


def _restore(parameters: Mapping[str, torch.nn.Parameter], weights: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Writes beside the file, then renames: a kill leaves the old checkpoint or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    try:
        torch.save(state, draft)
        os.replace(draft, path)
    except RuntimeError as error:  # what torch makes of a disk that takes no more
        raise Es2Error(
            f"{path.parent}: the disk is full or not to be written to; free space, then resume"
        ) from error
    finally:
        draft.unlink(missing_ok=True)


def save_adapter(chat: ChatModel, folder: Path) -> None:
    """Saves what was trained: a standard PEFT folder, or the whole model after full fine-tuning."""
    model: Any = chat.model
    model.save_pretrained(folder)
    if not isinstance(model, PeftModel):
        chat.tokenizer.save_pretrained(folder)
