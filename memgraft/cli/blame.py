"""`memgraft blame`: which lessons an answer comes from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from memgraft.cli.ask import WHOLE_ANSWER, default_frame, prompt_of
from memgraft.cli.console import first_line, plain, print_json, print_table, say, short
from memgraft.cli.options import BaseModel, Device, Dtype, Json, Store, TrustRemoteCode, load_grafted
from memgraft.cli.progress import Stages
from memgraft.errors import DataError


def blame(
    store: Store,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask.", show_default=False)],
    answer: Annotated[str | None, typer.Option(help="The answer to trace.", show_default="the one that the model gives")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The question as it stands; see `ask`.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the answer.")] = 32,
    model: BaseModel = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Trace an answer to lessons: whose slots it reads, and how far each moves it.

    `moves` is the log-probability of the answer with the lesson minus without it; `logit` the largest change of a logit.
    """
    if not question.strip():
        raise DataError("the question is empty")
    with Stages() as stages:
        stages.stage("loading the base model")
        grafted = load_grafted(store, model=model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        from memgraft.blame import blame as trace
        from memgraft.probes import generate_answers

        frame = "raw" if raw else default_frame(grafted.tokenizer)
        prompt = prompt_of(grafted.tokenizer, frame, question)
        if answer is None:
            stages.stage("answering")
            stop = "\n" if frame == "few-shot" else WHOLE_ANSWER
            answer = generate_answers(grafted.base, grafted.tokenizer, [prompt], max_new_tokens=max_new_tokens, stop=stop)[0]
        stages.stage("tracing")
        found = trace(grafted, prompt, answer if raw else " " * (frame == "few-shot") + answer)
    if json:
        print_json(
            {"question": question, "frame": frame, "answer": answer, "nats": found.nats, "lessons": [asdict(s) for s in found.shares]}
        )
        return
    say(f"answer: {plain(answer)}")
    say(f"the memory moves it by {found.nats:+.3f} nats")
    if found.shares:
        rows = [
            (short(s.commit), f"{s.slots:,}", f"{s.weight:.1%}", f"{s.nats:+.3f}", f"{s.largest:.3f}", first_line(s.message))
            for s in found.shares
        ]
        columns = ("lesson", "slots read", "of the reads", "moves (nats)", "logit", "message")
        print_table(columns, rows, numbers=columns[1:5])
    else:
        say("no lesson's slots are read")
