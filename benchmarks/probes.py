"""What may be forgotten: the questions and the text that a study asks of every run."""

from __future__ import annotations

from pathlib import Path

from benchmarks.measurement import SHOTS, TEXT, data_file
from memgraft.comparison.measuring import AnyProbe
from memgraft.probes import AnswerNLLProbe, QAProbe, TextProbe, load_probe

QUESTIONS = {"webquestions": "qa", "triviaqa": "qa", "popqa": "qa", "nq_open": "nll", "gsm8k": "nll"}


def load_probes(data: Path, questions: int, text_tokens: int) -> list[AnyProbe]:
    """F1 of WebQuestions, TriviaQA and PopQA, NLL of the answers of Natural Questions and GSM8K, NLL of WikiText-2 test.

    Args:
        data: folder of the data sets.
        questions: of each.
        text_tokens: of WikiText-2.

    Raises:
        DataError: a file of the folder is missing, or can't be used.
    """
    probes: list[AnyProbe] = []
    for name, kind in QUESTIONS.items():
        probe = load_probe(f"{kind}:{data_file(data, Path('probes', name + '.jsonl'))}#{questions}")
        assert isinstance(probe, QAProbe | AnswerNLLProbe)
        probes.append(probe.model_copy(update={"name": name, "shots": SHOTS}))
    text = load_probe(f"text:{data_file(data, TEXT)}#{text_tokens}")
    assert isinstance(text, TextProbe)
    return [*probes, text.model_copy(update={"name": "wikitext"})]
