"""At which depth a fact's own question is told from others about its subject.

    python -m benchmarks.depths --data FOLDER                                        # results/depths/MODEL-DTYPE.json
    python -m benchmarks.depths --data FOLDER --model gemma3 --dtype float32

Nothing is taught: at each of the depths that `memgraft.depth` compares an answer layer is fitted and the anchors of facts are found, from
hidden states alone. Facts are of the tuning split, in the protocol's wordings, whether or not the base knows them.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from benchmarks.base_model import add_model_options
from benchmarks.measurement import FACTS, SHOTS, data_file, read_rows, taught_rows
from benchmarks.neighbours import subject_of
from benchmarks.packaged import PACKAGED, unpacked
from benchmarks.relations import relations
from benchmarks.selection import select_facts
from benchmarks.splits import split_of
from benchmarks.writing import write_json
from memgraft.anchoring import find_anchors, fit_answers
from memgraft.anchors import Anchors
from memgraft.comparison.grid import memory
from memgraft.comparison.runs import environment
from memgraft.comparison.workshop import Workshop
from memgraft.depth import confusions
from memgraft.entering import FrozenPrefix, all_entered
from memgraft.errors import DataError, GraftError, MemgraftError
from memgraft.examples import Fact
from memgraft.grafted import GraftedModel
from memgraft.models import demo_model_path, load_model
from memgraft.probes.frames import chat_prompt, choose_shots, few_shot_prompt, packaged_shots
from memgraft.probes.language_model import encode
from memgraft.states import background_states

OTHERS = 2  # questions on other relations about each fact's subject
PASSES, WORDINGS = 2, 8  # whose wordings show where anchors are

Frame = Callable[[str], str]


def frames_of(grafted: GraftedModel) -> dict[str, Frame]:
    """The ways in which a question is asked."""
    frames: dict[str, Frame] = {
        "few-shot": lambda question: few_shot_prompt(question, choose_shots(question, packaged_shots(), SHOTS)),
        "zero-shot": lambda question: few_shot_prompt(question, ()),
        "bare": lambda question: question,
    }
    if grafted.tokenizer.chat_template:
        frames["chat"] = lambda question: chat_prompt(grafted.tokenizer, question)
    return frames


def above(grafted: GraftedModel, anchors: Anchors, asked: Sequence[tuple[int, str]], frame: Frame) -> tuple[Tensor, Tensor]:
    """By how much each question's last token exceeds the least cosine with its fact's anchor, and whether an answer is expected.

    Args:
        asked: the number of a fact, and a question.
    """
    assert grafted.answers is not None
    assert grafted.config.answer_layer is not None
    begins = {int(anchors.facts[number]): number for number in anchors.begins.nonzero()[:, 0].tolist()}
    prompts = [encode(grafted.tokenizer, frame(question)) for _, question in asked]
    states = background_states(grafted, grafted.config.answer_layer, prompts)
    last = torch.stack([hidden[-1].float() for hidden in states]).to(grafted.device)
    exceeds = [
        float(query @ anchors.keys[begins[number]] - anchors.least[begins[number]]) if number in begins else -1.0
        for query, (number, _) in zip(grafted.answers.queries(last).cpu(), asked, strict=True)
    ]
    return torch.tensor(exceeds), grafted.answers.expects(last).cpu()


def measure(workshop: Workshop, data: Path, count: int) -> Iterator[dict[str, Any]]:
    """A row for each depth: how often questions are confused there, and which are at a fact's anchor."""
    rows = [row for row in read_rows(data_file(data, FACTS)) if split_of(row) == "tuning"]
    chosen = select_facts(rows, lambda indices: [True] * len(indices), count, seed=0)
    facts = [Fact(line=1 + number, **row) for number, row in enumerate(taught_rows(rows, chosen))]
    batches = workshop.prepare(facts, passes=PASSES, wordings=WORDINGS, seed=0)
    grafted = workshop.grafted(memory())
    if grafted.config.answer_layer is None:
        raise GraftError("the model has no answer layer: its context is too short for questions with their answers")
    own = [(number, str(rows[index]["question"])) for number, index in enumerate(chosen.taught)]
    others = []
    for number, index in enumerate(chosen.taught):
        different = [relation for relation in relations().values() if relation.id != rows[index]["relation"]]
        for relation in random.Random(number).sample(different, OTHERS):
            others.append((number, relation.test.replace("{s}", subject_of(rows[index]))))
    chosen_layer = grafted.config.answer_layer
    for layer, confused in confusions(grafted).items():
        grafted.move_answers(layer)
        fit_answers(grafted, seed=0)
        assert grafted.answers is not None
        anchors = find_anchors(grafted.answers, all_entered(grafted, batches, FrozenPrefix(grafted, layer, 0), PASSES, 8192))
        row: dict[str, Any] = {"layer": layer, "chosen": layer == chosen_layer, "confused": round(confused, 4), "frames": {}}
        for name, frame in frames_of(grafted).items():
            (mine, expected), (theirs, also) = above(grafted, anchors, own, frame), above(grafted, anchors, others, frame)
            row["frames"][name] = {
                "own": round(float(((mine > 0) & expected).float().mean()), 4),
                "others": round(float(((theirs > 0) & also).float().mean()), 4),
                "area": round(float((mine[:, None] > theirs).float().mean()), 4),
            }
        row["area"] = round(fmean(each["area"] for each in row["frames"].values()), 4)
        print(row, file=sys.stderr, flush=True)
        yield row


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the summary. Exit status 1 with one line where something can't be used."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.depths", description="At which depth questions are told apart.")
    data = os.environ.get("MEMGRAFT_DATA")
    parser.add_argument("--data", type=Path, default=data and Path(data), help="folder of the data sets (default: MEMGRAFT_DATA)")
    parser.add_argument("-o", "--output", type=Path, default=Path("results", "depths"), help="folder (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Path("out", "cache"), help="folder for what is slow to make (default: %(default)s)")
    add_model_options(parser)
    parser.add_argument("--facts", type=int, default=60, help="(default: %(default)s)")
    parser.add_argument("--background-tokens", type=int, default=32_768, help="of self-written text (default: %(default)s)")
    options = parser.parse_args(argv)
    try:
        if options.data is None:
            raise DataError("no data: name the folder of the data sets with --data or MEMGRAFT_DATA")
        source = str(unpacked(options.model, options.cache / "packaged")) if options.model in PACKAGED else options.model
        loaded = load_model(source or str(demo_model_path()), dtype=options.dtype)
        workshop = Workshop(loaded.model, loaded.tokenizer, background_tokens=options.background_tokens, cache=options.cache)
        with torch.no_grad():
            found = list(measure(workshop, options.data, options.facts))
    except MemgraftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    name, dtype = Path(loaded.source).name, str(loaded.model.dtype).removeprefix("torch.")
    summary = {
        "model": name,
        "dtype": dtype,
        "blocks": loaded.model.config.get_text_config().num_hidden_layers,
        "facts": options.facts,
        "wordings": PASSES * WORDINGS,
        "others": OTHERS,
        "background_tokens": options.background_tokens,
        "depths": found,
        "environment": environment(loaded.model.device),
    }
    write_json(options.output / f"{name.removesuffix('.gguf')}-{dtype}.json", summary)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
