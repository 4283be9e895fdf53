"""Retrieval into the context: what is taught stays text, and BM25 (Robertson and Zaragoza 2009) finds it again for each question.

What text in the context can do, at the price of a search and a longer prompt for every question, taught or not. How much a model makes
of it depends on the model and on the form in which a fact is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import Field

from memgraft.config import Config
from memgraft.errors import MemgraftError, TeachingError
from memgraft.examples import Fact, Text


class Retrieval(Config):
    """The best passages in front of every question. The model itself is the base."""

    method: Literal["retrieval"] = "retrieval"
    passages: int = Field(1, gt=0, description="facts or texts in front of a question, the best last")
    form: Literal["statement", "example"] = Field(
        "statement", description="a fact is shown as its statements, or as one more solved example: its question and answer"
    )

    def shown(self, facts: Sequence[Fact | Text]) -> list[str]:
        """What stands in a prompt for each fact: its statements, else its question with the answer. A text stands there as it is."""
        return [example.text if isinstance(example, Text) else self._shown(example) for example in facts]

    def _shown(self, fact: Fact) -> str:
        if self.form == "example":
            return f"Question: {fact.question}\nAnswer: {fact.answers[0]}\n"
        return " ".join(fact.sentences) or f"{fact.question} {fact.answers[0]}"

    def searcher(self, facts: Sequence[Fact | Text]) -> Callable[[str], str]:
        """A function from a question to what is shown of the facts found for it. Where no word is shared, none are found.

        Raises:
            MemgraftError: bm25s is not installed. TeachingError: no facts.
        """
        bm25s = import_bm25s()
        if not facts:
            raise TeachingError("nothing to search: there are no facts")
        shown, index = self.shown(facts), bm25s.BM25()
        index.index(_words(bm25s, searched(facts)), show_progress=False)
        count = min(self.passages, len(shown))

        def search(question: str) -> str:
            found, scores = index.retrieve(_words(bm25s, [question]), k=count, show_progress=False)
            best = [shown[number] for number, score in zip(found[0].tolist(), scores[0].tolist(), strict=True) if score > 0]
            return "\n".join(reversed(best))

        return search


def searched(facts: Sequence[Fact | Text]) -> list[str]:
    """What is searched of each fact: all that is taught of it, its questions among it, whatever is shown. A text is searched as it is."""
    return [
        example.text if isinstance(example, Text) else " ".join((*example.questions, *(example.sentences or example.answers[:1])))
        for example in facts
    ]


def _words(bm25s: Any, texts: list[str]) -> Any:
    return bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)


def import_bm25s() -> Any:
    """The package bm25s. Raises MemgraftError with the way to install it."""
    try:
        import bm25s
    except ImportError as error:
        raise MemgraftError('retrieval needs the package bm25s: pip install "memgraft[baselines]"') from error
    return bm25s
