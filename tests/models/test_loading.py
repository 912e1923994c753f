"""A chat model loads by name, folder or adapter; whatever is wrong is said in one line."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from es2.defences.trainer import save_adapter, trainable
from es2.errors import Es2Error
from es2.models.forward import forward
from es2.models.generation import generate
from es2.models.loading import load
from tiny import encode, make_chat, with_lora

Folder = Callable[[str], Path]


def says(error: pytest.ExceptionInfo[Es2Error], *parts: str) -> None:
    """One line, with all of these parts in it."""
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


@pytest.fixture
def model_folder(tiny_folder: Folder, tmp_path: Path) -> Path:
    """A copy of a tiny Llama's folder, to be damaged."""
    return Path(shutil.copytree(tiny_folder("llama"), tmp_path / "model"))


@pytest.fixture
def adapter_folder(tiny_folder: Folder, tmp_path: Path) -> Path:
    """An adapter for the tiny Llama that does something."""
    base = load(str(tiny_folder("llama")), device="cpu")
    save_adapter(with_lora(base, scale=0.05, seed=0), tmp_path / "adapter")
    return tmp_path / "adapter"


def logits_of(folder: Path, **options: Path) -> torch.Tensor:
    chat = load(str(folder), device="cpu", **options)
    with torch.no_grad():
        return chat.inner(torch.tensor([encode(chat)[0]])).logits


def test_a_folder_loads_ready_to_be_measured(tiny_folder: Folder, family: str) -> None:
    chat = load(str(tiny_folder(family)), device="cpu")
    assert chat.depth == 4
    assert not chat.model.training
    assert not any(parameter.requires_grad for parameter in chat.model.parameters())
    assert next(chat.model.parameters()).dtype == torch.float32
    assert chat.stop_ids == {3}


def test_stop_tokens_are_the_generation_configs_and_the_tokenizers(model_folder: Path) -> None:
    config = json.loads((model_folder / "generation_config.json").read_text())
    (model_folder / "generation_config.json").write_text(
        json.dumps({**config, "eos_token_id": [7, 9]})
    )
    assert load(str(model_folder), device="cpu").stop_ids == {3, 7, 9}


def test_the_type_of_the_weights_can_be_chosen(tiny_folder: Folder) -> None:
    chat = load(str(tiny_folder("gemma3")), device="cpu", dtype=torch.bfloat16)
    assert next(chat.model.parameters()).dtype == torch.bfloat16


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(Es2Error) as error:
        load("smolm2")
    says(error, "'smolm2'", "smollm2", "smollm2-aligned", "OWNER/NAME")


def test_a_model_that_the_hub_does_not_give_is_named() -> None:
    with pytest.raises(Es2Error) as error:
        load("nobody/no-such-model")
    says(error, "nobody/no-such-model")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/nowhere", "a/b/c"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(Es2Error) as error:
        load(name)
    says(error, name, "no such folder")


def test_a_folder_without_a_config_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(Es2Error) as error:
        load(str(tmp_path))
    says(error, str(tmp_path), "config.json")


def test_a_base_model_without_a_chat_template_is_turned_away(model_folder: Path) -> None:
    (model_folder / "chat_template.jinja").unlink()
    with pytest.raises(Es2Error) as error:
        load(str(model_folder))
    says(error, str(model_folder), "no chat template")


def test_an_encoder_decoder_is_turned_away(model_folder: Path) -> None:
    config = T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(model_folder)
    with pytest.raises(Es2Error) as error:
        load(str(model_folder))
    says(error, str(model_folder), "encoder-decoder")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_broken_json_file_is_an_error_of_one_line(model_folder: Path, file: str) -> None:
    (model_folder / file).write_text('{"model_type": "lla')
    with pytest.raises(Es2Error) as error:
        load(str(model_folder), device="cpu")
    says(error, str(model_folder))


def test_truncated_weights_are_an_error_of_one_line(model_folder: Path) -> None:
    weights = model_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(Es2Error) as error:
        load(str(model_folder), device="cpu")
    says(error, str(model_folder))


def test_missing_weights_are_not_filled_with_random_ones(model_folder: Path) -> None:
    tensors = load_file(model_folder / "model.safetensors")
    gone = "model.layers.2.mlp.up_proj.weight"
    del tensors[gone]
    save_file(tensors, model_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Es2Error) as error:
        load(str(model_folder), device="cpu")
    says(error, str(model_folder), gone)


def test_a_family_whose_logits_es2_cannot_reproduce_is_turned_away(tmp_path: Path) -> None:
    tokenizer = make_chat("llama").tokenizer
    config = FalconH1Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=8,
        lm_head_multiplier=0.5,
    )
    torch.manual_seed(0)
    FalconH1ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(Es2Error) as error:
        load(str(tmp_path), device="cpu")
    says(error, "FalconH1ForCausalLM", "logits")


def test_an_adapter_folder_finds_its_base(adapter_folder: Path, tiny_folder: Folder) -> None:
    found = logits_of(adapter_folder)
    torch.testing.assert_close(found, logits_of(tiny_folder("llama"), adapter=adapter_folder))
    assert not torch.allclose(found, logits_of(tiny_folder("llama")), atol=1e-2)


def test_a_base_may_stand_beside_its_adapter(
    adapter_folder: Path, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits_of(adapter_folder)
    shutil.copytree(tiny_folder("llama"), adapter_folder.parent / "base")
    path = adapter_folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": "../base"}))
    monkeypatch.chdir("/")
    torch.testing.assert_close(logits_of(adapter_folder), expected)


def test_an_adapter_is_merged_so_that_nothing_of_peft_is_left(adapter_folder: Path) -> None:
    chat = load(str(adapter_folder), device="cpu")
    assert chat.model is chat.inner
    assert not any("lora" in name for name, _ in chat.model.named_modules())
    assert not any(parameter.requires_grad for parameter in chat.model.parameters())


def test_a_truncated_adapter_is_an_error_of_one_line(adapter_folder: Path) -> None:
    weights = adapter_folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(Es2Error) as error:
        load(str(adapter_folder), device="cpu")
    says(error, str(adapter_folder))


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"base_model_name_or_path": null}', '{"base_model_name_or_path": ""}'],
)
def test_a_damaged_adapter_config_is_an_error_of_one_line(adapter_folder: Path, text: str) -> None:
    (adapter_folder / "adapter_config.json").write_text(text)
    with pytest.raises(Es2Error) as error:
        load(str(adapter_folder), device="cpu")
    says(error, "adapter_config.json", "damaged or names no base model")


def test_an_adapter_that_lacks_weights_is_not_half_loaded(adapter_folder: Path) -> None:
    weights = adapter_folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    gone = sorted(tensors)[3]
    del tensors[gone]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(Es2Error) as error:
        load(str(adapter_folder), device="cpu")
    says(error, str(adapter_folder))


def test_an_adapter_of_another_model_is_an_error_of_one_line(
    adapter_folder: Path, tiny_folder: Folder
) -> None:
    with pytest.raises(Es2Error) as error:
        load(str(tiny_folder("phi3")), device="cpu", adapter=adapter_folder)
    says(error, str(adapter_folder))


def test_an_adapter_folder_that_is_not_there_is_an_error_of_one_line(
    tiny_folder: Folder, tmp_path: Path
) -> None:
    with pytest.raises(Es2Error) as error:
        load(str(tiny_folder("llama")), device="cpu", adapter=tmp_path / "nowhere")
    says(error, str(tmp_path / "nowhere"))


def test_loading_says_nothing_at_warning_level(
    tiny_folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    load(str(tiny_folder("llama")), device="cpu")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_device_map_is_handed_on_and_changes_no_answer(
    tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = str(tiny_folder("llama")), []
    read = AutoModelForCausalLM.from_pretrained

    def spy(*args: Any, **options: Any) -> Any:
        seen.append(options["device_map"])
        return read(*args, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spy)
    plain, spread = load(folder, device="cpu"), load(folder, device="cpu", device_map="auto")
    assert seen == [None, "auto"]
    rows = encode(spread)
    assert generate(spread, rows, 6) == generate(plain, rows, 6)
    tuned = with_lora(spread)
    final = forward(tuned, rows).final
    assert final is not None
    final.sum().backward()
    assert all(p.grad is not None for p in trainable(tuned).values())
