"""Scoring of generated answers: exact match and token F1 after SQuAD's normalisation (Rajpurkar et al. 2016, §4.1)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, words separated by one space."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the prediction equals one of the answers after normalisation, else 0.0."""
    return max(float(normalise(prediction) == normalise(answer)) for answer in _accepted(answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Harmonic mean of word precision and recall, 0..1, against the answer that it fits best."""
    return max(_f1(normalise(prediction).split(), normalise(answer).split()) for answer in _accepted(answers))


def _f1(predicted: list[str], expected: list[str]) -> float:
    if not predicted or not expected:
        return float(predicted == expected)
    common = (Counter(predicted) & Counter(expected)).total()
    return 2 * common / (len(predicted) + len(expected))


def _accepted(answers: Sequence[str]) -> Sequence[str]:
    # A single string is a sequence of characters too; scoring against its letters would go unnoticed.
    accepted = (answers,) if isinstance(answers, str) else answers
    if not accepted:
        raise ValueError("an answer can only be scored against at least one accepted answer, got none")
    return accepted
