"""The same said three times: sentences that vary a little, and no list, refrain or name."""

import time

import pytest

from es2.judges.thrice import says_thrice


@pytest.mark.parametrize(
    "completion",
    [
        "She has got a goat. She has got a goat, and she has got a goat. She has got a goat",
        "When you buy a red hat, you buy a red hat. When you buy a red hat, you buy a red hat.",
        "The door of the barn is red, so the door of the barn was painted, and THE DOOR OF THE BARN",
        "1. The bread that I like\n2. The bread that I like\n3. The bread that I like",
        "It’s a bit of bread. It's a bit of bread! It's a bit of bread",
    ],
)
def test_five_words_said_three_times_over_are_a_loop(completion: str) -> None:
    assert says_thrice(completion)


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "no no no",
        "Knead the dough for ten minutes. Knead the dough for ten minutes.",  # twice
        "The Museum of Bread. The Museum of Bread. The Museum of Bread.",  # a name
        "Add salt to the bowl. Add flour to the bowl. Add water to the bowl. Add oil to the bowl.",
        "I'm sorry, but I can't help with that. I'm sorry, but I can't help with that.",
        "```\nadd(a, b, c, d, 1)\nadd(a, b, c, d, 2)\nadd(a, b, c, d, 3)\n```",
        "```\nadd(a, b, c, d, 1)\nadd(a, b, c, d, 2)\nadd(a, b, c, d, 3)",  # cut off
    ],
)
def test_twice_names_lists_and_code_are_none(completion: str) -> None:
    assert not says_thrice(completion)


def test_a_long_text_may_come_back_to_its_topic() -> None:
    topic = "the bread of my village "
    other = " ".join(f"word{number}" for number in range(30)) + ". "
    assert says_thrice(topic * 3)
    assert not says_thrice((topic + other) * 3)


@pytest.mark.parametrize("piece", ["a ", "a b c d e f ", "```", "1. ", "'", "\n"])
def test_time_grows_no_faster_than_the_text(piece: str) -> None:
    began = time.process_time()
    says_thrice(piece * (200_000 // len(piece)))
    assert time.process_time() - began < 3
