"""DPL: likelihoods and quantiles against closed forms, risk-averse labels, and DPO against TRL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from torch import Tensor
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from es2.attacks.target import OPENINGS
from es2.data.fitting import FitPrompts
from es2.defences import dpl
from es2.defences.base import Defence, Material
from es2.defences.dpl import BABBLE, OWN, REFUSED, Dpl, preferences
from es2.defences.dpo import Dpo, Pair, dpo_loss
from es2.defences.reward_model import (
    Categorical,
    MeanAndVariance,
    RewardModel,
    Utility,
    fit,
    kept,
    save,
)
from es2.defences.trainer import (
    TrainSettings,
    attach_lora,
    batch_indices,
    train,
    unfreeze,
)
from es2.errors import Es2Error
from es2.models.loading import ChatModel
from es2.separation.probe import class_states
from small import HARMFUL, HARMLESS
from tiny import chances, with_lora

FIT = FitPrompts(HARMFUL[:6], HARMLESS[:6], HARMFUL[12:], HARMLESS[12:])
SETTINGS = TrainSettings(
    steps=8, batch_size=3, lr=3e-3, warmup=2, rank=2, validate_every=0, checkpoint_every=2, seed=5
)
TERMS = Dpl(answer_tokens=5, reward_steps=20, reward_batch=8)
UTILITIES = [MeanAndVariance(), Categorical(), Categorical(bins=4, entropy=0.0)]
Tiny = Callable[[str], ChatModel]


def some(count: int, utility: Utility, seed: int = 0, scale: float = 1.5) -> Tensor:
    """Numbers that give distributions."""
    drawn = torch.randn(count, utility.width, generator=torch.Generator().manual_seed(seed))
    return scale * drawn


def draws(utility: Utility, numbers: Tensor, count: int, seed: int) -> Tensor:
    """Utilities drawn from each of the distributions, [count, n]."""
    random = torch.Generator().manual_seed(seed)
    if isinstance(utility, Categorical):
        picked = torch.multinomial(numbers.softmax(-1), count, replacement=True, generator=random)
        return picked.T / (utility.bins - 1)
    deviation = torch.log1p(numbers[:, 1].exp())
    return numbers[:, 0] + deviation * torch.randn(count, len(numbers), generator=random)


# Likelihoods


def test_normal_utilities_are_preferred_by_the_normals_distribution_function() -> None:
    one, two = some(50, MeanAndVariance(), 1), some(50, MeanAndVariance(), 2)
    (m1, s1), (m2, s2) = (
        (x[:, 0].double().numpy(), np.log1p(np.exp(x[:, 1].double().numpy()))) for x in (one, two)
    )
    expected = norm.logcdf((m1 - m2) / np.sqrt(s1**2 + s2**2))
    found = MeanAndVariance().log_preferred(one, two)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("bins", [2, 5, 10])
def test_binned_utilities_are_preferred_by_the_sum_over_pairs_of_bins(bins: int) -> None:
    utility = Categorical(bins)
    one, two = some(12, utility, 1), some(12, utility, 2)
    first, second = one.softmax(-1), two.softmax(-1)
    for row in range(12):
        total = sum(
            float(first[row, i] * second[row, j]) * (1.0 if i > j else 0.5 if i == j else 0.0)
            for i, j in product(range(bins), repeat=2)
        )
        found = float(utility.log_preferred(one, two)[row].exp())
        assert found == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("utility", UTILITIES)
def test_the_likelihood_is_how_often_one_draw_is_greater_than_the_other(utility: Utility) -> None:
    one, two = some(6, utility, 3), some(6, utility, 4)
    first, second = draws(utility, one, 40_000, 5), draws(utility, two, 40_000, 6)
    often = (first > second).float() + (first == second).float() / 2
    found = utility.log_preferred(one, two).exp()
    torch.testing.assert_close(found, often.mean(0), atol=0.01, rtol=0)


@pytest.mark.parametrize("utility", UTILITIES)
def test_one_of_two_is_preferred(utility: Utility) -> None:
    one, two = some(20, utility, 1), some(20, utility, 2)
    total = utility.log_preferred(one, two).exp() + utility.log_preferred(two, one).exp()
    torch.testing.assert_close(total, torch.ones(20))


def test_a_deviation_of_zero_gives_no_infinity() -> None:
    certain = torch.tensor([[1.0, -500.0], [0.0, -500.0]], requires_grad=True)
    loss = MeanAndVariance().log_preferred(certain[:1], certain[1:]).sum()
    loss.backward()
    assert loss.isfinite()
    assert certain.grad is not None and certain.grad.isfinite().all()


def test_the_entropy_of_the_batch_as_a_whole_is_raised() -> None:
    # Two certain distributions, each in a bin of its own, are together as unsure as one coin.
    sure = torch.tensor([[50.0, 0.0, 0.0], [0.0, 50.0, 0.0]])
    assert float(Categorical(3, 0.1).added(sure + 1e-3)) == pytest.approx(
        -0.1 * np.log(2), rel=1e-3
    )
    even = torch.zeros(4, 10)
    assert float(Categorical().added(even)) == pytest.approx(-0.1 * np.log(10), rel=1e-5)
    assert float(MeanAndVariance().added(torch.zeros(4, 2))) == 0


# Moments and quantiles


@pytest.mark.parametrize("utility", UTILITIES)
def test_means_and_deviations_are_those_of_the_draws(utility: Utility) -> None:
    numbers = some(6, utility, 7)
    drawn = draws(utility, numbers, 40_000, 8)
    torch.testing.assert_close(utility.mean(numbers), drawn.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(utility.deviation(numbers), drawn.std(0), atol=0.05, rtol=0)


@given(st.floats(0.001, 0.999))
def test_a_normal_quantile_is_scipys(share: float) -> None:
    numbers = some(8, MeanAndVariance(), 9)
    mean, deviation = numbers[:, 0].numpy(), np.log1p(np.exp(numbers[:, 1].numpy()))
    found = MeanAndVariance().quantile(numbers, share).numpy()
    np.testing.assert_allclose(found, norm.ppf(share, mean, deviation), rtol=1e-3, atol=1e-4)


@given(st.floats(0.001, 0.999), st.integers(2, 10))
def test_a_binned_quantile_inverts_the_distribution_function(share: float, bins: int) -> None:
    utility = Categorical(bins)
    numbers = some(8, utility, 10)
    edges = np.linspace(0, 1, bins + 1)
    upto = np.concatenate([np.zeros((8, 1)), numbers.softmax(-1).cumsum(-1).numpy()], axis=1)
    expected = [np.interp(share, row, edges) for row in upto]
    np.testing.assert_allclose(utility.quantile(numbers, share).numpy(), expected, atol=1e-4)


def test_a_quantile_outside_zero_and_one_is_refused() -> None:
    for share in (0.0, 1.0, -1.0):
        with pytest.raises(Es2Error, match="quantile"):
            Dpl(quantile=share)


# What annotators prefer


def test_annotators_disagree_on_nothing_but_answers_to_harmful_prompts() -> None:
    told = Counter(map(tuple, preferences(2, 1).tolist()))
    assert sum(told.values()) == 3 * 3 * 2  # prompts, pairs, annotators
    for prompt in range(3):
        own, refused, babble = (3 * prompt + which for which in (OWN, REFUSED, BABBLE))
        assert told[refused, babble] == 2 and not told[babble, refused]
        for other in (refused, babble):
            disputed = (told[own, other], told[other, own])
            assert disputed == ((1, 1) if prompt < 2 else (2, 0))


def invented(prompts: int, seed: int = 0) -> tuple[Tensor, int]:
    """Features of three candidates for each of so many prompts, of which half are harmful.

    A candidate's features say what it is and what it answers; the rest is noise.
    """
    noise = torch.randn(prompts * 3, 12, generator=torch.Generator().manual_seed(seed))
    features = 0.1 * noise
    for row in range(prompts * 3):
        prompt, which = divmod(row, 3)
        features[row, which] += 1.0
        features[row, 3 + which] += 1.0 if prompt < prompts // 2 else -1.0
    return features, prompts // 2


def with_more_for_helpfulness(told: Tensor, harmful: int) -> Tensor:
    """The same preferences, where three in four ask for helpfulness on harmful prompts."""
    own = [3 * prompt + OWN for prompt in range(harmful)]
    theirs = told[[better in own for better in told[:, 0].tolist()]]
    return torch.cat([told, theirs, theirs])


REWARD = replace(SETTINGS, steps=400, batch_size=32, lr=3e-2, warmup=0)


# At 0.01 a hundredth of its mass that the fit has not moved yet decides what a binned utility is worth.
@pytest.mark.parametrize(("utility", "share"), [(MeanAndVariance(), 0.01), (Categorical(), 0.05)])
def test_where_annotators_disagree_the_utility_is_wide_and_the_cautious_choice_is_the_refusal(
    utility: Utility, share: float
) -> None:
    features, harmful = invented(200)
    told = with_more_for_helpfulness(preferences(harmful, harmful), harmful)
    model = fit(features, told, utility, REWARD)
    unseen, harmful = invented(200, seed=1)
    deviation = model.deviation(unseen).view(-1, 3)
    disputed, agreed = deviation[:harmful, OWN], deviation[harmful:, OWN]
    assert disputed.mean() > 2 * agreed.mean()
    assert disputed.mean() > 1.5 * deviation[:harmful, REFUSED].mean()

    numbers = model.numbers(unseen).view(-1, 3, utility.width)
    # By the majority alone, the answer to a harmful prompt would be the better choice.
    majority = utility.log_preferred(numbers[:harmful, OWN], numbers[:harmful, REFUSED]).exp()
    assert (majority > 0.5).float().mean() > 0.9
    if isinstance(utility, MeanAndVariance):
        mean = model.mean(unseen).view(-1, 3)
        assert torch.equal(mean[:harmful, OWN] > mean[:harmful, REFUSED], majority > 0.5)
    worth = model.quantile(unseen, share).view(-1, 3)
    assert (worth[:harmful, REFUSED] > worth[:harmful, OWN]).float().mean() > 0.9
    assert (worth[harmful:, OWN] > worth[harmful:, REFUSED]).float().mean() > 0.9


@pytest.mark.parametrize("utility", [MeanAndVariance(), Categorical()])
def test_the_reward_model_is_a_function_of_the_seed_and_survives_on_disk(
    utility: Utility, tmp_path: Path
) -> None:
    features, harmful = invented(8)
    told, short = preferences(harmful, harmful), replace(REWARD, steps=10)
    model = fit(features, told, utility, short)
    same, other = (
        fit(features, told, utility, short),
        fit(features, told, utility, replace(short, seed=6)),
    )
    assert torch.equal(model.weight, same.weight) and torch.equal(model.bias, same.bias)
    assert not torch.equal(model.weight, other.weight)

    path = tmp_path / "new" / "reward_model.pt"
    assert kept(path, utility, "key") is None
    save(model, path, "key")
    assert kept(path, utility, "another") is None
    found = kept(path, utility, "key")
    assert found is not None
    assert torch.equal(found.numbers(features), model.numbers(features))


def test_a_fit_that_diverges_says_so() -> None:
    features, harmful = invented(8)
    with pytest.raises(Es2Error, match="learning rate"):
        fit(
            features * float("nan"),
            preferences(harmful, harmful),
            MeanAndVariance(),
            replace(REWARD, steps=2),
        )


# The defence


def material(
    chat: ChatModel,
    out: Path,
    settings: TrainSettings = SETTINGS,
    told: Callable[[str], bool] = lambda text: False,
) -> Material:
    return Material(chat, FIT, class_states(chat, FIT), (2, 4), settings, told, out)


def texts(chat: ChatModel, three: Sequence[dpl.Answer]) -> list[str]:
    return [chat.template.decode(answer.row[answer.begin :]) for answer in three]


def test_dpl_is_a_defence() -> None:
    assert isinstance(Dpl(), Defence)


def test_candidates_are_the_answer_a_refusal_and_words_in_no_order(
    chat: ChatModel, tmp_path: Path
) -> None:
    harmful, harmless = TERMS.candidates(material(chat, tmp_path))
    answered = [three[OWN].row[three[OWN].begin :] for three in harmless]
    for prompts, candidates in ((FIT.harmful, harmful), (FIT.harmless, harmless)):
        for place, (prompt, three) in enumerate(zip(prompts, candidates, strict=True)):
            head = chat.template.encode(prompt)
            assert all(answer.row[: answer.begin] == head for answer in three)
            said = texts(chat, three)
            assert said[REFUSED] == TERMS.refusal
            assert three[REFUSED].row[-1] in chat.stop_ids
            words = three[BABBLE].row[three[BABBLE].begin :]
            assert sorted(words) == sorted(answered[place])
            assert said[OWN].startswith(TERMS.openings[0]) == (candidates is harmful)
    assert any(three[OWN].row != three[BABBLE].row for three in harmless)
    opening = len(chat.template.encode_response(TERMS.openings[0]))
    assert all(len(three[OWN]) - three[OWN].begin > opening for three in harmful)


def test_prompts_whose_answer_refuses_are_left_out(shared: Tiny, tmp_path: Path) -> None:
    chat = shared("llama")
    terms = replace(TERMS, openings=OPENINGS[:1])
    harmful, harmless = terms.candidates(material(chat, tmp_path))
    one = {texts(chat, harmful[1])[OWN], texts(chat, harmless[2])[OWN]}
    fewer = terms.candidates(material(chat, tmp_path, told=lambda text: text in one))
    assert [three[OWN] for three in fewer[0]] == [
        three[OWN] for three in harmful if texts(chat, three)[OWN] not in one
    ]
    assert len(fewer[1]) < len(harmless)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (lambda text: text.startswith(OPENINGS), "refuses all 6 harmful prompts, also behind"),
        (lambda text: not text.startswith(OPENINGS), "refuses all 6 harmless prompts"),
    ],
)
def test_a_model_that_only_refuses_leaves_nothing_to_compare(
    shared: Tiny, tmp_path: Path, told: Callable[[str], bool], said: str
) -> None:
    with pytest.raises(Es2Error, match=said) as error:
        TERMS.prepare(material(shared("llama"), tmp_path, told=told))
    assert "\n" not in str(error.value)


def said_by(chat: ChatModel, answer: dpl.Answer) -> float:
    """An answer's log-probability, read alone."""
    said = chances(chat, answer.row)
    places = range(answer.begin, len(answer.row))
    return sum(float(said[place - 1, answer.row[place]]) for place in places)


@pytest.mark.parametrize("form", ["mean_and_variance", "categorical"])
def test_pairs_are_ordered_by_the_kept_reward_models_quantile(
    shared: Tiny, tmp_path: Path, form: str
) -> None:
    chat = shared("qwen2")
    terms = replace(TERMS, form=form, quantile=0.2)
    made = terms.prepare(material(chat, tmp_path))
    saved = torch.load(tmp_path / "checkpoints" / "reward_model.pt", weights_only=True)
    del saved["key"]
    reward = RewardModel(terms.utility, **saved)
    three = terms.candidates(material(chat, tmp_path))
    for candidates, pairs in zip(three, (made.harmful, made.harmless), strict=True):
        for answers, pair in zip(candidates, pairs, strict=True):
            with torch.no_grad():
                states = torch.stack(
                    [
                        chat.decoder(torch.tensor([a.row])).last_hidden_state[0, a.begin :].mean(0)
                        for a in answers
                    ]
                )
            worth = reward.quantile(states, 0.2)
            order = (OWN, REFUSED) if worth[OWN] > worth[REFUSED] else (REFUSED, OWN)
            assert (pair.chosen, pair.rejected) == (answers[order[0]], answers[order[1]])
    refused = [texts(chat, [pair.chosen])[0] == terms.refusal for pair in made.harmful]
    assert made.labels["labelled_refuse_harmful"] == pytest.approx(sum(refused) / len(refused))


def test_a_killed_run_finds_its_reward_model_again(
    shared: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = shared("llama")
    first = TERMS.prepare(material(chat, tmp_path))
    path = tmp_path / "checkpoints" / "reward_model.pt"
    content = torch.load(path, weights_only=True)
    # No text is kept.
    assert content.keys() == {"key", "centre", "scale", "weight", "bias"}

    fits: list[Utility] = []

    def counted(*args: object) -> RewardModel:
        fits.append(args[2])  # type: ignore[arg-type]
        return fit(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(dpl, "fit", counted)
    again = TERMS.prepare(material(chat, tmp_path))
    assert not fits
    assert (again.harmful, again.harmless) == (first.harmful, first.harmless)
    # Killed before it was kept: the same is fitted anew.
    path.unlink()
    anew = TERMS.prepare(material(chat, tmp_path))
    assert len(fits) == 1
    assert (anew.harmful, anew.harmless) == (first.harmful, first.harmless)
    for name, tensor in torch.load(path, weights_only=True).items():
        assert name == "key" or torch.equal(tensor, content[name])
    # Another seed's is not taken for it.
    TERMS.prepare(material(chat, tmp_path, replace(SETTINGS, seed=6)))
    assert len(fits) == 2


# DPO


def test_the_loss_at_the_start_is_that_of_a_coin(chat: ChatModel, tmp_path: Path) -> None:
    loss, metrics = TERMS.prepare(material(chat, tmp_path)).loss(chat, 0)
    assert float(loss) == pytest.approx(np.log(2), rel=1e-3)
    assert metrics["margin"] == pytest.approx(0, abs=1e-2)


def test_the_loss_is_that_of_answers_read_one_by_one(
    tiny: Tiny, family: str, tmp_path: Path
) -> None:
    base = tiny(family)
    made = TERMS.prepare(material(base, tmp_path))
    tuned = with_lora(tiny(family), scale=0.2)
    total = 0.0
    bad, good = batch_indices(6, 3, 2, 5), batch_indices(6, 3, 2, 6)
    pairs = [made.harmful[i] for i in bad] + [made.harmless[i] for i in good]
    margins = []
    for pair in pairs:
        chosen = said_by(tuned, pair.chosen) - said_by(base, pair.chosen)
        rejected = said_by(tuned, pair.rejected) - said_by(base, pair.rejected)
        margins.append(chosen - rejected)
        total += np.log1p(np.exp(-0.1 * (chosen - rejected)))
    with torch.no_grad():
        loss, metrics = made.loss(tuned, 2)
    assert float(loss) == pytest.approx(total / 6, rel=1e-3)
    assert metrics["margin"] == pytest.approx(np.mean(margins), rel=1e-2, abs=1e-2)
    assert metrics["preferred"] == pytest.approx(np.mean([m > 0 for m in margins]))


def row_of(pair: Pair) -> dict[str, list[int]]:
    """A pair as TRL's collator takes it."""
    return {
        "prompt_ids": pair.chosen.row[: pair.chosen.begin],
        "chosen_ids": pair.chosen.row[pair.chosen.begin :],
        "rejected_ids": pair.rejected.row[pair.rejected.begin :],
    }


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_the_loss_is_trls(tiny: Tiny, family: str, tmp_path: Path) -> None:
    beta = 0.3
    made = replace(TERMS, beta=beta).prepare(material(tiny(family), tmp_path))
    with torch.no_grad():
        found = float(made.loss(with_lora(tiny(family), scale=0.2), 1)[0])

    # A trainer wants text of its own to tokenise; it is given the step's token rows afterwards.
    text = {"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}
    tuned = with_lora(tiny(family), scale=0.2)
    trainer = DPOTrainer(
        tuned.model,
        ref_model=tiny(family).inner,
        args=DPOConfig(
            str(tmp_path / "trl"),
            beta=beta,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_dict(text),
        processing_class=tuned.tokenizer,
    )
    pairs = [made.harmful[i] for i in batch_indices(6, 3, 1, 5)]
    pairs += [made.harmless[i] for i in batch_indices(6, 3, 1, 6)]
    batch = DataCollatorForPreference(tuned.template.pad_id)([row_of(pair) for pair in pairs])
    with torch.no_grad():
        expected = float(trainer.compute_loss(tuned.model, batch))
    assert expected != pytest.approx(np.log(2), rel=1e-2)
    assert found == pytest.approx(expected, rel=1e-3)


@given(st.floats(-50, 50), st.floats(0.01, 2))
def test_the_loss_of_a_margin_is_a_logistic_function_of_it(margin: float, beta: float) -> None:
    found = float(dpo_loss(torch.tensor([margin]), beta)[0])
    assert found == pytest.approx(np.logaddexp(0, -beta * margin), rel=1e-4, abs=1e-6)


def objective_of(chat: ChatModel, out: Path, settings: TrainSettings) -> Dpo:
    return TERMS.prepare(material(chat, out, settings))


@pytest.mark.parametrize("rank", [2, 0])
def test_training_makes_the_chosen_answer_likelier_than_the_rejected_one(
    tiny: Tiny, tmp_path: Path, rank: int
) -> None:
    settings = replace(SETTINGS, rank=rank, lr=3e-3 if rank else 3e-4)
    chat = tiny("llama")
    made = objective_of(chat, tmp_path, settings)
    if rank:
        chat = attach_lora(chat, settings, (2, 4))
    else:
        unfreeze(chat)
    progress = train(chat, made, settings, tmp_path)
    assert progress.history[-1]["loss"] < progress.history[0]["loss"]
    with torch.no_grad():
        moved = [
            said_by(chat, pair.chosen)
            - pair.chosen_before
            - said_by(chat, pair.rejected)
            + pair.rejected_before
            for pair in [*made.harmful, *made.harmless]
        ]
    assert np.mean(moved) > 1
    assert np.mean([m > 0 for m in moved]) > 0.8


class Killed(BaseException):
    """Stands for a signal."""


def test_a_killed_run_goes_on_and_ends_the_same(tiny: Tiny, tmp_path: Path) -> None:
    def run(out: Path, killed_at: int | None, resume: bool) -> dict[str, Tensor]:
        chat = tiny("llama")
        made = objective_of(chat, out, SETTINGS)
        chat = attach_lora(chat, SETTINGS, (2, 4))

        def report(progress: object) -> None:
            if getattr(progress, "step", None) == killed_at:
                raise Killed

        train(chat, made, SETTINGS, out, resume=resume, report=report)
        return {name: p.detach().clone() for name, p in chat.model.named_parameters()}

    whole = run(tmp_path / "whole", None, False)
    with pytest.raises(Killed):
        run(tmp_path / "cut", 5, False)
    resumed = run(tmp_path / "cut", None, True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
