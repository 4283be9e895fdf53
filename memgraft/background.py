"""Background text: what stands for all that must be preserved.

By default the base model writes it, a proxy of what it was trained on, with no data set needed: documents are sampled from the
start token where that starts documents, and from short varied openings and empty chat turns elsewhere (an instruct model's
start token may open a chat turn).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from memgraft.data import read_examples
from memgraft.errors import DataError, GraftError
from memgraft.examples import Text
from memgraft.probes.generation import generating_by
from memgraft.probes.language_model import context_length, encode, evaluating
from memgraft.wordings import chat_renderer

SHORTEST = 16  # tokens of a document that the model wrote; shorter ones are left out
PATIENCE = 256  # documents left out in a row before that counts as an error

# Openings of many kinds of text, none of them a fact.
OPENINGS = (
    "The", "In the", "A", "When", "This", "It was", "One of the", "For", "As", "There are", "We", "I", "My", "You", "He", "She", "They",
    "If you", "How to", "What is", "Why", "According to", "After", "Before", "During", "Although", "While", "Since", "Most", "Many",
    "Some", "All", "Every", "No", "On", "At", "From", "With", "By", "Once upon a time", "Chapter", "Introduction", "Abstract", "Dear",
    "1.", "#", "##", "- ", "* ", "Step", "Today", "Yesterday", "Last", "New", "People", "Scientists", "Students", "Children", "Water",
    "The city of", "The history of", "The first", "The most", "The story", "His", "Her", "Their", "Our", "Please", "Let", "Given",
    "Question", "Q:", "Answer", "Note", "Summary", "Table", "def ", "import ", "<p>", "\"", "“", "Yes", "But", "And", "So", "Then",
)  # fmt: skip


_DATASET = re.compile(r"hf:(?P<name>[^:]+)(:(?P<split>[^:\[]+(\[[^\]]*\])?))?(:(?P<field>[^:]+))?")


@dataclass(frozen=True)
class Background:
    """Background texts and how they are cut into documents, the unit of document frequencies."""

    texts: tuple[str, ...]
    kind: str  # "self-written", or where they came from
    seed: int
    tokens: int  # how many tokens of the texts are used
    document_tokens: int  # a longer text is cut

    def split(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of the documents that usage is counted on, and of every tenth one, held out to measure drift on."""
        parts = documents(self.texts, tokenizer, tokens=self.tokens, length=self.document_tokens)
        if len(parts) < 10:
            return parts, parts
        return [part for i, part in enumerate(parts) if i % 10 != 9], parts[9::10]


def documents(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, tokens: int, length: int) -> list[list[int]]:
    """Token ids of the texts, cut into documents of at most `length` tokens and at least 2, up to `tokens` tokens in all."""
    parts: list[list[int]] = []
    left = tokens
    for text in texts:
        ids = _ids(text, tokenizer)
        for start in range(0, len(ids), length):
            part = ids[start : start + length][:left]
            if len(part) > 1:
                parts.append(part)
                left -= len(part)
        if left < 2:
            break
    return parts


def used_texts(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, tokens: int) -> list[str]:
    """The first texts, up to the one with which `documents` has its `tokens` tokens: no more is read of a large data set, or kept."""
    used: list[str] = []
    left = tokens
    for text in texts:
        if left < 2:
            break
        used.append(text)
        left -= max(0, len(_ids(text, tokenizer)) - 1)  # of a last part of a single token nothing is used
    return used


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    # A chat that the model wrote starts with the start token already.
    special = not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))
    return list(tokenizer(text, add_special_tokens=special).input_ids)


def read_background(source: str) -> Iterable[str]:
    """Texts of a `.txt` file (paragraphs), a `.jsonl` file (field `text`), or `hf:DATASET[:SPLIT[:FIELD]]`; of a data set as it is read.

    A split may be a part of one, as in `hf:allenai/c4:train[:1000]`.

    Raises:
        DataError: no such file or data set, or rows without text.
    """
    if source.startswith("hf:"):
        named = _DATASET.fullmatch(source)
        if named is None:
            raise DataError(f"{source}: expected hf:DATASET[:SPLIT[:FIELD]]")
        return _read_dataset(named["name"], named["split"] or "train", named["field"] or "text")
    examples = read_examples(Path(source)).examples
    texts = [example.text for example in examples if isinstance(example, Text)]
    if len(texts) < len(examples):
        other = next(example for example in examples if not isinstance(example, Text))
        raise DataError(f"{source}:{other.line}: a background holds plain text only; expected the field text")
    return texts


def _read_dataset(name: str, split: str, field: str) -> Iterable[str]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError("a Hugging Face data set as background needs the package datasets: pip install 'memgraft[datasets]'") from error
    try:
        rows = load_dataset(name, split=split)
    except Exception as error:
        raise DataError(f"hf:{name}: {' '.join(str(error).split())}; check the name, the split and the network") from error
    if field not in rows.column_names:
        raise DataError(f"hf:{name}: no field {field!r}; it has {', '.join(rows.column_names)}")
    return (text for text in rows[field] if isinstance(text, str) and text.strip())  # a column is read as it is asked for


def chat_openings(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The start of an empty user turn, where the tokenizer has a chat template: the model goes on as user and assistant.

    The same on every day, as what is taught (`chat_renderer`).
    """
    chat = chat_renderer(tokenizer)
    if chat is None:
        return []
    mark = "\u2063mark\u2063"
    try:
        text = chat([{"role": "user", "content": mark}])
    except DataError:  # the template wants other turns
        return []
    return [text.split(mark)[0]] if mark in text else []


def starts_documents(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself puts its start token in front of plain text."""
    ids = tokenizer("a").input_ids
    return tokenizer.bos_token_id is not None and len(ids) > 0 and ids[0] == tokenizer.bos_token_id


def write_background(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokens: int,
    length: int = 256,
    batch_size: int = 64,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Documents sampled from the model (temperature 1, min-p .05), at least `tokens` tokens in all; every fourth is a chat.

    Args:
        length: tokens of a document at most; it ends earlier where the model ends it, or its context.
        on_progress: called with the number of tokens written so far.

    Raises:
        GraftError: the model ends its documents at once.
    """
    rng = random.Random(seed)
    length = min(length, context_length(model) or length)
    openings = [""] if starts_documents(tokenizer) else list(OPENINGS)
    # A long system prompt leaves a document little room, and with it all that are written beside it.
    chats = [text for text in chat_openings(tokenizer) if len(tokenizer(text, add_special_tokens=False).input_ids) <= length // 2]
    written: list[str] = []
    total = fruitless = 0
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    generate: Any = model.generate
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        while total < tokens:
            count = min(batch_size, math.ceil((tokens - total) / length * 1.25))
            chat = [bool(chats) and i % 4 == 3 for i in range(count)]
            prompts = [rng.choice(chats) if is_chat else rng.choice(openings) for is_chat in chat]
            rows = [
                (tokenizer(prompt, add_special_tokens=False).input_ids if is_chat else encode(tokenizer, prompt))
                or [tokenizer.bos_token_id]
                for prompt, is_chat in zip(prompts, chat, strict=True)
            ]
            width = max(map(len, rows))
            ids = torch.full((count, width), int(pad or 0))
            mask = torch.zeros(count, width, dtype=torch.int64)
            for i, row in enumerate(rows):
                ids[i, width - len(row) :] = torch.tensor(row)
                mask[i, width - len(row) :] = 1
            before = total
            sampling = GenerationConfig(
                do_sample=True,
                temperature=1.0,
                top_p=1.0,
                top_k=0,
                min_p=0.05,
                pad_token_id=pad,
                eos_token_id=model.generation_config.eos_token_id,
            )
            with evaluating(model), generating_by(model, sampling):
                out = generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), max_new_tokens=length - width)
            for i, row in enumerate(rows):
                tail = out[i, width:].tolist()
                end = next((j for j, token in enumerate(tail) if token in ends), len(tail))
                document = row + tail[: end + 1]
                if len(document) >= SHORTEST and total < tokens:
                    written.append(str(tokenizer.decode(document)))
                    total += len(document)
            fruitless = 0 if total > before else fruitless + count
            if fruitless >= PATIENCE:
                raise GraftError(
                    f"{type(model).__name__} wrote {fruitless} documents of under {SHORTEST} tokens; give it a background text"
                )
            if on_progress:
                on_progress(total)
    return written
