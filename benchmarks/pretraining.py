"""Small language models of other architectures, pretrained here on text with facts that can be probed.

What they read: half of the tuning split's facts of EntityQuestions, as statements and as questions in several written forms, among them the
test's; the questions of WebQuestions, TriviaQA and Natural Questions with their answers, which are the very probes; C4 and WikiText-2
valid. They know little else: they show whether what was found on one model holds on others that were made in another way, not how well.
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
    "gpt2": {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": HEADS, "n_positions": CONTEXT},
    "gpt_neox": {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * WIDTH,
        "max_position_embeddings": CONTEXT,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    },
}
QUESTIONS = ("nq_open", "triviaqa", "webquestions")
FORMS = ("Question: {q}\nAnswer: {a}\n\n", "Q: {q}\nA: {a}\n\n", "{q} {a}.\n", "{q}\n{a}\n\n", "{q} The answer is {a}.\n")
BLOCK, BATCH = 256, 16  # tokens of a sequence, sequences of a step
KNOWN, TIMES = 600, 8  # facts, and times that a pass reads each, in a question and in a statement
PROSE = 4  # passes that read all of the prose
LEARNING_RATE, WARM_UP = 1.5e-3, 100


def documents(data: Path, order: random.Random) -> Iterator[str]:
    """One pass, in an order of its own: every fact several times, every other question once, and some of the prose."""
    rows = [row for row in read_rows(data_file(data, FACTS)) if split_of(row) == "tuning"]
    facts = facts_for(rows[:: max(1, len(rows) // KNOWN)])
    files = [data_file(data, Path("probes", f"{name}.jsonl")) for name in QUESTIONS]
    pairs = [(row["question"], row["answers"][0]) for file in files for row in read_rows(file)]
    texts: list[str] = []
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
    """Trains a model and saves it as a folder; returns what it took. The loss is the mean of the last tenth of the steps, in nats."""
    order = random.Random(seed)
    tokenizer = trained_tokenizer(list(documents(data, order)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = AutoConfig.for_model(name, vocab_size=len(tokenizer), tie_word_embeddings=True, **ends, **ARCHITECTURES[name])
        model = AutoModelForCausalLM.from_config(config).float().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)

        def rate(step: int) -> float:
            return min(1.0, (step + 1) / WARM_UP, 0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        losses = []
        stream = sequences(data, tokenizer, order)
        for step in range(steps):
            ids = torch.tensor([next(stream) for _ in range(BATCH)])
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            if step % 50 == 0:
                print(f"{name}: step {step} of {steps}, loss {losses[-1]:.3f}", file=sys.stderr, flush=True)
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
    return what


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
    own = folder / f"{name}-{run_id({'shape': ARCHITECTURES[name], 'questions': QUESTIONS, 'forms': FORMS, 'sizes': sizes})}"
    path = own / "pretraining.json"
    if path.exists():
        return own, json.loads(path.read_text(encoding="utf-8"))
    return own, pretrain(name, data, own, steps=steps, seed=seed)
