"""Questions of a probe that ask for a taught fact: they tell what was learned, where others should tell what was forgotten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from memgraft.comparison.measuring import AnyProbe
from memgraft.examples import Fact, normalise
from memgraft.probes import ChoiceProbe, TextProbe


def asking_taught(facts: Sequence[Fact], probe: AnyProbe) -> list[int]:
    """Numbers, from 0, of the probe's rows that ask for a taught fact. A text asks for none.

    Such a row is one of the fact's own wordings, or it accepts one of the fact's answers and has all words that the fact's wordings
    share, those aside that many facts have: mostly its subject. Rows that name the subject in other words are missed.
    """
    wordings = [[normalise(each) for each in (*fact.questions, *fact.sentences, *fact.held_out)] for fact in facts]
    shared = [set.intersection(*(set(each.split()) for each in own)) for own in wordings]
    having = Counter(word for words in shared for word in words)
    many = max(2, len(facts) // 10)  # facts about one subject, or of one relation in a varied file
    apart = [{word for word in words if having[word] <= many} for words in shared]
    answers = [{normalise(answer) for answer in fact.answers} for fact in facts]
    literal = {wording for own in wordings for wording in own}
    return [
        number
        for number, (question, accepted) in enumerate(_rows(probe))
        if question in literal
        or any(words and words <= set(question.split()) and taught & accepted for words, taught in zip(apart, answers, strict=True))
    ]


def _rows(probe: AnyProbe) -> Iterator[tuple[str, set[str]]]:
    """Each row's question and the answers that it accepts."""
    if isinstance(probe, TextProbe):
        return
    if isinstance(probe, ChoiceProbe):
        yield from ((normalise(row.question), {normalise(row.choices[row.answer])}) for row in probe.questions)
    else:
        yield from ((normalise(row.question), {normalise(answer) for answer in row.answers}) for row in probe.questions)
