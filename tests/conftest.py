"""What all tests share: an offline, isolated home for caches, and the models they run.

Caches go to `.cache/` of the working copy, so that the user's own stay out of it and the small model is unpacked only once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from memgraft.models import LoadedModel

# Before anything imports torch or a Hugging Face library, which read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).resolve().parents[1] / ".cache")
os.environ.pop("HF_HOME", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A shell's background job ignores Ctrl-C, and so would the processes that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("memgraft", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("memgraft")


@pytest.fixture(scope="session", autouse=True)
def few_unknown_subjects() -> Iterator[None]:
    """One made-up subject of each kind, and four questions about it: all 240 double what a graft takes. See `all_unknown_subjects`."""
    from memgraft import frames, questions

    few = tuple(frames.UnknownSubjects(each.names[:1], each.questions[:4]) for each in frames.load_unknown())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(questions, "load_unknown", lambda: few)
        yield


@pytest.fixture
def all_unknown_subjects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the package has."""
    from memgraft import frames, questions

    monkeypatch.setattr(questions, "load_unknown", frames.load_unknown)


@pytest.fixture(scope="session")
def smol() -> LoadedModel:
    """SmolLM2-135M-Instruct as the demo loads it. Shared by the tests of a worker: leave it as you found it."""
    from memgraft.models import demo_model_path, load_model

    return load_model(demo_model_path())


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as `save_pretrained` writes it: a random Llama of two narrow blocks, with a byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(["<|end|>", *letters])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder
