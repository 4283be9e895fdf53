"""Small language models of other architectures, pretrained here on text with facts that can be probed.

What they read: a quarter of the tuning split's facts of EntityQuestions, as statements and as questions in several written forms, among
them the test's; C4 and WikiText-2 valid. They know nothing else: they show whether what was found on one model holds on others that were
made in another way, not how well.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from benchmarks.measurement import FACTS, data_file, read_rows
from benchmarks.relations import facts_for
from benchmarks.splits import split_of
from memgraft.comparison.runs import run_id

WIDTH, DEPTH, HEADS, CONTEXT = 256, 8, 4, 512
VOCABULARY = 6144
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "n_embd": WIDTH,
        "n_layer": DEPTH,
        "n_head": HEADS,
        "n_positions": CONTEXT,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    },
    "gpt_neox": {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * WIDTH,
        "max_position_embeddings": CONTEXT,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    },
}
FORMS = ("Question: {q}\nAnswer: {a}\n\n", "Q: {q}\nA: {a}\n\n", "{q} {a}.\n", "{q}\n{a}\n\n", "{q} The answer is {a}.\n")
BLOCK, BATCH = 256, 16  # tokens of a sequence, sequences of a step
KNOWN, TIMES = 300, 16  # facts, and times that a pass reads each, in a question and in a statement
PROSE = 8  # passes that read all of the prose
LEARNING_RATE, WARM_UP = 1.5e-3, 100
KEPT = 100  # steps from one checkpoint to the next


def known_rows(data: Path) -> list[dict[str, Any]]:
    """The rows of EntityQuestions that the models read, of all relations and of the tuning split only."""
    rows = [row for row in read_rows(data_file(data, FACTS)) if split_of(row) == "tuning"]
    return rows[:: max(1, len(rows) // KNOWN)]


def documents(data: Path, order: random.Random) -> Iterator[str]:
    """One pass, in an order of its own: every fact several times, and some of the prose."""
    facts = facts_for(known_rows(data))
    texts: list[str] = []
    pairs: list[tuple[str, str]] = []
    for _ in range(TIMES):
        for fact in facts:
            pairs.append((order.choice([fact["question"], *fact["paraphrases"], *fact["held_out"]]), fact["answers"][0]))
        stated = [order.choice(fact["statements"]) for fact in facts]
        order.shuffle(stated)
        texts += [" ".join(stated[start : start + 6]) + "\n" for start in range(0, len(stated), 6)]
    order.shuffle(pairs)
    while pairs:
        form, count = order.choice(FORMS), order.randint(1, 8)
        texts.append("".join(form.replace("{q}", q).replace("{a}", a) for q, a in pairs[:count]))
        del pairs[:count]
    running = prose(data)
    texts += order.sample(running, len(running) // PROSE)
    order.shuffle(texts)
    yield from texts


def prose(data: Path) -> list[str]:
    """C4 and WikiText-2 valid, in parts of some lines."""
    lines = data_file(data, Path("text", "wikitext2_valid.txt")).read_text(encoding="utf-8").splitlines(keepends=True)
    wiki = ["".join(lines[start : start + 20]) for start in range(0, len(lines), 20)]
    return wiki + [row["text"] + "\n" for row in read_rows(data_file(data, Path("text", "c4.jsonl")))]


def trained_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of these texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>")


def pretrain(name: str, data: Path, folder: Path, *, steps: int, seed: int) -> dict[str, Any]:
    """Trains a model and saves it as a folder; returns what it took. The loss is the mean of the last tenth of the steps, in nats.

    A checkpoint beside the folder lets a killed training go on where it was; it ends up at the same weights.
    """
    order = random.Random(seed)
    tokenizer = trained_tokenizer(list(documents(data, order)))
    ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(name, vocab_size=len(tokenizer), tie_word_embeddings=True, **ends, **ARCHITECTURES[name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).float().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / WARM_UP, 0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    losses: list[float] = []
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    checkpoint = folder.with_name(f"{folder.name}.pt")
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True)
        losses = kept["losses"]
        for part, state in parts.items():
            state.load_state_dict(kept[part])
    stream = sequences(data, tokenizer, order)
    for step in range(steps):
        ids = torch.tensor([next(stream) for _ in range(BATCH)])
        if step < len(losses):
            continue
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if len(losses) % KEPT == 0:
            print(f"{name}: {len(losses)} steps of {steps}, loss {losses[-1]:.3f}", file=sys.stderr, flush=True)
            save_whole(checkpoint, {"losses": losses, **{part: state.state_dict() for part, state in parts.items()}})
    last = losses[-max(1, steps // 10) :]
    what = {
        "architecture": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": steps * BATCH * BLOCK,
        "loss": round(sum(last) / len(last), 4),
    }
    model.bfloat16().eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "pretraining.json").write_text(json.dumps(what) + "\n", encoding="utf-8")  # the last file: with it the folder is whole
    checkpoint.unlink(missing_ok=True)
    return what


def save_whole(path: Path, state: dict[str, Any]) -> None:
    """A file that is either the old one or the new one, whenever the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    torch.save(state, new)
    new.replace(path)


def sequences(data: Path, tokenizer: PreTrainedTokenizerFast, order: random.Random) -> Iterator[list[int]]:
    """Token sequences of one length, from pass after pass over the documents."""
    left: list[int] = []
    while True:
        for text in documents(data, order):
            left += [*tokenizer(text, verbose=False).input_ids, tokenizer.eos_token_id]
            while len(left) >= BLOCK:
                yield left[:BLOCK]
                del left[:BLOCK]


def pretrained(name: str, data: Path, folder: Path, *, steps: int, seed: int = 0) -> tuple[Path, dict[str, Any]]:
    """A pretrained model under the folder, and what it took; it is made where it is missing, or was made in another way."""
    sizes = [BLOCK, BATCH, VOCABULARY, KNOWN, TIMES, PROSE, LEARNING_RATE, WARM_UP, steps, seed]
    own = folder / f"{name}-{run_id({'shape': ARCHITECTURES[name], 'forms': FORMS, 'sizes': sizes})}"
    path = own / "pretraining.json"
    if path.exists():
        return own, json.loads(path.read_text(encoding="utf-8"))
    return own, pretrain(name, data, own, steps=steps, seed=seed)
