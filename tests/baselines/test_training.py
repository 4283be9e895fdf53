"""The rivals' loop gives the loss curve of plain transformers and PEFT training on the same batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch.utils.data import Dataset, SequentialSampler
from transformers import PreTrainedModel, Trainer, TrainingArguments

from memgraft.baselines import SGD, AdamW, Full, LoRA, Rival
from memgraft.baselines.training import schedule, train
from memgraft.encoding import TokenBatch
from memgraft.errors import TeachingError
from tests.models import random_batch, tiny_model

PASSES, SEED = 4, 5
BATCHES = [random_batch(7, 5, 9, 12, name=f"fact {seed}", seed=seed) for seed in range(4)]


class Rows(Dataset[dict[str, torch.Tensor]]):
    """The sequences of all steps, in the order in which we take them."""

    def __init__(self, batches: Sequence[TokenBatch]) -> None:
        steps = [batches[index].round(turn) for index, turn in schedule(len(batches), PASSES, SEED)]
        self.rows = [
            {"input_ids": ids, "attention_mask": mask.long(), "labels": torch.where(targets, ids, -100)}
            for batch in steps
            for ids, mask, targets in zip(batch.input_ids, batch.attention_mask, batch.targets, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


class RecordingTrainer(Trainer):
    """transformers' own training, without shuffling, that notes every step's loss."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.losses: list[float] = []

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.losses.append(loss.item())
        return loss


def trainer_losses(model: Any, optimizer: AdamW | SGD, folder: Path, *, bf16: bool = False) -> list[float]:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=len(BATCHES[0]),
        num_train_epochs=1,
        learning_rate=optimizer.lr,
        weight_decay=getattr(optimizer, "weight_decay", 0.0),
        optim="adamw_torch" if optimizer.name == "adamw" else "sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=bf16,
        disable_tqdm=True,
    )
    trainer = RecordingTrainer(model=model, args=arguments, train_dataset=Rows(BATCHES))
    trainer.train()
    return trainer.losses


@pytest.mark.parametrize("optimizer", [AdamW(lr=3e-3, weight_decay=0.1), SGD(lr=0.3)], ids=["adamw", "sgd"])
@pytest.mark.parametrize("rival", ["lora", "full"])
def test_the_loss_curve_is_that_of_plain_peft_and_transformers_training(rival: str, optimizer: AdamW | SGD, tmp_path: Path) -> None:
    ours: Rival
    theirs: Any = tiny_model()
    if rival == "lora":
        ours = LoRA(rank=4, alpha=8, optimizer=optimizer, passes=PASSES)
        torch.manual_seed(SEED)
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        theirs = peft.get_peft_model(theirs, config)
    else:
        ours = Full(optimizer=optimizer, passes=PASSES)
    expected = trainer_losses(theirs, optimizer, tmp_path)
    with ours.taught(tiny_model(), BATCHES, seed=SEED) as trained:
        assert len(trained.losses) == PASSES * len(BATCHES)
        assert list(trained.losses) == pytest.approx(expected, abs=2e-4)
    assert expected[-1] < expected[0] - 0.2, "the reference does not learn: the comparison would say little"


@pytest.mark.parametrize("rival", ["lora", "full"])
def test_so_it_is_in_bfloat16_with_the_trained_weights_in_fp32(rival: str, tmp_path: Path) -> None:
    # As the comparison trains: an fp32 adapter over a bf16 base, or an fp32 copy of the base under autocast.
    optimizer = AdamW(lr=3e-3, weight_decay=0.1)
    ours: Rival
    base = tiny_model().to(torch.bfloat16)
    theirs: Any = tiny_model().to(torch.bfloat16)
    if rival == "lora":
        ours = LoRA(rank=4, alpha=8, optimizer=optimizer, passes=PASSES)
        torch.manual_seed(SEED)
        theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    else:
        ours = Full(optimizer=optimizer, passes=PASSES)
        theirs = theirs.float()
    expected = trainer_losses(theirs, optimizer, tmp_path, bf16=rival == "full")
    with ours.taught(base, BATCHES, seed=SEED) as trained:
        assert list(trained.losses) == pytest.approx(expected, rel=0.02)
        if rival == "full":
            assert trained.bytes == 2 * sum(weight.numel() for weight in base.parameters())
    assert expected[-1] < expected[0] - 0.2, "the reference does not learn: the comparison would say little"


def trainable() -> PreTrainedModel:
    return tiny_model().requires_grad_(True)


def test_padding_carries_no_loss() -> None:
    wide = [
        TokenBatch(
            batch.name,
            torch.nn.functional.pad(batch.input_ids, (0, 6), value=3),
            torch.nn.functional.pad(batch.attention_mask, (0, 6), value=False),
            torch.nn.functional.pad(batch.targets, (0, 6), value=False),
        )
        for batch in BATCHES
    ]
    narrow = train(trainable(), BATCHES, AdamW(lr=1e-3), passes=2)
    assert train(trainable(), wide, AdamW(lr=1e-3), passes=2) == pytest.approx(narrow, abs=1e-5)


def test_a_stream_teaches_each_batch_to_the_end_before_the_next() -> None:
    assert schedule(3, 2, 0, in_order=True) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    shuffled = schedule(3, 2, 0)
    assert sorted(shuffled) == sorted(schedule(3, 2, 0, in_order=True))
    assert [turn for _, turn in shuffled] == [0, 0, 0, 1, 1, 1]


def test_norms_and_biases_do_not_decay() -> None:
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    optimizer = AdamW(lr=0.1, weight_decay=0.5).build([matrix, vector])
    for weight in (matrix, vector):
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert matrix.detach().flatten().tolist() == pytest.approx([0.95] * 4)
    assert vector.detach().tolist() == [1.0, 1.0]


def test_replayed_text_adds_its_gradient_but_not_its_loss() -> None:
    plain, replayed = trainable(), trainable()
    asked: list[int] = []

    def replay(step: int) -> TokenBatch:
        asked.append(step)
        return random_batch(9, 9, targets=8, seed=50 + step)

    first = train(plain, BATCHES[:1], SGD(lr=0.1), passes=1)
    assert train(replayed, BATCHES[:1], SGD(lr=0.1), passes=1, replay=replay) == first
    assert asked == [0]
    assert not torch.equal(plain.get_output_embeddings().weight, replayed.get_output_embeddings().weight)


def test_a_batch_without_a_supervised_token_is_named() -> None:
    lost = random_batch(4, 4, name="lost", targets=0)
    lost.targets[:, 0] = True  # nothing comes before it
    with pytest.raises(TeachingError, match="lost: no supervised token"):
        train(trainable(), [*BATCHES, lost], AdamW(lr=1e-3), passes=1)


@pytest.mark.parametrize(("count", "passes"), [(0, 1), (4, 0)])
def test_nothing_to_teach_is_refused(count: int, passes: int) -> None:
    with pytest.raises(TeachingError, match="nothing to teach"):
        train(trainable(), BATCHES[:count], AdamW(lr=1e-3), passes=passes)


def test_a_loss_that_is_not_finite_names_the_batch_and_the_way_out() -> None:
    with pytest.raises(TeachingError, match=r"fact \d, step \d: the loss is (nan|inf); use a lower lr"):
        train(trainable(), BATCHES, SGD(lr=math.inf), passes=2)
