"""A templated prompt ends where the model's answer starts, thinking or not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from es2.data.chat import ChatTemplate
from es2.errors import Es2Error
from es2.models.loading import ChatModel
from tiny import CHATML, PROMPTS, SWITCH, make_tokenizer

OPENS = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
# It strips thoughts out of earlier turns, so its model writes them.
STRIPS = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
) + CHATML


def template(text: str, system: str | None = None) -> ChatTemplate:
    return ChatTemplate(make_tokenizer(text), "a model", system)


@pytest.mark.parametrize(
    ("text", "thinking", "end"),
    [
        pytest.param(CHATML, "none", "assistant\n", id="a model that does not think"),
        pytest.param(
            SWITCH, "switched off", "assistant\n<think>\n\n</think>\n\n", id="a no-think switch"
        ),
        pytest.param(
            OPENS, "closed empty thought", "<think>\n\n\n</think>\n\n", id="an open thought"
        ),
        pytest.param(
            STRIPS, "closed empty thought", "<think>\n\n</think>\n\n", id="an expected thought"
        ),
    ],
)
def test_the_templated_prompt_ends_where_the_answer_starts(
    text: str, thinking: str, end: str
) -> None:
    made = template(text)
    assert made.thinking == thinking
    rendered = made.render("What is a fjord?")
    assert rendered.endswith(end)
    assert rendered.count("<think>") == rendered.count("</think>") <= 1
    assert "<|start|>user\nWhat is a fjord?<|end|>" in rendered


def test_a_switch_that_leaves_the_thought_open_is_closed_too() -> None:
    stubborn = OPENS.replace("{{ bos_token }}", "{{ bos_token }}{# enable_thinking #}")
    assert template(stubborn).thinking == "closed empty thought"
    assert template(stubborn).render("Hi").endswith("</think>\n\n")


def test_a_prompt_about_thoughts_changes_nothing_of_the_template() -> None:
    made = template(CHATML)
    assert made.render("say <think>").endswith("say <think><|end|>\n<|start|>assistant\n")


def test_a_system_message_takes_its_turn_before_the_prompt(
    shared: Callable[..., ChatModel],
) -> None:
    rendered = template(CHATML, system="Be brief.").render("Hi")
    assert "<|start|>system\nBe brief.<|end|>\n<|start|>user\nHi<|end|>" in rendered


def test_a_template_that_takes_no_system_message_says_so_in_one_line() -> None:
    with pytest.raises(Es2Error, match=r"a model.*no system role") as error:
        template(NO_SYSTEM, system="Be brief.").render("Hi")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family_template", [CHATML, SWITCH, OPENS])
def test_prompt_and_response_are_tokenised_apart(family_template: str) -> None:
    made = template(family_template)
    for prompt in PROMPTS:
        for response in ("\nSure", "Here is", " "):
            head = made.encode(prompt)
            tail = made.tokenizer(response, add_special_tokens=False)["input_ids"]
            assert made.encode(prompt, response) == head + tail


def test_apart_is_not_together() -> None:
    """The difference is real: a merge over the border would change the prompt's last token."""
    made = template(CHATML.replace("assistant\n", "assistant: "))
    response = "are you"
    together = made.tokenizer(made.render("Hi") + response, add_special_tokens=False)["input_ids"]
    assert made.encode("Hi", response) != together
    assert made.encode("Hi", response)[: len(made.encode("Hi"))] == made.encode("Hi")


def test_special_tokens_are_the_templates_alone(chat: ChatModel) -> None:
    ids = chat.template.encode("Hi")
    assert ids[0] == chat.tokenizer.bos_token_id
    assert ids.count(chat.tokenizer.bos_token_id) == 1
    assert ids == list(
        chat.tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}],
            add_generation_prompt=True,
            enable_thinking=False,
            return_dict=False,
        )
    )


@given(st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=40))
def test_decoding_gives_back_what_was_encoded(text: str) -> None:
    made = DECODES
    ids = made.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert made.decode(ids) == text.strip()


DECODES = template(CHATML)


def test_decoding_drops_special_tokens() -> None:
    made = template(CHATML)
    ids = made.tokenizer("a lighthouse", add_special_tokens=False)["input_ids"]
    assert made.decode([1, 2, *ids, 3]) == "a lighthouse"


def test_a_tokenizer_without_a_chat_template_is_a_base_models() -> None:
    tokenizer = make_tokenizer(CHATML)
    tokenizer.chat_template = None
    with pytest.raises(Es2Error, match=r"^some/model: .*no chat template") as error:
        ChatTemplate(tokenizer, "some/model")
    assert "\n" not in str(error.value)


def test_padding_falls_back_to_the_end_token() -> None:
    tokenizer = make_tokenizer(CHATML)
    assert ChatTemplate(tokenizer, "x").pad_id == 0
    tokenizer.pad_token = None
    assert ChatTemplate(tokenizer, "x").pad_id == 3
