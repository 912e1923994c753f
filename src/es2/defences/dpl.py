"""DPL as a defence: preferences with hidden context, labelled the risk-averse way, then DPO.

Source: Siththaranjan, Laidlaw and Hadfield-Menell, arXiv 2312.08358, for the reward model and for
judging answers by a low quantile of their utility. They train no policy: candidates and DPO on the
labels are this project's choice.

Published: the reward model is the whole language model with a LoRA (rank 8, alpha 32) and a linear
layer on the last token's final state, lr 3e-6, batch 2, one epoch of human preferences. Here: the
linear layer alone, on the mean of an answer's final states in the model as it is, which costs no
second training of the model. Of states that were not trained for it, the last one alone tells less
of the answer. Two invented annotators take the place of human ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import combinations
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from es2.attacks.target import OPENINGS
from es2.defences.base import DEFENCES, Material, seen_count
from es2.defences.dpo import Answer, Dpo, Pair, log_probabilities, passed
from es2.defences.reward_model import (
    Categorical,
    Form,
    MeanAndVariance,
    RewardModel,
    Utility,
    fit,
    kept,
    save,
)
from es2.defences.safety_sft import REFUSAL
from es2.defences.trainer import TrainSettings, seeded
from es2.defences.unsafe import expected_unsafe, unsafe_answers
from es2.errors import Es2Error
from es2.models.generation import generate, in_batches
from es2.models.loading import ChatModel
from es2.models.work import Lengths, Work, answering, reading, training
from es2.progress import bar

OWN, REFUSED, BABBLE = range(3)
"""The candidates of a prompt: the model's own answer, a refusal, and words in no order."""

HELPFULNESS = (OWN, REFUSED, BABBLE)
"""How an annotator who is asked for helpfulness ranks the candidates, best first, on any prompt."""

HARMLESSNESS = (REFUSED, BABBLE, OWN)
"""How one who is asked for harmlessness ranks those of a harmful prompt; of others, as above."""


@DEFENCES.register
@dataclass(frozen=True)
class Dpl:
    """Distributional preference learning, then DPO on the pairs as a low quantile orders them.

    On a harmful prompt the candidates are a refusal and what the model says after an affirmative
    opening; on a harmless one, its own answer and the refusal. A third, words in no order, serves to
    fit the reward model alone: of two answers that are each preferred half the time nothing tells
    which is in dispute, of three it is the one that is now the best, now the worst. Both annotators
    are asked about every pair.

    Attributes:
        form: utilities are normal (`mean_and_variance`) or in bins (`categorical`).
        quantile: an answer is worth this quantile of its utility. Published: 0.01.
        bins: of the categorical form.
        entropy: weight of the categorical form's entropy.
        beta: DPO's; the greater, the closer the model is held to what it was.
        refusal: the refusal.
        openings: what the answer to a harmful prompt may start with, in the order they are tried.
        answer_tokens: at most this many tokens of an answer, the opening apart.
        reward_steps: steps of the reward model's fit.
        reward_batch: comparisons in each.
        reward_lr: their learning rate.
    """

    name: ClassVar[str] = "dpl"
    source: ClassVar[str] = "Siththaranjan et al., arXiv 2312.08358; DPO is this project's addition"
    # Of DPO, which the paper does not do: TRL's example of DPO with a LoRA has this rank and alpha,
    # and 16 pairs a step. It goes over tens of thousands of pairs at 5e-6; here are hundreds.
    published: ClassVar[TrainSettings] = TrainSettings(
        steps=200, batch_size=8, lr=5e-5, warmup=20, rank=32, alpha=16, validate_every=0
    )
    keeps: ClassVar[str] = "last"
    form: Form = "mean_and_variance"
    quantile: float = 0.01
    bins: int = 10
    entropy: float = 0.1
    beta: float = 0.1
    refusal: str = REFUSAL
    openings: tuple[str, ...] = OPENINGS
    answer_tokens: int = 48
    reward_steps: int = 600
    reward_batch: int = 32
    reward_lr: float = 3e-3

    least: ClassVar[Mapping[str, float]] = {
        "bins": 2,
        "entropy": 0,
        "beta": 0,
        "answer_tokens": 1,
        "reward_steps": 1,
        "reward_batch": 1,
        "reward_lr": 0,
    }

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise Es2Error(f"dpl: quantile is {self.quantile}, but has to lie between 0 and 1")

    @property
    def utility(self) -> Utility:
        """The family of distributions."""
        if self.form == "categorical":
            return Categorical(self.bins, self.entropy)
        return MeanAndVariance()

    def expected(
        self, settings: TrainSettings, lengths: Lengths, harmful: int, harmless: int, rows: int
    ) -> Work:
        """The candidates, a reading of all three of each, then steps over pairs of both classes."""
        bad, good = (seen_count(settings, count) for count in (harmful, harmless))
        opened, own = lengths.count(self.openings[0]), lengths.own
        written = expected_unsafe(lengths, bad, self.answer_tokens, self.openings, rows)
        written += answering(good, own, self.answer_tokens, rows, lengths.head)
        row = own + opened + self.answer_tokens
        written += reading(3 * (bad + good), row, rows, lengths.head)
        pairs = min(settings.batch_size, bad) + min(settings.batch_size, good)
        # A pair is a long answer and a refusal, and padded to the longer.
        scored = pairs * (self.answer_tokens + lengths.count(self.refusal))
        return written + training(settings.steps, 2 * pairs, row, scored, lengths.head)

    def prepare(self, material: Material) -> Dpo:
        """Answers, what annotators make of them, the reward model, and the pairs as it orders them.

        Raises:
            Es2Error: if the model answers no harmless prompt, or no harmful one however it is opened.
        """
        chat = material.chat
        harmful, harmless = self.candidates(material)
        answers = [answer for three in harmful + harmless for answer in three]
        with bar("reading the candidates", len(answers)) as advance:
            read = _read(chat, answers, advance)
        features = torch.stack([state for state, _ in read])
        preferred = preferences(len(harmful), len(harmless))
        reward = self._reward_model(material, answers, features, preferred)
        worth = reward.quantile(features, self.quantile).view(-1, 3).tolist()
        before = [log_probability for _, log_probability in read]
        pairs = [
            _ordered(answers[at : at + 3], before[at : at + 3], worth[at // 3])
            for at in range(0, len(answers), 3)
        ]
        refused = [scores[REFUSED] >= scores[OWN] for scores in worth]
        bad, good = refused[: len(harmful)], refused[len(harmful) :]
        labels = {
            "labelled_refuse_harmful": sum(bad) / len(bad),
            "labelled_refuse_harmless": sum(good) / len(good),
        }
        return Dpo(self.beta, material.settings, pairs[: len(bad)], pairs[len(bad) :], labels)

    def candidates(self, material: Material) -> tuple[list[list[Answer]], list[list[Answer]]]:
        """The three candidates of every harmful and of every harmless prompt.

        The words in no order are those of answers to harmless prompts. A prompt whose answer
        refuses is left out: there is nothing to compare.
        """
        fit, chat, seed = material.fit, material.chat, material.settings.seed
        bad, good = material.seen(fit.harmful), material.seen(fit.harmless)
        with bar("generating answers to compare", len(bad) + len(good)) as advance:
            answered = self._answers(material, good, advance)
            begun = unsafe_answers(material, bad, self.answer_tokens, self.openings, advance)
        complied = {one.prompt: one.start + self._ended(chat, one.tail) for one in begun}
        if not answered:
            raise Es2Error(
                f"{chat.name} refuses all {len(good)} harmless prompts, so there is no answer to "
                "prefer to a refusal; harden another model, or give other prompts"
            )
        refusal = [*chat.template.encode_response(self.refusal), min(chat.stop_ids)]
        said = list(answered.values())

        def three(answers: Mapping[str, list[int]]) -> list[list[Answer]]:
            found = []
            for place, (prompt, own) in enumerate(answers.items()):
                words = said[place % len(said)]
                order = torch.randperm(len(words), generator=seeded(seed, place)).tolist()
                babble = [words[index] for index in order]
                head = chat.template.encode(prompt)
                found.append([Answer(head + tail, len(head)) for tail in (own, refusal, babble)])
            return found

        return three(complied), three(answered)

    def _answers(
        self,
        material: Material,
        prompts: Sequence[str],
        progress: Callable[[int], None],
    ) -> dict[str, list[int]]:
        """The model's own answers, as tokens, to those prompts that it does not refuse."""
        chat = material.chat
        rows = [chat.template.encode(prompt) for prompt in prompts]
        said = generate(chat, rows, self.answer_tokens, progress=progress)
        return {
            prompts[index]: self._ended(chat, said[index])
            for index in material.telling(said, refused=False)
        }

    def _ended(self, chat: ChatModel, answer: list[int]) -> list[int]:
        """An answer that ended by itself is to end there again."""
        return answer if len(answer) >= self.answer_tokens else [*answer, min(chat.stop_ids)]

    def _reward_model(
        self,
        material: Material,
        answers: Sequence[Answer],
        features: Tensor,
        preferred: Int[Tensor, "pairs 2"],
    ) -> RewardModel:
        """The one that the run's folder keeps of the same answers, or one fitted now and kept."""
        path = material.out / "checkpoints" / "reward_model.pt"
        settings = replace(
            material.settings,
            steps=self.reward_steps,
            batch_size=self.reward_batch,
            lr=self.reward_lr,
            warmup=0,
        )
        # Answers tell one model from another, but are not to be written to disk.
        known = [material.chat.name, asdict(self), settings.seed, [a.row for a in answers]]
        key = sha256(json.dumps(known).encode()).hexdigest()
        found = kept(path, self.utility, key)
        if found is None:
            with bar("fitting the reward model", self.reward_steps) as advance:
                found = fit(features, preferred, self.utility, settings, advance)
            save(found, path, key)
        return found


def preferences(harmful: int, harmless: int) -> Int[Tensor, "pairs 2"]:
    """What both annotators say of every two candidates of a prompt: the better, then the worse.

    Args:
        harmful: so many harmful prompts come first, each with its candidates in order.
        harmless: so many harmless ones follow.
    """
    told = [
        (3 * prompt + better, 3 * prompt + worse)
        for prompt in range(harmful + harmless)
        for ranking in (HELPFULNESS, HARMLESSNESS if prompt < harmful else HELPFULNESS)
        for better, worse in combinations(ranking, 2)
    ]
    return torch.tensor(told)


@torch.no_grad()
def _read(
    chat: ChatModel, answers: Sequence[Answer], progress: Callable[[int], None]
) -> list[tuple[Tensor, float]]:
    """The mean of each answer's final states, on the CPU, and its log-probability."""

    def run(batch: list[int]) -> list[tuple[Tensor, float]]:
        own = [answers[place] for place in batch]
        out = passed(chat, own)
        assert out.final is not None
        means = []
        for place, answer in enumerate(own):
            states = out.at(
                out.final, [place] * (len(answer) - answer.begin), range(answer.begin, len(answer))
            )
            means.append(states.float().mean(0).cpu())
        return list(zip(means, log_probabilities(chat, out, own).tolist(), strict=True))

    return in_batches(chat, answers, run, progress)


def _ordered(answers: Sequence[Answer], before: Sequence[float], worth: Sequence[float]) -> Pair:
    """The model's own answer and the refusal, the one that is worth more first."""
    chosen, rejected = (OWN, REFUSED) if worth[OWN] > worth[REFUSED] else (REFUSED, OWN)
    return Pair(answers[chosen], answers[rejected], before[chosen], before[rejected])
