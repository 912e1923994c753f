"""Best of N: the prompt over and over, each time spelt and sampled differently.

Source: Hughes et al., "Best-of-N Jailbreaking" (arXiv 2412.03556): letters in the middle of words
are shuffled, letters change case, printable characters move to their neighbour, and the answer is
sampled at temperature 1.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from es2.attacks.base import ATTACKS, Attempt, Report, ThreatModel, Victim, silent
from es2.attacks.budget import metered
from es2.data.sources import Prompt
from es2.models.generation import Sampling, generate


@ATTACKS.register
@dataclass(frozen=True)
class BestOfN:
    """Asks once as it is with a greedy answer, then `tries` times with noise and sampling.

    The greedy answer, the mean over the settings and the best for each prompt are apart in the
    results.

    Attributes:
        tries: N. Published: up to 10,000.
        sigma: strength of the noise: words are scrambled and letters change case with probability
            sqrt(sigma), characters move with probability sigma cubed.
        temperature: of the samples.
        max_new_tokens: length of an answer.
        seed: of the noise and the samples.
    """

    name: ClassVar[str] = "best_of_n"
    threat: ClassVar[ThreatModel] = "prompt text"
    published: ClassVar[tuple[str, ...]] = ()
    least: ClassVar[Mapping[str, float]] = {
        "tries": 0,
        "sigma": 0,
        "temperature": 1e-3,
        "max_new_tokens": 1,
    }
    tries: int = 16
    sigma: float = 0.4
    temperature: float = 1.0
    max_new_tokens: int = 48
    seed: int = 0

    def settings(self) -> Sequence[str]:
        """The greedy answer, and each try."""
        return ["greedy", *(f"try={number}" for number in range(1, self.tries + 1))]

    def run(
        self,
        victim: Victim,
        prompts: Sequence[Prompt],
        skip: Collection[str] = (),
        progress: Report = silent,
    ) -> Iterator[list[Attempt]]:
        """One answer a prompt and try."""
        chat = victim.chat
        for number, setting in enumerate(self.settings()):
            if setting in skip:
                continue
            asked = [self.ask(prompt, number) for prompt in prompts]
            sampling = Sampling(self.temperature, seed=self.seed * 1_000_003 + number)
            rows = [chat.template.encode(text) for text in asked]
            with metered(chat) as spent:
                answers = generate(
                    chat,
                    rows,
                    self.max_new_tokens,
                    sampling=sampling if number else None,
                    progress=progress,
                )
            yield [
                Attempt.of(
                    self,
                    setting,
                    prompt,
                    chat.template.decode(answer),
                    spent.among(len(prompts)),
                    seed=self.seed,
                    details={"asked": text},
                )
                for prompt, answer, text in zip(prompts, answers, asked, strict=True)
            ]

    def ask(self, prompt: Prompt, number: int) -> str:
        """The prompt as a try spells it: a pure function of seed, prompt and try; 0 is the prompt."""
        if not number:
            return prompt.text
        return augment(prompt.text, self.sigma, random.Random(f"{self.seed} {prompt.id} {number}"))


def augment(text: str, sigma: float, chance: random.Random) -> str:
    """The text with shuffled words, random capitals and moved characters, in that order."""
    often, seldom = sigma**0.5, sigma**3
    words = [
        scramble(word, chance) if len(word) > 3 and chance.random() < often else word
        for word in text.split(" ")
    ]
    letters = [
        c.swapcase() if c.isalpha() and chance.random() < often else c for c in " ".join(words)
    ]
    return "".join(
        neighbour(c, chance) if " " < c < "~" and chance.random() < seldom else c for c in letters
    )


def scramble(word: str, chance: random.Random) -> str:
    """The word with all but its first and last letter shuffled."""
    middle = list(word[1:-1])
    chance.shuffle(middle)
    return word[0] + "".join(middle) + word[-1]


def neighbour(character: str, chance: random.Random) -> str:
    """The printable ASCII character before or after."""
    return chr(ord(character) + chance.choice((-1, 1)))
