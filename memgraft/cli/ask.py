"""`memgraft ask`: one question to the taught model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from memgraft.cli.console import plain, print_json, say
from memgraft.cli.options import BaseModel, Device, Dtype, Json, Store, TrustRemoteCode, load_grafted
from memgraft.cli.progress import Stages
from memgraft.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WHOLE_ANSWER = "\0"  # ends an answer at nothing that a text holds, so that it may have several lines


def ask(
    store: Store,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask.", show_default=False)],
    without_memory: Annotated[bool, typer.Option("--without-memory", help="Ask the base model.")] = False,
    both: Annotated[bool, typer.Option("--both", help="Ask the base model and the taught one.")] = False,
    chat: Annotated[bool, typer.Option("--chat", help="As a user's message; the default where the model has a chat template.")] = False,
    few_shot: Annotated[bool, typer.Option("--few-shot", help="After five examples, for a short answer; the default elsewhere.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="The question as it stands; the model goes on from there.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the answer.")] = 64,
    model: BaseModel = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Ask a question. The answer, chosen greedily, is all that is printed on stdout."""
    if chat + few_shot + raw > 1:
        raise DataError("--chat, --few-shot and --raw exclude each other; give one of them")
    if both and without_memory:
        raise DataError("--both and --without-memory exclude each other; give one of them")
    if not question.strip():
        raise DataError("the question is empty")
    with Stages() as stages:
        stages.stage("loading the base model")
        grafted = load_grafted(store, model=model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        from memgraft.probes import generate_answers

        frame = "chat" if chat else "few-shot" if few_shot else "raw" if raw else default_frame(grafted.tokenizer)
        prompt = prompt_of(grafted.tokenizer, frame, question)
        stop = "\n" if frame == "few-shot" else WHOLE_ANSWER

        def answer() -> str:
            return generate_answers(grafted.base, grafted.tokenizer, [prompt], max_new_tokens=max_new_tokens, stop=stop)[0]

        stages.stage("answering")
        answers = {}
        if both or without_memory:
            with grafted.without_memory():
                answers["without_memory"] = answer()
        if not without_memory:
            answers["with_memory"] = answer()
    if json:
        print_json({"question": question, "frame": frame, "answers": answers})
    elif both:
        say(f"without memory: {answers['without_memory']}")
        say(f"with memory:    {answers['with_memory']}")
    else:
        print(plain(next(iter(answers.values()))))


def default_frame(tokenizer: PreTrainedTokenizerBase) -> str:
    """How a model is asked where the user does not say it."""
    return "chat" if tokenizer.chat_template else "few-shot"


def prompt_of(tokenizer: PreTrainedTokenizerBase, frame: str, question: str) -> str:
    """The question in its frame."""
    from memgraft.probes.frames import chat_prompt, choose_shots, few_shot_prompt, packaged_shots

    if frame == "chat":
        return chat_prompt(tokenizer, question)
    if frame == "few-shot":
        return few_shot_prompt(question, choose_shots(question, packaged_shots(), 5))
    return question
