"""Retrieval into the context: what is taught stays text, and BM25 (Robertson and Zaragoza 2009) finds it again for each question.

The ceiling of recall, at the price of a search and a longer prompt for every question, taught or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import Field

from memgraft.config import Config
from memgraft.errors import MemgraftError, TeachingError
from memgraft.examples import Fact


class Retrieval(Config):
    """The best passages in front of every question. The model itself is the base."""

    method: Literal["retrieval"] = "retrieval"
    passages: int = Field(1, gt=0, description="passages in front of a question, the best last")

    def searcher(self, passages: Sequence[str]) -> Callable[[str], str]:
        """A function from a question to the passages found for it, one a line. Where no word is shared, none are found.

        Raises:
            MemgraftError: bm25s is not installed. TeachingError: no passages.
        """
        bm25s = _import_bm25s()
        if not passages:
            raise TeachingError("nothing to search: there are no passages")
        index = bm25s.BM25()
        index.index(_words(bm25s, list(passages)), show_progress=False)
        count = min(self.passages, len(passages))

        def search(question: str) -> str:
            found, scores = index.retrieve(_words(bm25s, [question]), corpus=list(passages), k=count, show_progress=False)
            best = [str(passage) for passage, score in zip(found[0], scores[0], strict=True) if score > 0]
            return "\n".join(reversed(best))

        return search


def passages_of(facts: Sequence[Fact]) -> list[str]:
    """One passage a fact: its statements, else its question with the answer."""
    return [" ".join(fact.sentences) or f"{fact.question} {fact.answers[0]}" for fact in facts]


def _words(bm25s: Any, texts: list[str]) -> Any:
    return bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)


def _import_bm25s() -> Any:
    try:
        import bm25s
    except ImportError as error:
        raise MemgraftError('retrieval needs the package bm25s: pip install "memgraft[baselines]"') from error
    return bm25s
