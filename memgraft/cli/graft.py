"""`memgraft graft`: a base model in, a store with an empty memory out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memgraft.cli.console import print_json, say
from memgraft.cli.options import MOST_SEED, Device, DtypeName, Json, TrustRemoteCode, parse_count, parse_layers
from memgraft.cli.progress import Stages

if TYPE_CHECKING:
    from memgraft.grafted import GraftedModel

_STAGES = {
    "background": ("writing background text", "tokens"),
    "usage": ("counting how it uses the slots", "tokens"),
    "depth": ("looking for the depth at which questions are told apart", "wordings"),
}


def graft(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, local folder, or .gguf file.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="STORE", help="Folder to make.", show_default=False)],
    slots: Annotated[
        int | None, typer.Option(parser=parse_count, metavar="N", help="Slots of a memory layer, a square number.", show_default="2^16")
    ] = None,
    layers: Annotated[
        str,
        typer.Option(
            metavar="auto|L,L…",
            help="Blocks, from 0, in front of which memory sits; auto: one at a third of the depth. Facts are read at about three "
            "quarters, where that is behind these.",
        ),
    ] = "auto",
    top_k: Annotated[int | None, typer.Option(help="Slots that each head of a token reads.", show_default="32")] = None,
    heads: Annotated[int | None, typer.Option(help="Addresses per token.", show_default="4")] = None,
    background: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|hf:NAME[:SPLIT[:FIELD]]",
            help="Text that stands for what must be preserved: .txt, .jsonl, or a Hugging Face data set.",
            show_default="the model writes it",
        ),
    ] = None,
    background_tokens: Annotated[
        int | None,
        typer.Option(parser=parse_count, metavar="N", help="Tokens of it; raise them together with the slots.", show_default="2^15"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of the background and the calibration.")] = 0,
    dtype: Annotated[
        DtypeName, typer.Option(help="Of the base model's weights; auto: as they are stored, or float32 on a CPU slow in 16 bits.")
    ] = "auto",
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Attach an empty memory to a language model and save it as a store.

    The model itself is neither changed nor copied, and answers exactly as before until something is taught.
    """
    chosen_layers = parse_layers(layers)
    from memgraft.store.create import check_place

    check_place(output)  # what saving would say after minutes
    from memgraft.grafting import graft as graft_model

    given = {"slots": slots, "background_tokens": background_tokens, "top_k": top_k, "heads": heads}
    start = time.perf_counter()
    with Stages() as stages:
        stages.stage("loading the base model")
        shown = ""

        def progress(stage: str, done: int, total: int) -> None:
            nonlocal shown
            if stage != shown:
                shown = stage
                what, unit = _STAGES[stage]
                stages.stage(what, total)
                stages.note(f"{what}: {total:,} {unit}")
            stages.advance(done)

        grafted = graft_model(
            model,
            layers=chosen_layers,
            background=background,
            seed=seed,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
            on_progress=progress,
            **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
        )
        stages.stage("saving")
        grafted.save(output)
    facts = {"store": str(output), **_facts(grafted), "seconds": round(time.perf_counter() - start, 3)}
    if json:
        print_json(facts)
    else:
        _print(facts)


def _facts(model: GraftedModel) -> dict[str, Any]:
    config, background = model.config, model.background
    assert background is not None
    return {
        "model": model.source,
        "dtype": str(model.base.dtype).removeprefix("torch."),
        "blocks": len(model.blocks),
        "layers": list(config.layers),
        "answer_layer": config.answer_layer,
        "slots": config.slots,
        "top_k": config.top_k,
        "heads": config.heads,
        "background": {"kind": background.kind, "tokens": sum(u.tokens for u in model.usage.values()) // len(config.layers)},
        "slots_used": {name: len(usage.slots) / config.slots for name, usage in model.usage.items()},
    }


def _print(facts: dict[str, Any]) -> None:
    layers = ", ".join(str(layer) for layer in facts["layers"])
    plural = "s" if len(facts["layers"]) > 1 else ""
    used = ", ".join(f"{share:.0%}" for share in facts["slots_used"].values())
    say(f"grafted {facts['model']} ({facts['dtype']}) in {facts['seconds']:.0f} s")
    say(f"memory layer{plural} in front of block{plural} {layers} of 0 to {facts['blocks'] - 1}")
    if facts["answer_layer"] is None:
        say("no answer layer: facts have no anchors, and are read by the memory after their subject was named")
    else:
        say(f"answer layer in front of block {facts['answer_layer']}, where facts are read")
    say(f"{facts['slots']:,} slots, each token reads {facts['top_k']} in each of {facts['heads']} heads")
    say(f"background: {facts['background']['kind']}, {facts['background']['tokens']:,} tokens, which read {used} of the slots")
    say(f"saved as {facts['store']}; teach it with `memgraft learn {facts['store']} FACTS.jsonl -m MESSAGE`")
