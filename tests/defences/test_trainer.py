"""The training loop: batches, schedule, stops, checkpoints, and a resume that ends the same."""

from __future__ import annotations

import json
import resource
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from es2.defences import DEFENCES
from es2.defences.es2 import Es2
from es2.defences.objective import Separation
from es2.defences.reference import record
from es2.defences.trainer import (
    Progress,
    TrainSettings,
    Validation,
    attach_lora,
    batch_indices,
    learning_rate,
    save_adapter,
    train,
    trainable,
    unfreeze,
)
from es2.errors import Es2Error
from es2.models.forward import forward
from es2.models.loading import ChatModel, load
from tiny import CHATML, encode, make_tokenizer

SETTINGS = TrainSettings(
    steps=7, batch_size=2, lr=3e-3, warmup=2, rank=2, validate_every=0, checkpoint_every=2, seed=5
)
LAYERS = (2, 4)
Tiny = Callable[[str], ChatModel]


class Killed(BaseException):
    """Stands for a signal."""


@dataclass
class Chase:
    """A toy objective: last states at layer 2 shall become constant; it depends on the step."""

    rows: list[list[int]]
    killed_at: int | None = None
    poisoned_at: int | None = None
    stops_at: int | None = None
    settings: TrainSettings = SETTINGS
    steps: list[int] = field(default_factory=list)

    def loss(self, chat: ChatModel, step: int) -> tuple[Tensor, dict[str, float]]:
        if step == self.killed_at:
            raise Killed
        self.steps.append(step)
        rows = [self.rows[i] for i in batch_indices(len(self.rows), 2, step, 3)]
        out = forward(chat, rows, layers=[2], stop=True)
        last = out.at(out.states[2], range(len(rows)), [len(row) - 1 for row in rows])
        loss = (last - 1).square().mean()
        if step == self.poisoned_at:
            loss = loss * float("nan")
        return loss, {"chased": float(loss.detach())}

    def stop(self, history: Sequence[Mapping[str, float]]) -> str | None:
        return "far enough" if len(history) == self.stops_at else None


def fresh(tiny: Tiny, settings: TrainSettings = SETTINGS) -> ChatModel:
    return attach_lora(tiny("llama"), settings, LAYERS)


def weights_of(chat: ChatModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainable(chat).items()}


def assert_same_weights(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


def without_time(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: v for key, v in line.items() if key != "seconds"} for line in history]


# Batches


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 40), st.integers(0, 5))
def test_a_batch_is_a_function_of_the_step_alone(
    count: int, size: int, step: int, seed: int
) -> None:
    batch = batch_indices(count, size, step, seed)
    assert batch == batch_indices(count, size, step, seed)
    assert len(batch) == min(size, count)
    assert set(batch) <= set(range(count))


@given(count=st.integers(1, 30), size=st.integers(1, 12), seed=st.integers(0, 5))
def test_every_epoch_has_every_prompt_once(count: int, size: int, seed: int) -> None:
    size = min(size, count)
    # After `count` steps, exactly `size` epochs have passed.
    stream = [i for step in range(count) for i in batch_indices(count, size, step, seed)]
    for epoch in range(size):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert set(Counter(stream).values()) == {size}


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first, second = batch_indices(20, 20, 0, 0), batch_indices(20, 20, 1, 0)
    assert first != second
    assert first != batch_indices(20, 20, 0, 1)


# Schedule


def test_the_learning_rate_warms_up_then_falls_to_a_tenth() -> None:
    settings = TrainSettings(steps=100, warmup=10, lr=1.0)
    rates = [learning_rate(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1, abs=0.011)
    assert all(a <= b for a, b in pairwise(rates[:11]))
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_no_warm_up_starts_at_the_peak() -> None:
    assert learning_rate(0, TrainSettings(steps=5, warmup=0, lr=2.0)) == pytest.approx(2.0)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_rate_falls_in_a_line_to_the_share_that_is_asked_for(share: float) -> None:
    settings = TrainSettings(steps=1000, warmup=0, min_lr_rate=share, lr=3.0)
    rates = [learning_rate(step, settings) for step in range(1000)]
    assert rates[500] == pytest.approx(3.0 * (1 + share) / 2)
    assert rates[-1] == pytest.approx(3.0 * share, abs=0.004)


@pytest.mark.parametrize("name", ["circuit_breakers", "repbend", "lat"])
def test_what_was_published_with_a_constant_rate_has_one(name: str) -> None:
    published = DEFENCES.find(name).published
    assert {learning_rate(step, published) for step in range(published.steps)} == {published.lr}


# What moves


def test_a_fresh_adapter_changes_nothing_and_is_all_that_trains(own_chat: ChatModel) -> None:
    ids = torch.tensor([encode(own_chat)[0]])
    with torch.no_grad():
        before = own_chat.inner(ids).logits.clone()
        tuned = attach_lora(own_chat, SETTINGS, LAYERS)
        torch.testing.assert_close(tuned.model(ids).logits, before)
    assert trainable(tuned)
    assert all("lora_" in name for name in trainable(tuned))


def blocks_that_train(chat: ChatModel) -> set[int]:
    return {
        index
        for index, block in enumerate(chat.blocks, start=1)
        if any(parameter.requires_grad for parameter in block.parameters())
    }


@pytest.mark.parametrize(
    ("scope", "blocks"),
    [("all", {1, 2, 3, 4}), ("to-terminal", {1, 2, 3}), ("critical", {2, 3})],
)
def test_the_scope_chooses_the_blocks_that_train(
    own_chat: ChatModel, scope: Any, blocks: set[int]
) -> None:
    linear = sum(isinstance(module, torch.nn.Linear) for module in own_chat.blocks[1].modules())
    tuned = attach_lora(own_chat, replace(SETTINGS, scope=scope), (2, 3))
    assert blocks_that_train(tuned) == blocks
    adapted = sum("lora_A" in name for name in trainable(tuned))
    assert adapted == linear * len(blocks)
    assert linear >= 4


def test_the_scope_reaches_the_linear_maps_of_gpt2() -> None:
    tokenizer = make_tokenizer(CHATML)
    shape = GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=4, n_head=2)
    chat = ChatModel("gpt2", GPT2LMHeadModel(shape), tokenizer, batch_size=2)
    tuned = attach_lora(chat, replace(SETTINGS, scope="critical"), (2, 3))
    assert blocks_that_train(tuned) == {2, 3}


@pytest.mark.parametrize("scope", ["all", "critical"])
def test_targets_choose_the_linear_maps_that_train(own_chat: ChatModel, scope: Any) -> None:
    tuned = attach_lora(own_chat, replace(SETTINGS, scope=scope, targets=("o_proj",)), (2, 3))
    assert blocks_that_train(tuned) == ({1, 2, 3, 4} if scope == "all" else {2, 3})
    assert all(".o_proj." in name for name in trainable(tuned))


def test_a_target_that_no_block_has_is_told_with_those_there_are(tiny: Tiny) -> None:
    with pytest.raises(Es2Error, match=r"called 'query' in the blocks .*; there are .*q_proj"):
        attach_lora(tiny("llama"), replace(SETTINGS, targets=("q_proj", "query")), (2, 3))


def test_the_seed_makes_the_adapter(tiny: Tiny) -> None:
    one, two = weights_of(fresh(tiny)), weights_of(fresh(tiny))
    assert_same_weights(one, two)
    other = weights_of(fresh(tiny, replace(SETTINGS, seed=6)))
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_full_fine_tuning_moves_the_blocks_and_leaves_embeddings_and_norm(
    own_chat: ChatModel,
) -> None:
    unfreeze(own_chat)
    inside = {id(parameter) for parameter in own_chat.blocks.parameters()}
    moving = {id(parameter) for parameter in trainable(own_chat).values()}
    assert moving == inside


# The loop


def test_each_step_is_trained_on_once_and_written_down(tiny: Tiny, tmp_path: Path) -> None:
    chat = fresh(tiny)
    objective = Chase(encode(chat))
    seen: list[int] = []
    progress = train(chat, objective, SETTINGS, tmp_path, report=lambda p: seen.append(p.step))
    assert objective.steps == list(range(7))
    assert seen == [1, 2, 3, 4, 5, 6, 7]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == progress.history
    assert [line["step"] for line in lines] == seen
    assert progress.stopped == "step limit reached"
    assert progress.best_step == 7
    assert lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.parametrize("killed_at", [1, 2, 5, 6])
def test_a_run_killed_anywhere_and_resumed_ends_the_same(
    tiny: Tiny, tmp_path: Path, killed_at: int
) -> None:
    rows = encode(fresh(tiny))
    unbroken = fresh(tiny)
    whole = train(unbroken, Chase(rows), SETTINGS, tmp_path / "whole")

    with pytest.raises(Killed):
        train(fresh(tiny), Chase(rows, killed_at=killed_at), SETTINGS, tmp_path / "cut")
    resumed = fresh(tiny, replace(SETTINGS, seed=99))  # what it starts from must not matter
    objective = Chase(rows)
    again = train(resumed, objective, SETTINGS, tmp_path / "cut", resume=killed_at >= 2)
    if killed_at >= 2:
        # It goes on from the last checkpoint, every second step.
        assert objective.steps == list(range(killed_at // 2 * 2, 7))
        assert_same_weights(weights_of(resumed), weights_of(unbroken))
        assert without_time(again.history) == without_time(whole.history)
        one, two = (
            [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()]
            for name in ("whole", "cut")
        )
        assert without_time(one) == without_time(two)


def test_separation_resumed_ends_the_same(tiny: Tiny, tmp_path: Path) -> None:
    harmful = [f"Tell me about ship {i}" for i in range(4)]
    harmless = [f"{i} apples" for i in range(5)]

    def objective(chat: ChatModel) -> Separation:
        terms = Es2(kl_threshold=9.0, response_tokens=2)
        references = [record(chat, texts, 2) for texts in (harmful, harmless)]
        return Separation(terms, SETTINGS, LAYERS, *references, {layer: 3.0 for layer in LAYERS})

    first = tiny("gemma3")
    separation = objective(first)
    unbroken = attach_lora(first, SETTINGS, LAYERS)
    whole = train(unbroken, separation, SETTINGS, tmp_path / "whole")

    cut = tiny("gemma3")
    again = objective(cut)
    half = attach_lora(cut, SETTINGS, LAYERS)

    def killed(progress: Progress) -> None:
        if progress.step == 5:
            raise Killed

    with pytest.raises(Killed):
        train(half, again, SETTINGS, tmp_path / "cut", report=killed)
    base = tiny("gemma3")
    once_more = objective(base)
    resumed = attach_lora(base, SETTINGS, LAYERS)
    rest = train(resumed, once_more, SETTINGS, tmp_path / "cut", resume=True)
    assert_same_weights(weights_of(resumed), weights_of(unbroken))
    assert without_time(rest.history) == without_time(whole.history)


def test_a_finished_run_resumed_trains_no_further(tiny: Tiny, tmp_path: Path) -> None:
    chat = fresh(tiny)
    rows = encode(chat)
    train(chat, Chase(rows), SETTINGS, tmp_path)
    again, objective = fresh(tiny), Chase(rows)
    progress = train(again, objective, SETTINGS, tmp_path, resume=True)
    assert objective.steps == []
    assert progress.step == 7
    assert_same_weights(weights_of(again), weights_of(chat))


def test_without_resume_an_old_checkpoint_is_not_used(tiny: Tiny, tmp_path: Path) -> None:
    rows = encode(fresh(tiny))
    train(fresh(tiny), Chase(rows), SETTINGS, tmp_path)
    objective = Chase(rows)
    train(fresh(tiny), objective, SETTINGS, tmp_path)
    assert objective.steps == list(range(7))


def test_a_loss_that_is_not_a_number_is_an_error_of_one_line(tiny: Tiny, tmp_path: Path) -> None:
    chat = fresh(tiny)
    with pytest.raises(Es2Error, match=r"diverged at step 4 .*loss nan") as error:
        train(chat, Chase(encode(chat), poisoned_at=3), SETTINGS, tmp_path)
    assert "\n" not in str(error.value)
    assert all(torch.isfinite(weights).all() for weights in weights_of(chat).values())


def test_an_objective_that_stops_ends_training_and_says_why(tiny: Tiny, tmp_path: Path) -> None:
    chat = fresh(tiny)
    progress = train(chat, Chase(encode(chat), stops_at=3), SETTINGS, tmp_path)
    assert (progress.step, progress.stopped) == (3, "far enough")
    again, objective = fresh(tiny), Chase(encode(chat))
    resumed = train(again, objective, SETTINGS, tmp_path, resume=True)
    assert objective.steps == []
    assert resumed.stopped == "far enough"
    assert_same_weights(weights_of(again), weights_of(chat))


class InTurns(Chase):
    """The same loss in two parts; the second asks whether the first has been gone back through."""

    def parts(self, chat: ChatModel, step: int) -> Iterator[tuple[Tensor, dict[str, float]]]:
        loss, metrics = Chase.loss(self, chat, step)
        yield 0.25 * loss, metrics
        assert any(p.grad is not None for p in trainable(chat).values())
        yield 0.75 * Chase.loss(self, chat, step)[0], {"second": 2.0}


def test_a_loss_in_parts_trains_as_their_sum_and_one_is_gone_back_through_before_the_next(
    tiny: Tiny, tmp_path: Path
) -> None:
    one, two = fresh(tiny), fresh(tiny)
    rows = encode(one)
    whole = train(one, Chase(rows), SETTINGS, tmp_path / "whole")
    parts = train(two, InTurns(rows), SETTINGS, tmp_path / "parts")
    for line, other in zip(whole.history, parts.history, strict=True):
        assert other["loss"] == pytest.approx(line["loss"], rel=1e-4)
        assert other["second"] == 2.0 and other["chased"] == pytest.approx(line["chased"], rel=1e-4)
    for name, weights in weights_of(one).items():
        torch.testing.assert_close(weights_of(two)[name], weights, rtol=1e-3, atol=1e-5)


def validation_of(scores: Mapping[int, float], broken_at: Collection[int] = ()) -> Any:
    """Says these scores in turn, one every second step."""
    calls: Iterator[tuple[int, float]] = iter(scores.items())

    def validate(chat: ChatModel) -> Validation:
        step, score = next(calls)
        why = "refusals went" if step in broken_at else None
        return Validation({"score": score}, score, why)

    return validate


def test_the_best_validated_weights_are_left_in_the_model(tiny: Tiny, tmp_path: Path) -> None:
    settings = replace(SETTINGS, validate_every=2)
    rows = encode(fresh(tiny))
    stopped = fresh(tiny)
    train(stopped, Chase(rows, stops_at=4), SETTINGS, tmp_path / "four steps")

    chat = fresh(tiny)
    scores = {2: 1.0, 4: 3.0, 6: 2.0, 7: 2.5}
    progress = train(chat, Chase(rows), settings, tmp_path / "run", validate=validation_of(scores))
    assert (progress.best_step, progress.best_score) == (4, 3.0)
    assert_same_weights(weights_of(chat), weights_of(stopped))
    validated = {line["step"]: line.get("validation_score") for line in progress.history}
    assert {step: score for step, score in validated.items() if score is not None} == scores


def test_a_model_that_no_step_improved_is_left_as_it_came(tiny: Tiny, tmp_path: Path) -> None:
    chat = fresh(tiny)
    before = weights_of(chat)
    progress = train(
        chat,
        Chase(encode(chat)),
        replace(SETTINGS, validate_every=2, patience=1),
        tmp_path,
        validate=validation_of({2: 2.0}, broken_at={2}),
    )
    assert (progress.step, progress.best_step) == (2, 0)
    assert_same_weights(weights_of(chat), before)


def test_validation_that_is_switched_off_takes_no_training_back(tiny: Tiny, tmp_path: Path) -> None:
    chat = fresh(tiny)
    before = weights_of(chat)
    progress = train(chat, Chase(encode(chat)), SETTINGS, tmp_path, validate=validation_of({}))
    assert progress.best_step == 7
    assert not all(torch.equal(before[name], now) for name, now in weights_of(chat).items())


def test_the_best_weights_survive_a_kill(tiny: Tiny, tmp_path: Path) -> None:
    settings = replace(SETTINGS, validate_every=2)
    rows = encode(fresh(tiny))
    whole = fresh(tiny)
    scores = {2: 1.0, 4: 3.0, 6: 2.0, 7: 2.5}
    train(whole, Chase(rows), settings, tmp_path / "a", validate=validation_of(scores))
    with pytest.raises(Killed):
        train(
            fresh(tiny),
            Chase(rows, killed_at=5),
            settings,
            tmp_path / "b",
            validate=validation_of(scores),
        )
    resumed = fresh(tiny)
    rest = validation_of({6: 2.0, 7: 2.5})
    progress = train(resumed, Chase(rows), settings, tmp_path / "b", resume=True, validate=rest)
    assert progress.best_step == 4
    assert_same_weights(weights_of(resumed), weights_of(whole))


@pytest.mark.parametrize(
    ("patience", "broken_at", "last", "why", "best"),
    [
        (1, {4}, 4, "refusals went", 2),
        (2, {4, 6}, 6, "refusals went", 2),
        (2, {4}, 7, "step limit reached", 6),  # it mended
        (2, {2, 6}, 7, "step limit reached", 4),  # never twice in a row
        (3, {2, 4}, 7, "step limit reached", 6),
    ],
)
def test_a_model_that_stays_broken_for_so_many_validations_is_trained_no_further(
    tiny: Tiny, tmp_path: Path, patience: int, broken_at: set[int], last: int, why: str, best: int
) -> None:
    chat = fresh(tiny)
    progress = train(
        chat,
        Chase(encode(chat)),
        replace(SETTINGS, validate_every=2, patience=patience),
        tmp_path,
        validate=validation_of({2: 2.0, 4: 3.0, 6: 4.0, 7: 1.0}, broken_at),
    )
    assert (progress.step, progress.stopped, progress.best_step) == (last, why, best)


def test_patience_counts_on_over_a_kill(tiny: Tiny, tmp_path: Path) -> None:
    settings = replace(SETTINGS, validate_every=2, patience=2)
    rows = encode(fresh(tiny))
    scores = {2: 2.0, 4: 3.0}
    with pytest.raises(Killed):
        train(
            fresh(tiny),
            Chase(rows, killed_at=5),
            settings,
            tmp_path,
            validate=validation_of(scores, {4}),
        )
    rest = validation_of({6: 4.0}, {6})
    progress = train(fresh(tiny), Chase(rows), settings, tmp_path, resume=True, validate=rest)
    assert (progress.step, progress.stopped, progress.best_step) == (6, "refusals went", 2)


# Files


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Within the context no file grows beyond so many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def cut_run(tiny: Tiny, tmp_path: Path) -> tuple[Path, list[list[int]]]:
    """A run that was killed after its first checkpoint, and its rows."""
    chat = fresh(tiny)
    rows = encode(chat)
    with pytest.raises(Killed):
        train(chat, Chase(rows, killed_at=3), SETTINGS, tmp_path)
    return tmp_path / "checkpoints" / "last.pt", rows


def test_a_full_disk_leaves_the_old_checkpoint_whole(
    tiny: Tiny, tmp_path: Path, cut_run: tuple[Path, list[list[int]]]
) -> None:
    state, rows = cut_run
    before = state.read_bytes()
    with disk_of(len(before) // 2), pytest.raises((Es2Error, OSError, RuntimeError)):
        train(fresh(tiny), Chase(rows), SETTINGS, tmp_path, resume=True)
    assert state.read_bytes() == before
    assert [path.name for path in state.parent.iterdir()] == ["last.pt"]

    resumed, unbroken = fresh(tiny), fresh(tiny)
    train(resumed, Chase(rows), SETTINGS, tmp_path, resume=True)
    train(unbroken, Chase(rows), SETTINGS, tmp_path / "whole")
    assert_same_weights(weights_of(resumed), weights_of(unbroken))


def test_a_full_disk_is_an_error_of_one_line(
    tiny: Tiny, tmp_path: Path, cut_run: tuple[Path, list[list[int]]]
) -> None:
    state, rows = cut_run
    with disk_of(state.stat().st_size // 2), pytest.raises(Es2Error) as error:
        train(fresh(tiny), Chase(rows), SETTINGS, tmp_path, resume=True)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def trained(own_chat: ChatModel, out: Path) -> ChatModel:
    chat = attach_lora(own_chat, SETTINGS, LAYERS)
    train(chat, Chase(encode(chat)), SETTINGS, out)
    return chat


def test_a_saved_adapter_loads_with_plain_peft_and_gives_the_same_logits(
    own_chat: ChatModel, tiny_folder: Callable[[str], Path], family: str, tmp_path: Path
) -> None:
    chat = trained(own_chat, tmp_path)
    save_adapter(chat, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tiny_folder(family))
    plain = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    ids = torch.tensor([encode(chat)[1]])
    with torch.no_grad():
        expected = chat.model(ids).logits
        torch.testing.assert_close(plain(ids).logits, expected, rtol=1e-4, atol=1e-4)
        with plain.disable_adapter():
            assert not torch.allclose(plain(ids).logits, expected, atol=1e-3)


def test_a_saved_adapter_loads_with_es2_by_its_folder_alone(
    own_chat: ChatModel, tmp_path: Path
) -> None:
    chat = trained(own_chat, tmp_path)
    save_adapter(chat, tmp_path / "adapter")
    ids = torch.tensor([encode(chat)[1]])
    with torch.no_grad():
        expected = chat.model(ids).logits
        found = load(str(tmp_path / "adapter"), device="cpu").inner(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_fully_tuned_model_is_saved_whole(tiny: Tiny, tmp_path: Path) -> None:
    chat = tiny("qwen2")
    unfreeze(chat)
    train(chat, Chase(encode(chat)), replace(SETTINGS, rank=0), tmp_path)
    save_adapter(chat, tmp_path / "model")
    ids = torch.tensor([encode(chat)[1]])
    with torch.no_grad():
        found = load(str(tmp_path / "model"), device="cpu").inner(ids).logits
        torch.testing.assert_close(found, chat.inner(ids).logits)
        assert not torch.allclose(found, tiny("qwen2").inner(ids).logits, atol=1e-3)
