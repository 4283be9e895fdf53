"""Probes: what must not get worse, and what was learned, measured on any Hugging Face causal LM."""

from memgraft.probes.answers import exact_match, f1, normalise
from memgraft.probes.drift import drift_kl
from memgraft.probes.frames import chat_prompt, few_shot_prompt
from memgraft.probes.generation import generate_answers
from memgraft.probes.intervals import Interval, mean_interval, paired_bootstrap
from memgraft.probes.likelihood import answer_nll, choose, text_nll
from memgraft.probes.measuring import measure, run_probes
from memgraft.probes.probe import AnswerNLLProbe, ChoiceProbe, DriftProbe, Probe, QAProbe, TextProbe, load_probe
from memgraft.probes.rows import ChoiceRow, QuestionRow
from memgraft.probes.scores import Change, Scores, compare

__all__ = [
    "AnswerNLLProbe",
    "Change",
    "ChoiceProbe",
    "ChoiceRow",
    "DriftProbe",
    "Interval",
    "Probe",
    "QAProbe",
    "QuestionRow",
    "Scores",
    "TextProbe",
    "answer_nll",
    "chat_prompt",
    "choose",
    "compare",
    "drift_kl",
    "exact_match",
    "f1",
    "few_shot_prompt",
    "generate_answers",
    "load_probe",
    "mean_interval",
    "measure",
    "normalise",
    "paired_bootstrap",
    "run_probes",
    "text_nll",
]
