"""Hardening a model: what is recorded of the base, when validation calls a halt, what is saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from es2.data.fitting import FitPrompts
from es2.defences.base import Material
from es2.defences.es2 import Es2, Es2Paper
from es2.defences.objective import Separation
from es2.defences.safety_sft import SafetySft
from es2.defences.trainer import Progress, TrainSettings, adapter_off
from es2.errors import Es2Error
from es2.judges.base import Judgement, Verdict
from es2.judges.refusal import refuses
from es2.models.generation import generate
from es2.models.loading import ChatModel, load
from es2.pipeline import harden as room
from es2.pipeline.harden import Guard, halved, harden, validator
from es2.separation.distance import Form, pair_distance
from es2.separation.probe import read_states
from small import BORDERLINE, HARMFUL, HARMLESS, LENIENT, STRUCTURED, contents
from tiny import with_lora

FIT = FitPrompts(HARMFUL[:12], HARMLESS[:12], HARMFUL[12:], HARMLESS[12:])
SETTINGS = TrainSettings(steps=3, batch_size=4, rank=2, lr=1e-3, validate_every=3)
TERMS = Es2(response_tokens=3, kl_threshold=100.0)
GUARD = Guard(prompts=4, tokens=4, **LENIENT)
Tiny = Callable[[str], ChatModel]


def separation(
    chat: ChatModel,
    layers: tuple[int, ...],
    terms: Es2,
    settings: TrainSettings = SETTINGS,
    told: Callable[[str], bool] = refuses,
) -> Separation:
    states = read_states(chat, FIT)
    return terms.prepare(Material(chat, FIT, states, layers, settings, told, Path()))


def answers(chat: ChatModel) -> list[list[int]]:
    return generate(chat, [chat.template.encode(text) for text in HARMLESS[:4]], 6)


def answer_logits(chat: ChatModel) -> torch.Tensor:
    ids = torch.tensor([chat.template.encode(HARMFUL[0])])
    with torch.no_grad():
        return chat.model(ids).logits


def test_the_hardened_model_is_the_one_that_was_saved(tiny: Tiny, tmp_path: Path) -> None:
    # A path that ends like a folder that does not exist yet.
    out = tmp_path / "new" / "run"
    hardened = harden(tiny("llama"), out, fit=FIT, defence=TERMS, settings=SETTINGS, guard=GUARD)
    assert hardened.adapter == out / "adapter"
    saved = load(str(tiny("llama").name), adapter=hardened.adapter, device="cpu")
    moved = (answer_logits(saved) - answer_logits(tiny("llama"))).abs().max()
    assert moved > 1e-2
    torch.testing.assert_close(
        answer_logits(saved), answer_logits(hardened.chat), rtol=1e-3, atol=1e-3
    )
    assert not hardened.chat.model.training


@pytest.mark.parametrize("family", ["gemma3", "phi3", "qwen3"])
def test_every_family_can_be_hardened(tiny: Tiny, tmp_path: Path, family: str) -> None:
    short = replace(SETTINGS, steps=1)
    hardened = harden(tiny(family), tmp_path, fit=FIT, defence=TERMS, settings=short, guard=GUARD)
    assert hardened.progress.step == 1
    assert hardened.chosen.layers[-1] == 4
    assert load(str(hardened.adapter), device="cpu").depth == 4


@pytest.mark.parametrize("form", ["raw", "relative", "centre"])
def test_distances_are_relative_to_those_of_the_base_in_batches(tiny: Tiny, form: Form) -> None:
    chat = tiny("llama")
    states = read_states(chat, FIT)
    objective = separation(chat, (2, 4), replace(TERMS, form=form))
    for layer in (2, 4):
        slow = []
        for start in range(3):  # 12 prompts of each class, 4 a batch
            bad = [states.harmful[index, layer - 1] for index in range(start, 12, 3)]
            good = [states.harmless[index, layer - 1] for index in range(start, 12, 3)]
            pairs = [float((one - other).norm()) for one in bad for other in good]
            centres = float((sum(bad) / 4 - sum(good) / 4).norm())
            slow.append(centres if form == "centre" else sum(pairs) / 16)
        assert objective.base_distance[layer] == pytest.approx(sum(slow) / 3, rel=1e-5)


def test_half_the_batch_sees_as_much_and_measures_the_bases_distances_anew(tiny: Tiny) -> None:
    chat = tiny("llama")
    material = Material(chat, FIT, read_states(chat, FIT), (2, 4), SETTINGS, refuses, Path())
    objective = halved(TERMS.prepare(material), TERMS, material)
    smaller = replace(SETTINGS, batch_size=2, steps=6, validate_every=6)
    assert objective.settings == smaller
    anew = TERMS.prepare(replace(material, settings=smaller))
    assert isinstance(objective, Separation) and objective.base_distance == anew.base_distance
    assert objective.base_distance != TERMS.prepare(material).base_distance
    sft = SafetySft(answer_tokens=2)
    assert halved(sft.prepare(material), sft, material).settings == smaller


def test_training_goes_on_with_the_batch_that_it_began_with(tiny: Tiny, tmp_path: Path) -> None:
    began = replace(SETTINGS, steps=6, batch_size=2, validate_every=0, checkpoint_every=3)
    short = replace(began, steps=3)

    def to(settings: TrainSettings, out: Path, resume: bool = False) -> Progress:
        chat = tiny("llama")
        return harden(
            chat, out, fit=FIT, defence=Es2Paper(), settings=settings, resume=resume
        ).progress

    whole = to(began, tmp_path / "whole")
    to(began, tmp_path / "cut")
    # What a kill at the third step of a training whose batch had been halved would have left.
    state = tmp_path / "cut" / "checkpoints" / "last.pt"
    to(short, tmp_path / "short")
    saved = torch.load(tmp_path / "short" / "checkpoints" / "last.pt", weights_only=True)
    saved["progress"]["stopped"] = ""
    torch.save(saved, state)
    given = replace(SETTINGS, validate_every=0)  # 3 steps of 4
    again = to(given, tmp_path / "cut", resume=True)
    assert (again.step, again.batch_size) == (whole.step, whole.batch_size) == (6, 2)


def test_no_more_is_recorded_than_training_will_see_and_that_from_everywhere(tiny: Tiny) -> None:
    chat = tiny("llama")
    settings = replace(SETTINGS, steps=1, batch_size=4)
    terms = replace(TERMS, consistent=False)
    objective = separation(chat, (4,), terms, settings)
    seen = [chat.template.encode(text) for text in (HARMLESS[0], HARMLESS[3], HARMLESS[6])]
    heads = [
        row[: first + 1]
        for row, first in zip(objective.harmless.rows, objective.harmless.firsts, strict=True)
    ]
    assert len(heads) == 4
    assert heads[:3] == seen


def test_a_base_that_refuses_little_is_named_and_none_of_its_compliance_is_kept(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = tiny("llama")
    plain = separation(chat, (4,), TERMS)
    only = chat.template.decode(plain.harmful.rows[0][plain.harmful.firsts[0] + 1 :])
    capsys.readouterr()
    kept = separation(chat, (4,), TERMS, told=lambda answer: answer == only)
    assert plain.harmful.rows[0] in kept.harmful.rows and len(kept.harmful) < len(plain.harmful) / 4
    said = " ".join(capsys.readouterr().err.split())
    assert f"refuses {len(kept.harmful)} of {len(plain.harmful)} harmful prompts" in said


def test_prompts_on_which_the_base_errs_are_left_out(tiny: Tiny) -> None:
    chat = tiny("llama")
    plain = separation(chat, (4,), replace(TERMS, consistent=False))
    text = {id(row): chat.template.decode(row[f + 1 :]) for row, f in zip(
        plain.harmful.rows + plain.harmless.rows,
        plain.harmful.firsts + plain.harmless.firsts,
        strict=True,
    )}  # fmt: skip
    # The base is said to refuse what it does answer so to every other harmful prompt.
    refused = {text[id(row)] for row in plain.harmful.rows[::2]}
    kept = separation(chat, (4,), TERMS, told=lambda answer: answer in refused)
    wanted = [row for row in plain.harmful.rows if text[id(row)] in refused]
    assert kept.harmful.rows == wanted and len(wanted) >= 6
    assert kept.harmless.rows == [r for r in plain.harmless.rows if text[id(r)] not in refused]
    begun = [row[f + 1] for row, f in zip(kept.harmful.rows, kept.harmful.firsts, strict=True)]
    assert kept.refusal is not None
    assert begun.count(kept.refusal) == max(begun.count(token) for token in begun)
    # A base that refuses nothing is separated all the same, and has no refusal to measure by.
    bare = separation(chat, (4,), TERMS, told=lambda answer: False)
    assert bare.harmful.rows == plain.harmful.rows
    assert bare.refusal is None


def test_without_its_adapter_a_model_is_its_base(tiny: Tiny) -> None:
    base = answer_logits(tiny("llama"))
    chat = with_lora(tiny("llama"), SETTINGS, scale=1.0)
    tuned = answer_logits(chat)
    assert not torch.allclose(tuned, base, atol=1e-2)
    with adapter_off(chat):
        torch.testing.assert_close(answer_logits(chat), base)
    torch.testing.assert_close(answer_logits(chat), tuned)


def verdicts(*groups: list[Verdict]) -> Callable[..., list[Judgement]]:
    made = [Judgement(v, v == "refused", 2.0, 0.0, 1.0) for group in groups for v in group]
    return lambda *args, **kwargs: made


SAFE: list[Verdict] = ["refused", "refused", "refused", "complied"]
OPEN: list[Verdict] = ["complied", "complied", "complied", "complied"]
ONE_REFUSED: list[Verdict] = ["refused", "complied", "complied", "complied"]


@pytest.mark.parametrize(
    ("harmful", "harmless", "said"),
    [
        (SAFE, OPEN, None),
        (["refused", "refused", "complied", "complied"], OPEN, "refusals of harmful prompts went"),
        # Babble is no answer: what is lost is coherence, not the refusal.
        (["refused", "refused", "incoherent", "complied"], OPEN, "coherence went"),
        (["refused"] * 4, OPEN, None),
        (SAFE, ["refused", "complied", "complied", "complied"], "refusals of harmless"),
        (SAFE, ["incoherent", "complied", "complied", "complied"], "coherence went"),
    ],
)
def test_validation_says_what_broke(
    tiny: Tiny,
    monkeypatch: pytest.MonkeyPatch,
    harmful: list[Verdict],
    harmless: list[Verdict],
    said: str | None,
) -> None:
    chat = tiny("llama")
    monkeypatch.setattr(room, "judge", verdicts(SAFE, OPEN))
    validate = validator(chat, FIT, Guard(prompts=4, tokens=2), (2, 4))
    monkeypatch.setattr(room, "judge", verdicts(harmful, harmless))
    found = validate(chat)
    if said is None:
        assert found.broken is None
    else:
        assert found.broken is not None and said in found.broken
    # Nothing has moved yet.
    assert found.score == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("harmless", "borderline", "structured", "said"),
    [
        (OPEN, OPEN, OPEN, None),
        (OPEN, ONE_REFUSED, OPEN, "refusals of borderline"),
        (OPEN, OPEN, ONE_REFUSED, "refusals of structured"),
        (ONE_REFUSED, OPEN, OPEN, "refusals of harmless"),
        (OPEN, ["incoherent", "complied", "complied", "complied"], OPEN, "coherence went"),
    ],
)
def test_borderline_and_structured_prompts_are_validated_apart(
    tiny: Tiny,
    monkeypatch: pytest.MonkeyPatch,
    harmless: list[Verdict],
    borderline: list[Verdict],
    structured: list[Verdict],
    said: str | None,
) -> None:
    held = {"held_borderline": BORDERLINE[:4], "held_structured": STRUCTURED[:4]}
    chat, fit = tiny("llama"), replace(FIT, **held)
    monkeypatch.setattr(room, "judge", verdicts(SAFE, OPEN, OPEN, OPEN))
    validate = validator(chat, fit, Guard(prompts=4, tokens=2), (2, 4))
    monkeypatch.setattr(room, "judge", verdicts(SAFE, harmless, borderline, structured))
    found = validate(chat)
    assert found.metrics["borderline_refused"] == borderline.count("refused") / 4
    assert found.metrics["structured_refused"] == structured.count("refused") / 4
    assert found.metrics["harmless_refused"] == harmless.count("refused") / 4
    assert (found.broken is None) if said is None else said in str(found.broken)


@pytest.mark.parametrize(
    ("refused", "broken", "lost"), [(0, False, False), (1, True, False), (2, True, True)]
)
def test_a_model_is_lost_where_it_went_twice_as_far_as_it_may(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, refused: int, broken: bool, lost: bool
) -> None:
    chat = tiny("llama")
    monkeypatch.setattr(room, "judge", verdicts(SAFE, OPEN))
    validate = validator(chat, FIT, Guard(prompts=4, tokens=2, refusal_rise=0.2), (2, 4))
    some: list[Verdict] = [*["refused"] * refused, *["complied"] * (4 - refused)]  # type: ignore[list-item]
    monkeypatch.setattr(room, "judge", verdicts(SAFE, some))
    found = validate(chat)
    assert (found.broken is not None, found.lost is not None) == (broken, lost)


def test_the_score_is_the_least_growth_of_the_distance_on_held_out_prompts(tiny: Tiny) -> None:
    chat = tiny("llama")
    held = (FIT.held_harmful, FIT.held_harmless)

    def distances(model: ChatModel) -> list[float]:
        groups = [room.prompt_states(model, texts) for texts in held]
        return [float(pair_distance(*(g[:, layer - 1] for g in groups))) for layer in (2, 4)]

    before = distances(chat)
    validate = validator(chat, FIT, Guard(prompts=8, tokens=2, **LENIENT), (2, 4))
    with torch.no_grad():
        for parameter in chat.blocks[1].parameters():
            parameter.mul_(1.3)
    ratios = [now / then for now, then in zip(distances(chat), before, strict=True)]
    assert ratios[0] != pytest.approx(ratios[1], rel=1e-2)
    assert validate(chat).score == pytest.approx(min(ratios), rel=1e-4)


def test_a_kill_while_saving_leaves_the_old_adapter(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = tiny("llama")
    short = replace(SETTINGS, steps=1, validate_every=0)
    harden(chat, tmp_path, fit=FIT, defence=TERMS, settings=short, guard=GUARD)
    before = contents(tmp_path / "adapter")

    def half(chat: ChatModel, folder: Path) -> None:
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "save_adapter", half)
    with pytest.raises(KeyboardInterrupt):
        harden(tiny("llama"), tmp_path, fit=FIT, defence=TERMS, settings=short, guard=GUARD)
    assert contents(tmp_path / "adapter") == before
    assert not [path for path in tmp_path.iterdir() if "draft" in path.name]


def test_full_fine_tuning_asks_for_float32(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    chat = load(str(tiny_folder("llama")), dtype=torch.bfloat16, device="cpu")
    with pytest.raises(Es2Error, match="float32"):
        harden(chat, tmp_path / "out", fit=FIT, settings=replace(SETTINGS, rank=0))
    assert not (tmp_path / "out").exists()
