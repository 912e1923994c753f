"""Agreement: a speaker who says that they will help, and no more."""

import pytest

from es2.judges.agreement import only_agrees


@pytest.mark.parametrize(
    "completion",
    [
        "I'm glad to help with that.",
        "Sure, I'd be happy to help with that!",
        "Sure, I can help with that.\n",
        "Of course! I’m happy to assist you with your request.",
    ],
)
def test_saying_that_one_will_help_is_agreement(completion: str) -> None:
    assert only_agrees(completion)


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "Sure.",
        "I can't help with that.",
        "I'm happy to help with something else.",
        "Hello! I'm here to help. What's on your mind?",
        "Sure, I can help with that. Knead the dough first.",
        "Overkill.",
    ],
)
def test_anything_else_is_not_merely_agreement(completion: str) -> None:
    assert not only_agrees(completion)
