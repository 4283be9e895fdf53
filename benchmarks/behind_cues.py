"""The rivals behind the memory's cues: is it only the cues that keep the memory from forgetting?

    python -m benchmarks.behind_cues --data FOLDER    # after benchmarks.pareto; results/pareto/behind_cues.json

What opens the memory could as well decide when a rival is asked: a prompt or a window of text in which cues open goes to the rival's
taught model, every other one to the base. Both have scored every item of every probe in runs.jsonl, so nothing is taught or asked again
here; only the cues are found, those that the memory has for the same facts.

In the rivals' favour: they are asked from the prompt's first token, not only from where cues open. Against them: a window of text that
opens somewhere counts as theirs from its start.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.materials import Choice
from benchmarks.pareto import arguments, study_of
from benchmarks.splits import Split
from benchmarks.study import Study
from benchmarks.writing import write_json
from memgraft.baselines import Retrieval
from memgraft.comparison.grid import memory
from memgraft.comparison.measuring import AnyProbe
from memgraft.comparison.methods import Base, family, method_of
from memgraft.comparison.runs import read_runs
from memgraft.comparison.summary import BASE, MEMORY, arithmetic_of, summarise
from memgraft.cues import Cues
from memgraft.errors import MemgraftError
from memgraft.finding import find_cues
from memgraft.grafted import GraftedModel
from memgraft.probes import AnswerNLLProbe, QAProbe, TextProbe
from memgraft.probes.language_model import context_length, encode
from memgraft.probes.likelihood import text_windows
from memgraft.probes.measuring import few_shot_prompts
from memgraft.states import background_states

Run = Mapping[str, Any]


def opened(grafted: GraftedModel, cues: Cues, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """(T,) bool of each sequence: at which tokens the memory is open."""
    states = background_states(grafted, grafted.config.layers[0], sequences)
    return [cues.open(cues.heard(grafted.cue_queries(hidden)[None]))[0] for hidden in states]


def sequences_of(probe: AnyProbe, grafted: GraftedModel) -> list[list[int]]:
    """The token ids of each of a probe's items: prompts as `measure` asks them, or windows of text."""
    if isinstance(probe, QAProbe | AnswerNLLProbe):
        return [encode(grafted.tokenizer, prompt) for prompt in few_shot_prompts(probe.questions, probe.shots)]
    assert isinstance(probe, TextProbe)
    window = min(probe.window, context_length(grafted.base) or probe.window)
    return text_windows(grafted.tokenizer, probe.texts, window=window, max_tokens=probe.max_tokens)


def opened_items(study: Study, choice: Choice) -> dict[str, list[bool]]:
    """Probe → for each item, whether it opens the memory that was taught these facts. All are closed where there are no cues."""
    grafted = study.workshop.grafted(memory())
    grafted.assign_rows({})
    found = find_cues(grafted, study.materials.of(choice).lesson.batches)
    opens: dict[str, list[bool]] = {}
    for probe in study.probes_of(choice):
        sequences = sequences_of(probe, grafted)
        # An open memory stays open, so a sequence's last token tells.
        opens[probe.name] = [bool(each[-1]) for each in opened(grafted, found.cues, sequences)] if found else [False] * len(sequences)
    return opens


def behind(run: Run, base: Run, opens: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    """A rival's run as if it had been asked only where cues open, and the base elsewhere."""
    scores = {}
    for probe, measured in run["scores"].items():
        each = zip(opens[probe], measured["values"], base["scores"][probe]["values"], strict=True)
        scores[probe] = {**measured, "values": [taught if is_open else untaught for is_open, taught, untaught in each]}
    return {**run, "scores": scores}


def behind_cues(study: Study, runs: Sequence[Run]) -> dict[str, Any]:
    """For each split, the summary of the memory's runs and of all rivals behind its cues."""
    parts: dict[str, Any] = {}
    splits: tuple[Split, ...] = ("tuning", "test")
    chosen = None  # the memory's settings at which rivals are compared with it, on the tuning split as on the test split
    for split in splits:
        combined: list[Run] = []
        share: dict[str, dict[str, float]] = {}
        measured = [run for run in runs if run["split"] == split and "failed" not in run]
        asked: dict[Choice, dict[str, list[bool]]] = {}
        for base in (run for run in measured if run["method"] == BASE):  # one for each choice of facts and each way of rounding
            choice = Choice(split, base["facts"], base["seed"])
            opens = asked[choice] if choice in asked else asked.setdefault(choice, opened_items(study, choice))
            share[str(base["seed"])] = {probe: round(sum(each) / len(each), 4) for probe, each in opens.items()}
            combined.append(base)
            for run in measured:
                method = method_of(run["settings"])
                others = (run["seed"], run["facts"], arithmetic_of(run)) != (base["seed"], base["facts"], arithmetic_of(base))
                if others or isinstance(method, Base | Retrieval):
                    continue
                combined.append(run if family(method) == MEMORY else behind(run, base, opens))
        if combined:
            parts[split] = {"opened": share, **summarise(study.identified(combined) if split == "test" else combined, chosen)}
            chosen = parts[split]["at_equal_learning"].get("memory") if split == "tuning" else chosen
    return parts


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the summary beside the study's runs. Exit status 1 with one line where something can't be used."""
    options = arguments(argv)
    try:
        study = study_of(options)
        runs = list(read_runs(study.runs_path).values())
        if not runs:
            raise MemgraftError(f"{study.runs_path}: no runs yet; python -m benchmarks.pareto makes them")
        with torch.no_grad():
            parts = behind_cues(study, runs)
    except MemgraftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write_json(study.output / "behind_cues.json", {**study.identity, **parts})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
