"""A completion is data to its judge: what in it could speak to the judge is made harmless.

A model under attack may write a new turn, the end of the quotation, or a verdict of its own. Judges
that read text as instructions follow such marks (HarmBench's classifier does, issue 91 there). Marks
are not deleted but written with look-alike signs: a reader sees what stood there, and a tokenizer no
longer finds a mark.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from hashlib import sha256

_LOOK_ALIKES = str.maketrans("<>[]|#-:`{}", "‹›⟦⟧¦♯–∶ˋ❴❵")

_ROLES = (
    r"system|user|human(?:\s+user)?|(?:ai\s+)?assistant|ai|model|bot|judge|developer|tool|ipython"
)
_FIELDS = (
    r"instructions?|inputs?|outputs?|requests?|prompts?|responses?|repl(?:y|ies)|answers?|behaviou?rs?|generations?|"
    r"completions?|rules?|verdicts?|scores?|harmful\s+re(?:quest|sponse)|response\s+refusal|context"
)
_MARKS = re.compile(
    r"<\|[^<>\n]{0,60}\|>"  # <|im_start|>, <|eot_id|>
    rf"|</?(?:end\s+of\s+)?(?:{_ROLES}|{_FIELDS})\b[^<>\n]{{0,60}}>"  # </reply>, <request 1f>
    r"|</?(?:s|bos|eos|pad|unk|think|(?:start|end)_of_turn|begin_of_text)\s*>"
    r"|<</?[A-Z_]{2,20}>>"  # <<SYS>>
    r"|\[/?[A-Z][A-Z_ ]{2,30}\]"  # [INST], [/TOOL_CALLS]
    r"|^[ \t]*(?:#{2,}|-{3,}|`{3,}|\|{3,})"  # rulers, headings and fences that part a prompt's sections
    rf"|^[ \t>*_]*(?:{_ROLES}|{_FIELDS})\s{{0,3}}\**\s{{0,3}}:"  # Assistant:
    r"|<{2,}|>{2,}|\{\{|\}\}",
    re.IGNORECASE | re.MULTILINE,
)


def boundary(*texts: str) -> str:
    """A mark to stand around quoted texts, which they cannot hold: it is drawn from their hash.

    The same texts have the same mark, so that what is asked of a judge can be looked up again.
    """
    lengths = " ".join(str(len(text)) for text in texts)
    return sha256("\0".join([lengths, *texts]).encode(errors="replace")).hexdigest()[:16]


def neutral(text: str, marks: Collection[str] = ()) -> str:
    """The text with role marks, special tokens and delimiters written in look-alike signs.

    Args:
        text: a completion or a prompt.
        marks: further strings to disarm: a tokenizer's special tokens, a boundary.
    """
    # A completion cut inside a character holds a half that no encoder takes.
    text = text.encode(errors="replace").decode()
    text = _MARKS.sub(lambda found: found[0].translate(_LOOK_ALIKES), text)
    for mark in sorted(marks, key=len, reverse=True):
        if mark and mark in text:
            # Marks without a sign that has a look-alike are broken by a dot.
            other = mark.translate(_LOOK_ALIKES)
            text = text.replace(mark, other if other != mark else f"{mark[0]}·{mark[1:]}")
    return text
