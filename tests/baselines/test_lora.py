"""The LoRA baseline against plain PEFT and a hand-written loop, on a tiny Llama with random weights."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import peft
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from memgraft.baselines.lora import train_lora
from memgraft.encoding import TokenBatch
from memgraft.errors import MemgraftError, TeachingError

VOCABULARY = 50


def tiny_llama(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.eval()
    return model


def token_batch(name: str, seed: int, lengths: tuple[int, ...] = (7, 5, 9, 12, 6), targets: int = 2) -> TokenBatch:
    """Random sequences, right padded, whose last `targets` tokens are to be predicted."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.int64)
    mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    supervised = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, VOCABULARY, (length,), generator=generator)
        mask[row, :length] = True
        supervised[row, length - targets : length] = True
    return TokenBatch(name=name, input_ids=ids, attention_mask=mask, targets=supervised)


@pytest.fixture
def batches() -> list[TokenBatch]:
    return [token_batch(f"fact {seed}", seed) for seed in range(4)]


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def reference_losses(model: PreTrainedModel, batches: list[TokenBatch], lr: float, passes: int, seed: int) -> Iterator[float]:
    """Plain PEFT, all logits, the targets picked one by one."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(model, config)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=lr, weight_decay=0.1)
    order = torch.Generator().manual_seed(seed)
    for _ in range(passes):
        for index in torch.randperm(len(batches), generator=order).tolist():
            batch = batches[index]
            logits = tuned(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).logits
            terms = [
                -logits[row, column - 1].log_softmax(-1)[batch.input_ids[row, column]] for row, column in batch.targets.nonzero().tolist()
            ]
            loss = torch.stack(terms).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()


def test_the_loss_curve_is_that_of_plain_peft_and_a_hand_written_loop(batches: list[TokenBatch]) -> None:
    run = train_lora(tiny_llama(), batches, rank=4, alpha=8, lr=3e-2, passes=5, seed=5)
    expected = list(reference_losses(tiny_llama(), batches, lr=3e-2, passes=5, seed=5))
    assert len(run.losses) == 20
    assert list(run.losses) == pytest.approx(expected, abs=1e-4)
    assert expected[-1] < expected[0] - 0.5, "the reference does not learn: the comparison would say little"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_after_unload_the_base_is_bit_identical(batches: list[TokenBatch], dtype: torch.dtype) -> None:
    base = tiny_llama(dtype)
    before, ids = weights(base), batches[0].input_ids
    with torch.no_grad():
        logits = base(input_ids=ids).logits
    run = train_lora(base, batches, rank=4, lr=1e-2, passes=2)
    with torch.no_grad():
        assert not torch.equal(run.model(input_ids=ids).logits, logits), "the adapter does nothing"
    restored = run.model.unload()
    after = weights(restored)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    with torch.no_grad():
        assert torch.equal(restored(input_ids=ids).logits, logits)


def test_on_a_bf16_base_the_adapter_is_fp32_and_small_steps_are_not_rounded_away(batches: list[TokenBatch]) -> None:
    run = train_lora(tiny_llama(torch.bfloat16), batches, rank=4, lr=2e-2, passes=8)
    trained = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    assert trained
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert sum(run.losses[-4:]) < sum(run.losses[:4]) - 2


def test_only_the_named_layers_get_an_adapter(batches: list[TokenBatch]) -> None:
    run = train_lora(tiny_llama(), batches, rank=4, targets=["q_proj", "v_proj"], lr=1e-3, passes=1)
    trained = [name for name, parameter in run.model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 * 2  # layers, projections, factors
    assert all("q_proj" in name or "v_proj" in name for name in trained)


def test_equal_seeds_give_equal_runs_and_leave_the_global_random_state_alone(batches: list[TokenBatch]) -> None:
    model = tiny_llama()
    torch.manual_seed(77)
    state = torch.get_rng_state()
    first = train_lora(model, batches, rank=4, lr=1e-2, passes=2, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    again = train_lora(tiny_llama(), batches, rank=4, lr=1e-2, passes=2, seed=1)
    other = train_lora(tiny_llama(), batches, rank=4, lr=1e-2, passes=2, seed=2)
    assert first.losses == again.losses
    assert first.losses != other.losses


def test_padding_carries_no_loss(batches: list[TokenBatch]) -> None:
    wide = [
        TokenBatch(
            name=batch.name,
            input_ids=torch.nn.functional.pad(batch.input_ids, (0, 6), value=3),
            attention_mask=torch.nn.functional.pad(batch.attention_mask, (0, 6), value=False),
            targets=torch.nn.functional.pad(batch.targets, (0, 6), value=False),
        )
        for batch in batches
    ]
    narrow_run = train_lora(tiny_llama(), batches, rank=4, lr=1e-2, passes=2)
    wide_run = train_lora(tiny_llama(), wide, rank=4, lr=1e-2, passes=2)
    assert wide_run.losses == pytest.approx(narrow_run.losses, abs=1e-5)


def test_progress_counts_the_steps(batches: list[TokenBatch]) -> None:
    seen: list[tuple[int, int, float]] = []
    run = train_lora(tiny_llama(), batches, rank=4, lr=1e-3, passes=2, on_progress=lambda *step: seen.append(step))
    assert seen == [(number, 8, loss) for number, loss in enumerate(run.losses, 1)]


def test_without_peft_the_error_names_the_extra(batches: list[TokenBatch], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MemgraftError, match=r"memgraft\[baselines\]"):
        train_lora(tiny_llama(), batches, lr=1e-3, passes=1)


def test_a_batch_without_a_supervised_token_is_named(batches: list[TokenBatch]) -> None:
    # A target in the first column has nothing before it, so it is none.
    lost = token_batch("lost", 9, lengths=(4, 4), targets=0)
    lost.targets[:, 0] = True
    with pytest.raises(TeachingError, match="lost: no supervised token"):
        train_lora(tiny_llama(), [*batches, lost], lr=1e-3, passes=1)


@pytest.mark.parametrize(("count", "passes"), [(0, 1), (4, 0)])
def test_nothing_to_teach_is_refused(batches: list[TokenBatch], count: int, passes: int) -> None:
    with pytest.raises(TeachingError, match="nothing to teach"):
        train_lora(tiny_llama(), batches[:count], lr=1e-3, passes=passes)


def test_a_run_that_fails_leaves_no_adapter_behind(batches: list[TokenBatch]) -> None:
    base = tiny_llama()
    before = weights(base)
    with pytest.raises(TeachingError, match=r"the loss is (nan|inf).*lower lr"):
        train_lora(base, batches, rank=4, lr=math.inf, passes=2)
    after = weights(base)
    assert after.keys() == before.keys(), "adapter modules are still inside the model"
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_ctrl_c_leaves_no_adapter_behind(batches: list[TokenBatch]) -> None:
    base = tiny_llama()
    names = weights(base).keys()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_lora(base, batches, rank=4, lr=1e-3, passes=1, on_progress=interrupt)
    assert weights(base).keys() == names
