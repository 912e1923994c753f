"""An attack of your own: the prompt is shouted. Run this file to see what it does to a model.

In a package, an entry point makes `es2 attack --attack shout` and recipes find it:

    [project.entry-points."es2.attacks"]
    shout = "my_package:Shout"
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import es2
from es2.attacks import ATTACKS, Attempt, Direct, Victim
from es2.attacks.base import Report, ThreatModel, silent


@ATTACKS.register
@dataclass(frozen=True)
class Shout:
    """Asks in capitals, with so many exclamation marks."""

    name: ClassVar[str] = "shout"
    threat: ClassVar[ThreatModel] = "prompt text"
    published: ClassVar[tuple[str, ...]] = ()
    marks: tuple[int, ...] = (0, 3)
    max_new_tokens: int = 24

    def settings(self) -> Sequence[str]:
        """One for each number of marks."""
        return [f"marks={marks}" for marks in self.marks]

    def run(
        self,
        victim: Victim,
        prompts: Sequence[es2.Prompt],
        skip: Collection[str] = (),
        progress: Report = silent,
    ) -> Iterator[list[Attempt]]:
        """Answers the shouted prompts; what is recorded is the prompt as it was."""
        for marks, setting in zip(self.marks, self.settings(), strict=True):
            if setting not in skip:
                loud = [replace(p, text=p.text.upper() + "!" * marks) for p in prompts]
                for asked in Direct(self.max_new_tokens).run(victim, loud, (), progress):
                    yield [
                        replace(a, attack=self.name, setting=setting, prompt=p.text)
                        for a, p in zip(asked, prompts, strict=True)
                    ]


if __name__ == "__main__":
    prompts = es2.load_prompts("harmful:test", limit=8)
    print(es2.attack(es2.load("smollm2-aligned"), Shout(), prompts).dsr.judged)
