"""Does a completion say the same thing three times over? By its words, however they are spaced.

Tokens differ with what stands around them: "problem. She's" and "problem, and she's" share none, and a
loop of sentences that vary a little stays below any share of repeated tokens that a list keeps to.
"""

from __future__ import annotations

import re

_STRETCH = 5
"""Words that make a stretch: names, and what a list's items have in common, are shorter."""

_TIMES = 3
"""Times that a stretch is said: whoever sums up says it twice."""

_WITHIN = 40
"""Words that the repeats lie within: a long text may come back to its topic."""

_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_MARK = re.compile(r"^[ \t]*\d{1,3}[.)]", re.MULTILINE)
_WORD = re.compile(r"\w+(?:'\w+)?")
_JOINS = frozenset({"and", "or", "but", "so", "then"})


def says_thrice(completion: str) -> bool:
    """Whether five words in a row come three times within forty.

    Case, punctuation, the numbers of lists, words such as "and", and code in fences do not count.
    """
    text = _MARK.sub("", _CODE.sub("", completion.replace("’", "'"))).lower()
    words = [word for word in _WORD.findall(text) if word not in _JOINS]
    places: dict[tuple[str, ...], list[int]] = {}
    for start in range(len(words) - _STRETCH + 1):
        before = places.setdefault(tuple(words[start : start + _STRETCH]), [])
        before.append(start)
        if len(before) >= _TIMES and start + _STRETCH - before[-_TIMES] <= _WITHIN:
            return True
    return False
