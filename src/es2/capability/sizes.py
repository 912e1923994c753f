"""How large tasks of lm-evaluation-harness are: what a plan is made from before they are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from es2.models.work import Work, answering, reading


@dataclass(frozen=True)
class TaskSize:
    """One task or group; what items take in tokens are rough averages.

    Attributes:
        items: in all of its parts.
        parts: tasks of the group, each of which a limit holds for.
        read: of an item, with worked examples.
        written: of an answer that is written; 0 where choices are scored.
    """

    items: int
    parts: int
    read: int
    written: int = 0

    def work(self, limit: int | None, batch_size: int, rows: int) -> Work:
        """Of one model.

        Args:
            limit: at most so many items of each part.
            batch_size: answers that are written at a time.
            rows: that are scored at a time.
        """
        items = self.items if limit is None else min(self.items, limit * self.parts)
        if self.written:
            return answering(items, self.read, self.written, batch_size)
        return reading(items, self.read, rows)


TASKS: Mapping[str, TaskSize] = MappingProxyType(
    {
        # Five worked examples; answers end at the next question, long before the limit of 2048.
        "mmlu_pro": TaskSize(12_032, 14, 1_500, 300),
        "leaderboard_mmlu_pro": TaskSize(12_032, 1, 1_000),
        "gpqa_main_zeroshot": TaskSize(448, 1, 250),
        "gpqa_diamond_zeroshot": TaskSize(198, 1, 250),
        "gpqa_extended_zeroshot": TaskSize(546, 1, 250),
        "gpqa_diamond_cot_zeroshot": TaskSize(198, 1, 250, 500),
    }
)
"""Those that plans know; items as published (arXiv 2406.01574, arXiv 2311.12022)."""
