"""Finds prompts that two sets share, word for word or reworded, so that no test set leaks."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import sparse

# Words that carry grammar, not the matter.
_GRAMMAR = """
    a about also am an and any anyone are as at be been being but by can could did do does doing
    done for from had has have having he her him his how i if in into is it its may me might mine
    must my need of on one onto or other our person people please s should so some somebody someone
    t than that the their them then there these they this those to us want was we were what when
    where which who whose why will with without would you your
"""
# Words that only say in what form an answer is wanted: "Write a detailed tutorial on ...".
_FRAME = """
    best compose craft create describe design detail detailed develop draft explain generate get
    gets getting give guide illustrate instruct instruction instructions list manual method outline
    prepare produce provide recommend show step steps suggest teach tell tips tutorial way ways
    write
"""
_SKIPPED = frozenset(f"{_GRAMMAR} {_FRAME}".split())
# Endings, and the fewest letters that have to stay before them.
_ENDINGS = (("ing", 4), ("ed", 4), ("es", 4), ("s", 3))
# So many rows at a time bound the memory that the counts of common words take.
_ROWS = 512


@dataclass(frozen=True)
class Overlap:
    """Two texts that say the same.

    Attributes:
        kind: "exact": equal; "normalised": equal but for case, punctuation and spaces; "near":
            their content words are about the same.
        a_index, b_index: where they stand in the two lists.
        a_text, b_text: the texts.
        score: the Jaccard similarity of their content words; 1 for exact and normalised.
    """

    kind: Literal["exact", "normalised", "near"]
    a_index: int
    b_index: int
    a_text: str
    b_text: str
    score: float


def find_overlap(a: Sequence[str], b: Sequence[str], near: float = 0.7) -> list[Overlap]:
    """Finds the pairs of texts from two lists that say the same, in the order of the lists.

    Two texts are near when the Jaccard similarity `|A & B| / |A | B|` of their sets of content
    words reaches `near`. Content words are the words of the normalised text less grammar ("how",
    "the") and less words that only ask for a form ("write a detailed guide"), with plural and verb
    endings taken off. A text with fewer than two of them is only compared as a whole. So requests
    that differ in their matter stay apart, however much of a template they share, and the same
    request in another form is found. Of 28 reworded copies and 30 look-alikes sorted by hand (from
    AdvBench, XSTest, Alpaca and es2's own prompts) 0.7 finds 23 and 1; over all words the same
    threshold finds 11 of each.

    The words that are left out are English, and words are what spaces separate. In other languages
    exact and normalised copies are found, and near ones less well.

    Args:
        a: texts.
        b: texts. To look within one list, see `find_repeats`.
        near: the least similarity, above 0 and up to 1.
    """
    if not 0 < near <= 1:
        raise ValueError(f"near is {near}, but it has to be above 0 and at most 1")
    normal_a, normal_b = [normalise(text) for text in a], [normalise(text) for text in b]
    places: dict[str, list[int]] = defaultdict(list)
    for column, text in enumerate(normal_b):
        places[text].append(column)
    pairs = {(row, column): 1.0 for row, text in enumerate(normal_a) for column in places[text]}
    for row, column, score in _similar(
        [content_words(text) for text in normal_a], [content_words(text) for text in normal_b], near
    ):
        pairs.setdefault((row, column), score)
    found = []
    for (row, column), score in sorted(pairs.items()):
        kind: Literal["exact", "normalised", "near"] = "near"
        if a[row] == b[column]:
            kind = "exact"
        elif normal_a[row] == normal_b[column]:
            kind = "normalised"
        found.append(Overlap(kind, row, column, a[row], b[column], score))
    return found


def find_repeats(texts: Sequence[str], near: float = 0.7) -> list[Overlap]:
    """Finds the pairs within one list that say the same, each pair once; see `find_overlap`."""
    return [pair for pair in find_overlap(texts, texts, near) if pair.a_index < pair.b_index]


def normalise(text: str) -> str:
    """Lower case, with single spaces for all that is neither letter nor digit."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", folded.replace("_", " ")))


def content_words(normal: str) -> frozenset[str]:
    """The words of a normalised text that tell what it is about."""
    content = frozenset(_stem(word) for word in normal.split() if word not in _SKIPPED)
    return content if len(content) >= 2 else frozenset([normal])


def _stem(word: str) -> str:
    """Takes off plural and verb endings: "stealing", "steals" and "steal" become one."""
    for suffix, least in _ENDINGS:
        stem = word.removesuffix(suffix)
        if stem != word and len(stem) >= least and not word.endswith("ss"):
            return stem
    return word.removesuffix("e") if len(word) > 4 else word


def _similar(
    a: Sequence[frozenset[str]], b: Sequence[frozenset[str]], near: float
) -> Iterator[tuple[int, int, float]]:
    """Pairs (row, column, Jaccard similarity) of word sets that reach `near`."""
    columns = {word: index for index, word in enumerate(sorted(frozenset().union(*a, *b)))}
    if not columns:
        return
    counts_a, counts_b = _incidence(a, columns), _incidence(b, columns).T.tocsc()
    sizes_a = np.array([len(words) for words in a])
    sizes_b = np.array([len(words) for words in b])
    for start in range(0, len(a), _ROWS):
        shared = (counts_a[start : start + _ROWS] @ counts_b).tocoo()
        rows = shared.row + start
        scores = shared.data / (sizes_a[rows] + sizes_b[shared.col] - shared.data)
        keep = scores >= near
        yield from zip(
            rows[keep].tolist(), shared.col[keep].tolist(), scores[keep].tolist(), strict=True
        )


def _incidence(texts: Iterable[frozenset[str]], columns: Mapping[str, int]) -> sparse.csr_matrix:
    """A text's row holds 1 at each of its words."""
    indices = [[columns[word] for word in words] for words in texts]
    ends = np.cumsum([0, *(len(row) for row in indices)])
    flat = np.array([index for row in indices for index in row], dtype=np.int64)
    return sparse.csr_matrix(
        (np.ones(len(flat), dtype=np.int32), flat, ends), shape=(len(indices), len(columns))
    )
