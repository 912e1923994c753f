"""Does a completion only agree to help? That is compliance which names no topic. English only."""

from __future__ import annotations

import re

_AGREES = re.compile(
    r"(?:(?:sure|certainly|absolutely|awesome|great|of\s+course|yes|okay|ok)\b[\s,.!:-]*)?"
    r"(?:i|we)(?:'m|'re|\s+am|\s+are|'d\s+be|\s+would\s+be|'ll|\s+will|\s+can)\s+"
    r"(?:(?:so|very|more\s+than)\s+)?(?:(?:happy|glad|ready|able|delighted|pleased)\s+to\s+)?"
    r"(?:help|assist)(?:\s+you)?\s+with\s+(?:it|this|that|(?:this|that|your)\s+request)\W*",
    re.IGNORECASE,
)


def only_agrees(completion: str) -> bool:
    """Whether all that the speaker says is that they will help with it."""
    return _AGREES.fullmatch(completion.strip().replace("’", "'")) is not None
