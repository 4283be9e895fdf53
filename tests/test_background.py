"""Background text: written by the model, the same for the same seed, cut into documents, or read from elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from memgraft.background import (
    Background,
    chat_openings,
    documents,
    read_background,
    starts_documents,
    used_texts,
    write_background,
)
from memgraft.errors import DataError, GraftError
from memgraft.grafting import graft
from tests.models import tiny_model, tiny_tokenizer

CHAT_TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<|end|>{% endfor %}"


def background(texts: list[str], *, tokens: int = 10_000, document_tokens: int = 8) -> Background:
    return Background(tuple(texts), kind="texts", seed=0, tokens=tokens, document_tokens=document_tokens)


class TestWritten:
    def test_text_is_the_same_for_the_same_seed_whatever_the_random_state_and_leaves_that_alone(self) -> None:
        torch.manual_seed(1)
        first = write_background(tiny_model(), tiny_tokenizer(), tokens=300, length=40, batch_size=4, seed=7)
        torch.manual_seed(2)
        state = torch.get_rng_state()
        assert write_background(tiny_model(), tiny_tokenizer(), tokens=300, length=40, batch_size=4, seed=7) == first
        assert torch.equal(torch.get_rng_state(), state)
        assert write_background(tiny_model(), tiny_tokenizer(), tokens=300, length=40, batch_size=4, seed=8) != first

    def test_a_model_s_own_settings_of_generation_have_no_say(self) -> None:
        plain, own = tiny_model(), tiny_model()
        own.generation_config.repetition_penalty, own.generation_config.no_repeat_ngram_size = 5.0, 2
        texts = [write_background(model, tiny_tokenizer(), tokens=200, length=40, batch_size=4) for model in (plain, own)]
        assert texts[0] == texts[1]
        assert own.generation_config.repetition_penalty == 5.0

    def test_text_has_the_tokens_that_were_asked_for_in_documents_of_the_given_length(self) -> None:
        done: list[int] = []
        prompts = PromptLengths(tiny_model())
        texts = write_background(prompts.model, tiny_tokenizer(), tokens=300, length=40, batch_size=4, on_progress=done.append)
        assert done == sorted(done)
        assert 300 <= done[-1] <= 340
        assert len(texts) >= 300 / 40
        assert prompts.longest == 40

    def test_documents_end_where_the_model_ends_them(self) -> None:
        model = ending_after(20)
        texts = write_background(model, tiny_tokenizer(), tokens=200, length=60, batch_size=4)
        assert all(text.endswith("<|end|>") and text.count("<|end|>") == 1 for text in texts)

    def test_a_model_that_ends_all_documents_at_once_is_an_error_not_an_endless_loop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("memgraft.background.OPENINGS", ("The",))
        with pytest.raises(GraftError, match="documents of under 16 tokens; give it a background text"):
            write_background(ending_after(0), tiny_tokenizer(), tokens=200, length=60, batch_size=64)

    def test_the_context_of_the_model_is_not_exceeded(self) -> None:
        short = PromptLengths(tiny_model("gpt2", n_positions=48))
        assert write_background(short.model, tiny_tokenizer(), tokens=200, batch_size=4)
        assert short.longest == 48

    def test_every_fourth_document_is_a_chat_where_the_model_knows_chats(self) -> None:
        texts = write_background(tiny_model(), tiny_tokenizer(CHAT_TEMPLATE), tokens=1000, length=40, batch_size=8)
        chats = [text.startswith("<user>") for text in texts]
        assert 0.15 < sum(chats) / len(chats) <= 0.25
        assert not any(text.startswith("<user>") for text in write_background(tiny_model(), tiny_tokenizer(), tokens=200, length=60))

    @pytest.mark.parametrize("system", [12, 13, 40, 400], ids="a system prompt of {} tokens".format)
    def test_a_chat_that_opens_with_more_than_half_a_document_is_left_out(self, system: int) -> None:
        tokenizer = tiny_tokenizer("s" * system + CHAT_TEMPLATE)
        prompts = PromptLengths(tiny_model())
        texts = write_background(prompts.model, tokenizer, tokens=300, length=36, batch_size=4)
        assert any(text.startswith("ss") for text in texts) == (system + len("<user>") <= 18)
        assert prompts.longest == 36

    def test_chats_are_the_same_on_every_day(self) -> None:
        dated = tiny_tokenizer("{{ strftime_now('%d %B %Y') }}\n" + CHAT_TEMPLATE)
        assert chat_openings(dated) == ["01 January 2025\n<user>"]

    def test_a_template_that_refuses_a_lone_user_turn_opens_no_chat(self) -> None:
        assert chat_openings(tiny_tokenizer("{{ raise_exception('a system turn first') }}")) == []

    def test_a_tokenizer_that_starts_documents_needs_no_openings(self) -> None:
        tokenizer = tiny_tokenizer()
        assert not starts_documents(tokenizer)
        assert chat_openings(tokenizer) == []
        assert chat_openings(tiny_tokenizer(CHAT_TEMPLATE)) == ["<user>"]
        assert chat_openings(tiny_tokenizer("{{ messages[0]['content'] | upper }}")) == []


class PromptLengths:
    """A model that remembers how long the longest sequence was that it generated."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.longest = model, 0
        generate: Any = model.generate

        def spy(**settings: Any) -> torch.Tensor:
            out: torch.Tensor = generate(**settings)
            self.longest = max(self.longest, out.shape[1])
            return out

        model.generate = spy  # type: ignore[assignment]


def ending_after(length: int) -> PreTrainedModel:
    """A model whose documents end `length` tokens after their opening."""
    model = tiny_model()

    def generate(input_ids: torch.Tensor, max_new_tokens: int, **_: Any) -> torch.Tensor:
        new = torch.full((len(input_ids), max_new_tokens), 60)
        new[:, length:] = 0
        return torch.cat([input_ids, new], dim=1)

    model.generate = generate  # type: ignore[assignment]
    return model


class TestDocuments:
    def test_are_the_texts_cut_at_the_given_length(self) -> None:
        parts = documents(["abcdefghij", "klm"], tiny_tokenizer(), tokens=100, length=4)
        assert [tiny_tokenizer().decode(part) for part in parts] == ["abcd", "efgh", "ij", "klm"]

    def test_of_one_token_are_left_out(self) -> None:
        parts = documents(["abcde", "f", "gh"], tiny_tokenizer(), tokens=100, length=4)
        assert [tiny_tokenizer().decode(part) for part in parts] == ["abcd", "gh"]

    def test_stop_at_the_number_of_tokens_asked_for(self) -> None:
        texts = ["abcdefghij"] * 5
        assert [len(part) for part in documents(texts, tiny_tokenizer(), tokens=15, length=4)] == [4, 4, 2, 4]
        assert [len(part) for part in documents(texts, tiny_tokenizer(), tokens=14, length=4)] == [4, 4, 2, 4]
        assert documents(texts, tiny_tokenizer(), tokens=1, length=4) == []

    def test_every_tenth_is_held_out_to_measure_drift_on(self) -> None:
        parts = documents([f"text {number:02}" for number in range(25)], tiny_tokenizer(), tokens=10_000, length=8)
        counted, held_out = background([f"text {number:02}" for number in range(25)]).split(tiny_tokenizer())
        assert [tiny_tokenizer().decode(part) for part in held_out] == ["text 09", "text 19"]
        assert sorted(counted + held_out) == sorted(parts)

    def test_too_few_to_hold_one_out_serve_both(self) -> None:
        counted, held_out = background(["one text", "another"]).split(tiny_tokenizer())
        assert counted == held_out
        assert len(counted) == 2

    def test_get_the_start_token_once(self) -> None:
        from tokenizers.processors import TemplateProcessing

        tokenizer: Any = tiny_tokenizer()
        tokenizer.add_special_tokens({"bos_token": "<|end|>"})
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)])
        assert starts_documents(tokenizer)
        plain, started = documents(["abc", "<|end|>abc"], tokenizer, tokens=100, length=8)
        assert plain == started
        assert plain[0] == 0
        assert 0 not in plain[1:]


class TestUsed:
    @pytest.mark.parametrize("tokens", [1, 2, 3, 30, 45, 1000])
    @pytest.mark.parametrize("length", [2, 7, 256])
    def test_no_more_texts_are_kept_than_documents_are_cut_from(self, tokens: int, length: int) -> None:
        texts, read = ["a", "", "bc", "Some words.", "x" * 40, "And some more of them."] * 2, []
        tokenizer = tiny_tokenizer()
        used = used_texts((read.append(text) or text for text in texts), tokenizer, tokens=tokens)
        assert used == texts[: len(used)]
        assert len(read) <= len(used) + 1, "no further text is read"
        cut = documents(texts, tokenizer, tokens=tokens, length=length)
        assert documents(used, tokenizer, tokens=tokens, length=length) == cut

    def test_a_store_keeps_the_texts_that_were_used(self) -> None:
        texts = [f"Text number {number} about the ship." for number in range(300)]
        model = graft(tiny_model(), tiny_tokenizer(), slots=64, top_k=4, background=texts, background_tokens=200)
        assert model.background is not None
        assert 5 < len(model.background.texts) < 12


class TestRead:
    def test_paragraphs_of_a_text_file_and_texts_of_a_jsonl_file(self, tmp_path: Path) -> None:
        (tmp_path / "prose.txt").write_text("One.\nStill one.\n\nTwo.\n")
        (tmp_path / "rows.jsonl").write_text('{"text": "One."}\n{"text": "Two."}\n')
        assert read_background(str(tmp_path / "prose.txt")) == ["One.\nStill one.", "Two."]
        assert read_background(str(tmp_path / "rows.jsonl")) == ["One.", "Two."]

    def test_rows_that_are_not_text_are_refused_by_line(self, tmp_path: Path) -> None:
        (tmp_path / "rows.jsonl").write_text('{"text": "One."}\n{"prompt": "a", "completion": "b"}\n')
        with pytest.raises(DataError, match=r"rows\.jsonl:2: a background holds plain text only"):
            read_background(str(tmp_path / "rows.jsonl"))

    def test_a_missing_file_is_named(self) -> None:
        with pytest.raises(DataError, match=r"nowhere\.txt: no such file"):
            read_background("nowhere.txt")

    def test_a_data_sets_field_of_text(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[str, str]] = []

        class Rows(dict[str, list[Any]]):
            column_names = ("text", "title")

        def load_dataset(name: str, split: str) -> Rows:
            asked.append((name, split))
            if name == "nothing":
                raise FileNotFoundError("no such\ndata set")
            return Rows(text=["One.", "  ", None, "Two."], title=["Three.", "", "", ""])

        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
        assert list(read_background("hf:some/set")) == ["One.", "Two."]
        assert list(read_background("hf:some/set:test:title")) == ["Three."]
        assert list(read_background("hf:some/set:train[:1000]:title")) == ["Three."]
        assert asked == [("some/set", "train"), ("some/set", "test"), ("some/set", "train[:1000]")]
        with pytest.raises(DataError, match=r"expected hf:DATASET\[:SPLIT\[:FIELD\]\]"):
            read_background("hf:some/set:test:title:more")
        with pytest.raises(DataError, match="hf:some/set: no field 'body'; it has text, title"):
            read_background("hf:some/set:train:body")
        with pytest.raises(DataError, match="hf:nothing: no such data set; check the name, the split and the network"):
            read_background("hf:nothing")

    def test_a_data_set_without_its_package_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(DataError, match=r"pip install 'memgraft\[datasets\]'"):
            read_background("hf:some/set")
