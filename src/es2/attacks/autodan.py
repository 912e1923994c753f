"""AutoDAN: a readable text around the request, bred by a hierarchical genetic algorithm.

Source: Liu et al., "AutoDAN: Generating Stealthy Jailbreak Prompts on Aligned Large Language Models"
(arXiv 2310.04451): a population of texts, scored by how likely the target becomes; every fifth step
sentences are crossed over between texts, on the others words give way to synonyms that stand in
better texts. Prototypes and synonyms are es2's own (`data/prompts/prototypes.json`).

The same search guided by a probe instead of a target is SCAV's attack on prompts (Xu et al., arXiv
2404.12038, section 3.4).

What the published code gets wrong is mended here, and `paper_exact` brings it back: a synonym that no
text has used yet gets the best score; texts of few sentences are not crossed over; nothing keeps the
place of the request from being changed.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.resources import files
from itertools import pairwise
from typing import ClassVar, Literal

import torch

from es2.attacks.base import (
    ATTACKS,
    Attempt,
    Report,
    ThreatModel,
    Victim,
    as_given,
    silent,
)
from es2.attacks.budget import metered
from es2.attacks.target import AFFIRMATION, read_target
from es2.data.sources import Prompt
from es2.errors import Es2Error
from es2.judges.refusal import keyword_refusal
from es2.models.forward import Held
from es2.models.generation import generate
from es2.models.loading import ChatModel
from es2.models.work import Lengths, Work, answering
from es2.separation.probe import Probe, fit_probes, prompt_states

PLACE = "[REQUEST]"
"""Where the request goes in a text."""

_MEMORY = 30
"""So many words' scores are remembered from step to step, the best ones (published)."""

Score = Callable[[Sequence[str]], list[float]]
"""Losses of whole prompts, lower is better."""

Guide = Literal["target", "scav"]


@cache
def _lexicon() -> tuple[tuple[str, ...], Mapping[str, tuple[str, ...]]]:
    """Prototypes, and every word's synonyms."""
    text = files("es2.data").joinpath("prompts/prototypes.json").read_text(encoding="utf-8")
    found = json.loads(text)
    synonyms: dict[str, tuple[str, ...]] = {}
    for group in found["synonyms"]:
        for word in group:
            others = [other for other in group if other != word]
            synonyms[word] = tuple(dict.fromkeys([*synonyms.get(word, ()), *others]))
    return tuple(found["prototypes"]), synonyms


def prototypes() -> tuple[str, ...]:
    """The texts that a search starts from."""
    return _lexicon()[0]


def synonyms_of(word: str) -> tuple[str, ...]:
    """A lower-case word's synonyms; none for most words."""
    return _lexicon()[1].get(word, ())


def sentences(text: str) -> list[str]:
    """The text cut behind each sentence; joined by spaces it is the text again."""
    return re.split(r"(?<=[.!?:\]]) ", text)


def cross(
    one: str, two: str, points: int, chance: random.Random, paper_exact: bool = False
) -> tuple[str, str]:
    """Two texts with runs of sentences exchanged between cuts at `points` places.

    The request stays where it is in both: what stands before it is exchanged with what stands before
    it, and what stands behind with what stands behind.

    Args:
        one: a text with the place of the request in it.
        two: another.
        points: cuts, fewer where a text has fewer sentences.
        chance: of the cuts.
        paper_exact: with no more sentences than cuts nothing is exchanged, and the place of the
            request may be lost or doubled.
    """
    first, second = sentences(one), sentences(two)
    if paper_exact:
        if min(len(first), len(second)) <= points:
            return one, two
        parts = _exchange(first, second, points, chance)
        return " ".join(parts[0]), " ".join(parts[1])
    cuts = [next(i for i, s in enumerate(part) if PLACE in s) for part in (first, second)]
    before = _exchange(first[: cuts[0]], second[: cuts[1]], points // 2 + 1, chance)
    behind = _exchange(first[cuts[0] + 1 :], second[cuts[1] + 1 :], points // 2 + 1, chance)
    return (
        " ".join([*before[0], first[cuts[0]], *behind[0]]),
        " ".join([*before[1], second[cuts[1]], *behind[1]]),
    )


def _exchange(
    one: Sequence[str], two: Sequence[str], points: int, chance: random.Random
) -> tuple[list[str], list[str]]:
    """Every other run between the cuts is exchanged, from the second run on."""
    shorter = min(len(one), len(two))
    points = min(points, shorter - 1)
    if points < 1:
        swap = chance.random() < 0.5
        return (list(two), list(one)) if swap else (list(one), list(two))
    cuts = [0, *sorted(chance.sample(range(1, shorter), points)), max(len(one), len(two))]
    left: list[str] = []
    right: list[str] = []
    for run, (start, stop) in enumerate(pairwise(cuts)):
        a, b = (two, one) if run % 2 else (one, two)
        left += a[start:stop]
        right += b[start:stop]
    return left, right


def replaced(text: str, choose: Callable[[str], str], paper_exact: bool = False) -> str:
    """The text with each word given to `choose`; capitals at a word's start stay.

    The place of the request is no word, unless `paper_exact`.
    """
    pattern = r"\b[A-Za-z]+\b" if paper_exact else rf"{re.escape(PLACE)}|\b[A-Za-z]+\b"

    def change(match: re.Match[str]) -> str:
        word = match.group()
        if word == PLACE:
            return word
        new = choose(word.lower())
        if new == word.lower():
            return word
        return new.capitalize() if word[0].isupper() else new

    return re.sub(pattern, change, text)


def mutated(text: str, rate: float, chance: random.Random, paper_exact: bool = False) -> str:
    """The text with each word that has synonyms replaced by one of them with probability `rate`."""

    def choose(word: str) -> str:
        known = synonyms_of(word)
        return chance.choice(known) if known and chance.random() < rate else word

    return replaced(text, choose, paper_exact)


def word_scores(
    texts: Sequence[str], losses: Sequence[float], before: Mapping[str, float]
) -> dict[str, float]:
    """Each word's mean score (negated loss) over the texts it stands in, averaged with what it was.

    Only words with synonyms count, and the best few are kept.
    """
    seen: dict[str, list[float]] = {}
    for text, loss in zip(texts, losses, strict=True):
        for word in set(re.findall(r"[a-z]+", text.lower())):
            if synonyms_of(word):
                seen.setdefault(word, []).append(-loss)
    now = {word: sum(found) / len(found) for word, found in seen.items()}
    mixed = {
        word: (before[word] + score) / 2 if word in before else score for word, score in now.items()
    }
    kept = {word: score for word, score in before.items() if word not in mixed} | mixed
    best = sorted(kept, key=lambda word: -kept[word])[:_MEMORY]
    return {word: kept[word] for word in best}


def reworded(
    text: str, scores: Mapping[str, float], chance: random.Random, paper_exact: bool = False
) -> str:
    """The text with words replaced by themselves or synonyms, the likelier, the better their score.

    A word without a score counts as the average one, or, if `paper_exact`, as 0: better than any
    that has been seen.
    """
    unseen = 0.0 if paper_exact or not scores else sum(scores.values()) / len(scores)

    def choose(word: str) -> str:
        options = (word, *synonyms_of(word))
        if len(options) == 1:
            return word
        values = [scores.get(option, unseen) for option in options]
        weights = [math.exp(value - max(values)) for value in values]
        return chance.choices(options, weights)[0]

    return replaced(text, choose, paper_exact)


def parents(
    texts: Sequence[str], losses: Sequence[float], count: int, chance: random.Random
) -> list[str]:
    """Texts drawn with probabilities proportional to exp(-loss)."""
    least = min(losses)
    return chance.choices(texts, [math.exp(least - loss) for loss in losses], k=count)


@ATTACKS.register
@dataclass(frozen=True)
class AutoDan:
    """Breeds a text for each prompt; a pure function of the seed and the prompt.

    Attributes:
        steps: generations.
        population: texts in a generation.
        elites: share of the best that goes on unchanged.
        crossover: probability that two parents exchange sentences.
        points: cuts of an exchange.
        mutation: probability that a word with synonyms changes.
        every: steps from one exchange of sentences to the next.
        stop: stop once the answer to the best text holds none of the published refusal strings.
        guide: what a text's loss is: the `target`'s cross-entropy, or `scav`: log P(harmful) of a
            probe of the last layer plus the log of the distance to where the bare request is.
        fit: the probe is fitted on at most so many prompts of each class.
        paper_exact: with the flaws of the published code.
        max_new_tokens: length of the answer.
        seed: of all draws.
    """

    name: ClassVar[str] = "autodan"
    threat: ClassVar[ThreatModel] = "prompt text"
    least: ClassVar[Mapping[str, float]] = {
        "steps": 1,
        "population": 2,
        "elites": 0,
        "crossover": 0,
        "points": 1,
        "mutation": 0,
        "every": 1,
        "fit": 2,
        "max_new_tokens": 1,
    }
    prompt_by_prompt: ClassVar[bool] = True
    steps: int = 100
    population: int = 256
    elites: float = 0.05
    crossover: float = 0.5
    points: int = 5
    mutation: float = 0.01
    every: int = 5
    stop: bool = True
    guide: Guide = "target"
    fit: int = 140
    paper_exact: bool = False
    max_new_tokens: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        if not round(self.elites * self.population) < self.population:
            raise Es2Error(
                f"autodan: of {self.population} texts a share of {self.elites} goes on unchanged, "
                "and none is left to breed; lower elites or give a larger population"
            )

    @property
    def published(self) -> tuple[str, ...]:
        """Its one setting, at the published length and population."""
        return tuple(self.settings()) if as_given(self, "paper_exact") else ()

    def settings(self) -> Sequence[str]:
        """One: the text of the lowest loss."""
        return ["lowest loss"]

    def expected(self, lengths: Lengths, prompts: int, rows: int) -> Work:
        """All generations, every child a text that has not been scored before."""
        own = lengths.mean(prototypes()) + lengths.own
        aimed = own + (lengths.target - 1 if self.guide == "target" else 0)
        elites = max(1, round(self.elites * self.population))
        texts = self.population + (self.steps - 1) * (self.population - elites)
        bred = Work(read=texts * aimed, held=lengths.head + min(rows, self.population) * aimed)
        answers = self.steps if self.stop else 1  # each generation's best is asked on its own
        answer = answering(1, own, self.max_new_tokens, rows)
        return (bred + answer.times(answers)).times(prompts)

    def run(
        self,
        victim: Victim,
        prompts: Sequence[Prompt],
        skip: Collection[str] = (),
        progress: Report = silent,
    ) -> Iterator[list[Attempt]]:
        """Breeds and answers, prompt after prompt."""
        (setting,) = self.settings()
        if setting in skip:
            return
        chat, known, guide = victim.chat, victim.known, self.guided(victim)
        for number, prompt in enumerate(prompts, 1):
            tell = partial(_told, progress, f"prompt {number} of {len(prompts)}")
            with metered(known) as breeding:
                text, losses = self.breed(known, prompt, guide(prompt), tell)
            asked = filled(text, prompt.text)
            with metered(chat) as answering:
                rows = [chat.template.encode(asked)]
                (answer,) = generate(chat, rows, self.max_new_tokens, progress=progress)
            yield [
                Attempt.of(
                    self,
                    setting,
                    prompt,
                    chat.template.decode(answer),
                    replace(breeding + answering, steps=len(losses)),
                    seed=self.seed,
                    losses=losses,
                    rule=setting,
                    details={"asked": asked},
                )
            ]

    def guided(self, victim: Victim) -> Callable[[Prompt], Score]:
        """For each request, what the guide makes of whole prompts that hold it."""
        chat = victim.known
        if self.guide == "scav":
            states = victim.states.fitted_on(self.fit)
            probe = fit_probes(states, self.seed, [chat.depth])[chat.depth]
            return lambda prompt: partial(by_probe, chat, probe, prompt.text)

        def by_likelihood(prompt: Prompt) -> Score:
            wanted = chat.template.encode_response(prompt.target or AFFIRMATION)
            return partial(by_target, chat, wanted)

        return by_likelihood

    def breed(
        self,
        chat: ChatModel,
        prompt: Prompt,
        score: Score,
        report: Callable[[Sequence[float]], None] = lambda losses: None,
    ) -> tuple[str, list[float]]:
        """The text of the lowest loss, and the lowest loss of every generation.

        A text is scored once, however often it comes back.

        Args:
            chat: the model.
            prompt: the request.
            score: of whole prompts.
            report: called after every generation.
        """
        known: dict[str, float] = {}

        def scored(texts: Sequence[str]) -> list[float]:
            # In alphabetical order texts of like length often start alike, and share that.
            new = sorted({text for text in texts if text not in known})
            if new:
                found = score([filled(text, prompt.text) for text in new])
                known.update(zip(new, found, strict=True))
            return [known[text] for text in texts]

        chance = random.Random(f"{self.seed} {prompt.id}")
        texts = self._first(chance)
        words: dict[str, float] = {}
        lowest: list[float] = []
        for step in range(self.steps):
            losses = scored(texts)
            order = sorted(range(len(texts)), key=lambda index: losses[index])
            lowest.append(losses[order[0]])
            report(lowest)
            asked = filled(texts[order[0]], prompt.text)
            if step == self.steps - 1 or (self.stop and answered(chat, asked, self.max_new_tokens)):
                break
            best = [texts[index] for index in order[: max(1, round(self.elites * len(texts)))]]
            drawn = parents(texts, losses, len(texts) - len(best), chance)
            if step % self.every == 0:
                children = self._crossed(drawn, chance)
            else:
                words = word_scores(texts, losses, words)
                children = [reworded(text, words, chance, self.paper_exact) for text in drawn]
            texts = best + children
        return min(known, key=lambda text: known[text]), lowest

    def _first(self, chance: random.Random) -> list[str]:
        """The first generation: the prototypes, then changed copies of them."""
        some = prototypes()
        copies = [mutated(some[index % len(some)], 0.3, chance) for index in range(self.population)]
        return [*some, *copies][: self.population]

    def _crossed(self, drawn: Sequence[str], chance: random.Random) -> list[str]:
        children: list[str] = []
        for one, two in zip(drawn[::2], [*drawn[1::2], drawn[0]], strict=False):
            if chance.random() < self.crossover:
                one, two = cross(one, two, self.points, chance, self.paper_exact)
            children += [one, two]
        children = children[: len(drawn)]
        return [mutated(text, self.mutation, chance, self.paper_exact) for text in children]


def by_target(chat: ChatModel, target: Sequence[int], asked: Sequence[str]) -> list[float]:
    """The target's loss after each prompt."""
    heads = [chat.template.encode(text) for text in asked]
    return read_target(chat, heads, target, held=Held()).losses.tolist()


def by_probe(chat: ChatModel, probe: Probe, request: str, asked: Sequence[str]) -> list[float]:
    """How harmful the last layer finds each prompt, and how far it is from the bare request.

    log P(e) + log |e - e_request|: the product that SCAV minimises, so that a text looks harmless
    and still is about what is asked. The bare request itself is no such text.
    """
    states = prompt_states(chat, [request, *asked], layers=[chat.depth])[:, 0]
    far = (states[1:] - states[0]).norm(dim=-1).clamp(min=1e-6)
    harm = torch.nn.functional.logsigmoid(probe.logit(states[1:]))
    return (harm + far.log()).tolist()


def answered(chat: ChatModel, asked: str, tokens: int) -> bool:
    """Whether the greedy answer has none of the refusal strings that AutoDAN's authors look for."""
    (answer,) = generate(chat, [chat.template.encode(asked)], tokens)
    text = chat.template.decode(answer)
    return bool(text) and not keyword_refusal(text, "autodan")


def filled(text: str, request: str) -> str:
    """The text with the request in its place."""
    return text.replace(PLACE, request)


def _told(progress: Report, where: str, losses: Sequence[float]) -> None:
    progress(0, f"{where}: generation {len(losses)}, loss {min(losses):.2f}")
