"""Wordings into token batches: which tokens the model sees, and which of them it is to predict.

Every text is tokenised once, as a whole, and a token is learned where its characters overlap a wording's spans: tokens that
straddle the border of an answer can't be missed, as they can be where prompt and answer are tokenised apart.

Shape suffixes: S sequences, T tokens of the longest.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from memgraft.errors import DataError, GraftError, TeachingError
from memgraft.probes.language_model import adds_special_tokens
from memgraft.wordings import Wording

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenBatch:
    """The wordings of one example, one a row, padded on the right to the longest."""

    name: str  # the example's, for messages and records
    input_ids: Tensor  # (S, T) int64
    attention_mask: Tensor  # (S, T) bool, False at padding
    targets: Tensor  # (S, T) bool: the token at t is to be predicted, from those before it; never True at 0
    writable: Tensor | None = None  # (S, T) bool: tokens whose reads may be written, those of the example itself; None: all
    rounds: tuple[int, ...] = (0,)  # the sequence with which each round starts; a pass teaches one round, in turn
    supersedes: str | None = None  # id of the earlier fact that this one replaces
    sources: Tensor | None = None  # (S,) int64: sequences with the same one are the same question or statement, in other frames
    lower: TokenBatch | None = None  # some of the sequences in lower case: what cues sound like there; not taught

    def __len__(self) -> int:
        return len(self.input_ids)

    def round(self, turn: int) -> TokenBatch:
        """The sequences that pass `turn`, counted from 0, teaches."""
        number = turn % len(self.rounds)
        part = slice(self.rounds[number], (*self.rounds, len(self))[number + 1])
        writable = None if self.writable is None else self.writable[part]
        return TokenBatch(self.name, self.input_ids[part], self.attention_mask[part], self.targets[part], writable)


def joined(batches: Sequence[TokenBatch]) -> TokenBatch:
    """One batch with the sequences of each given one as a round."""
    width = max(batch.input_ids.shape[1] for batch in batches)

    def stack(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat([torch.nn.functional.pad(tensor, (0, width - tensor.shape[1])) for tensor in tensors])

    starts = tuple(sum(len(batch) for batch in batches[:number]) for number in range(len(batches)))
    return TokenBatch(
        batches[0].name,
        stack(batch.input_ids for batch in batches),
        stack(batch.attention_mask for batch in batches),
        stack(batch.targets for batch in batches),
        stack(batch.attention_mask if batch.writable is None else batch.writable for batch in batches),
        starts,
        sources=None
        if any(batch.sources is None for batch in batches)
        else torch.cat([b.sources for b in batches if b.sources is not None]),
    )


class _Tokens(NamedTuple):
    ids: list[int]
    offsets: list[tuple[int, int]]  # characters [start, stop) of each token


def encode(
    wordings: Sequence[Wording],
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    max_length: int,
    loss: Literal["answer", "all"] = "answer",
) -> TokenBatch:
    """Tokenises the wordings of one example, which the batch calls `name`.

    `answer` learns the tokens that overlap the wordings' spans, `all` every token but the first. What follows the last token to
    learn is dropped, since nothing there matters. `max_length` is the model's context.

    Raises DataError for an example without text, TeachingError for a wording longer than the context or with no token to
    learn, GraftError for a tokenizer that can't tell which characters a token covers.
    """
    if not wordings:
        raise DataError("no wording to learn")
    rows = []
    for number, wording in enumerate(wordings, 1):
        where = (f"{wording.fields}: " if wording.fields else "") + f"wording {number} ({_excerpt(wording.text)})"
        if not wording.text:
            raise DataError(f"{where}: is empty")
        # What begins with them, such as a conversation that was written out, is taught as it is.
        special = wording.special_tokens and adds_special_tokens(tokenizer, wording.text)
        tokens = _tokenise(wording.text, tokenizer, special_tokens=special)
        targets = _overlaps(tokens, wording.spans) if loss == "answer" else [True] * len(tokens.ids)
        targets[:1] = [False]  # nothing comes before the first token that could predict it
        if True not in targets:
            raise TeachingError(f"{where}: no token to learn among its {len(targets):,}; give it a longer answer or text")
        length = len(targets) - targets[::-1].index(True)
        if length > max_length:
            raise TeachingError(f"{where}: longer than the context: {length:,} tokens, the model takes {max_length:,}; shorten or split it")
        own = [stop > wording.own for _, stop in tokens.offsets]
        rows.append((tokens.ids[:length], targets[:length], own[:length]))
    return replace(_padded(name, rows, tokenizer), sources=torch.tensor([wording.source for wording in wordings]))


def chunk(wording: Wording, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> tuple[Wording, ...]:
    """Cuts a plain text, learned as a whole, into consecutive parts of about equal length with at most max_length tokens each.

    The parts joined are the text again. A text that fits is returned as it is. Raises TeachingError where max_length is too
    small to hold a character, GraftError as `encode` does, ValueError for a wording that is not learned as a whole.
    """
    if wording.spans != ((0, len(wording.text)),):
        raise ValueError("only a text that is learned as a whole can be cut: the parts of others would lose what they answer to")
    text, special = wording.text, wording.special_tokens
    if len(_tokenise(text, tokenizer, special_tokens=special).ids) <= max_length:
        return (wording,)
    cuts = _cuts(_tokenise(text, tokenizer, special_tokens=False), len(text))
    budget = max(1, max_length - (tokenizer.num_special_tokens_to_add() if special else 0))
    parts: list[Wording] = []
    done = _Cut(tokens=0, character=0)
    while done != cuts[-1]:
        left = cuts[-1].tokens - done.tokens
        goal = math.ceil(left / math.ceil(left / budget))
        while True:
            following = bisect.bisect(cuts, done)
            cut = cuts[max(following, bisect.bisect(cuts, done.tokens + goal, key=lambda cut: cut.tokens) - 1)]
            part = text[done.character : cut.character]
            # Cut apart, a text can make more tokens than it did as a whole: aim lower until it fits.
            excess = len(_tokenise(part, tokenizer, special_tokens=special).ids) - max_length
            if excess <= 0:
                break
            if cut == cuts[following]:
                raise TeachingError(f"text: can't be cut into parts of {max_length:,} tokens: {_excerpt(part)} alone takes more")
            goal = cut.tokens - done.tokens - excess
        parts.append(Wording(part, ((0, len(part)),), special, fields=wording.fields))
        done = cut
    return tuple(parts)


class _Cut(NamedTuple):
    """A place where a text can be cut: after so many tokens, at that character."""

    tokens: int
    character: int


def _cuts(tokens: _Tokens, characters: int) -> list[_Cut]:
    """Where a token ends and the next one begins with another character, in order; at last the end of the text."""
    cuts: list[_Cut] = []
    end = 0
    for index, (_, stop) in enumerate(tokens.offsets[:-1]):
        end = max(end, stop)
        if (cuts[-1].character if cuts else 0) < end <= tokens.offsets[index + 1][0]:
            cuts.append(_Cut(index + 1, end))
    return [cut for cut in cuts if cut.character < characters] + [_Cut(len(tokens.ids), characters)]


def _tokenise(text: str, tokenizer: PreTrainedTokenizerBase, *, special_tokens: bool) -> _Tokens:
    if not tokenizer.is_fast:
        raise GraftError(
            f"{type(tokenizer).__name__} can't tell which characters a token covers; a fast tokenizer (tokenizer.json) is needed"
        )
    # verbose=False: too long a text is an error or is cut here, and needs no warning of the tokenizer's.
    encoded = tokenizer(
        text, add_special_tokens=special_tokens, return_offsets_mapping=True, truncation=False, padding=False, verbose=False
    )
    return _Tokens(list(encoded["input_ids"]), [(start, stop) for start, stop in encoded["offset_mapping"]])


def _overlaps(tokens: _Tokens, spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Which tokens share a character with a span."""
    starts = [start for start, _ in spans]
    overlaps = []
    end = 0
    for start, stop in tokens.offsets:
        if start == stop:
            # Either a special token, which covers nothing, or white space that the tokenizer trims from what it reports.
            start = min(end, stop)
        last = bisect.bisect_left(starts, stop) - 1
        overlaps.append(start < stop and last >= 0 and spans[last][1] > start)
        end = max(end, stop)
    return overlaps


def _padded(name: str, rows: Sequence[tuple[list[int], list[bool], list[bool]]], tokenizer: PreTrainedTokenizerBase) -> TokenBatch:
    longest = max(len(ids) for ids, _, _ in rows)
    padding = tokenizer.pad_token_id
    input_ids = torch.full((len(rows), longest), padding if isinstance(padding, int) else 0, dtype=torch.int64)
    attention_mask = torch.zeros(input_ids.shape, dtype=torch.bool)
    targets = torch.zeros(input_ids.shape, dtype=torch.bool)
    writable = torch.zeros(input_ids.shape, dtype=torch.bool)
    for row, (ids, marks, own) in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention_mask[row, : len(ids)] = True
        targets[row, : len(ids)] = torch.tensor(marks)
        writable[row, : len(ids)] = torch.tensor(own)
    return TokenBatch(name, input_ids, attention_mask, targets, writable)


def _excerpt(text: str) -> str:
    """The start of a text in quotes, on one line."""
    return repr(text if len(text) <= 40 else text[:39] + "…")
