"""The workshop: every method leaves the base as it was, and what is kept over runs changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from memgraft.baselines import OSF, Full, LoRA, Retrieval, SHiRA
from memgraft.commits import Rows
from memgraft.comparison.methods import AnyMethod, Base, Memory
from memgraft.comparison.peak import peak_memory
from memgraft.comparison.workshop import Lesson, SoFar, Workshop
from memgraft.errors import MemgraftError
from memgraft.examples import Fact
from memgraft.teaching import Recipe
from tests.models import tiny_model, tiny_tokenizer

FACTS = [
    Fact(line=i + 1, question=f"Who made {name}?", answers=(answer,)) for i, (name, answer) in enumerate([("Ox", "Ann"), ("Elm", "Bo")])
]
TEXTS = ["Some text that stands for all others, long enough to be cut.", "And a second one, about something else."] * 8
MEMORY = Memory(recipe=Recipe(passes=2, wordings=3, t=50, scope="everywhere"), slots=256, threshold=0.0)  # what two passes teach is short
METHODS: dict[str, AnyMethod] = {
    "base": Base(),
    "memory": MEMORY,
    "lora": LoRA(rank=2, passes=2),
    "full": Full(passes=1),
    "retrieval": Retrieval(),
}
IDS = torch.arange(1, 30)[None]


@pytest.fixture
def workshop() -> Workshop:
    return Workshop(tiny_model(depth=3), tiny_tokenizer(), backgrounds={"own": lambda: TEXTS}, background_tokens=600)


def lesson(workshop: Workshop, *, in_order: bool = False) -> Lesson:
    return Lesson(FACTS, workshop.prepare(FACTS, passes=2, wordings=3, seed=0), 0, in_order)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=IDS).logits
    return result


def own(method: AnyMethod) -> AnyMethod:
    return method.model_copy(update={"background": "own"}) if isinstance(method, Memory) else method


@pytest.mark.parametrize("in_order", [False, True], ids=["together", "stream"])
def test_every_method_teaches_and_leaves_the_base_bit_for_bit(workshop: Workshop, in_order: bool) -> None:
    before = logits(workshop.base)
    steps: list[tuple[int, int]] = []

    def on_step(so_far: SoFar) -> None:
        steps.append((so_far.done, so_far.total))

    for name, method in METHODS.items():
        with workshop.taught(own(method), lesson(workshop, in_order=in_order), on_step) as taught:
            assert torch.equal(logits(taught.model), before) == (name in ("base", "retrieval")), name
            assert (taught.context is not None) == (name == "retrieval")
            assert (taught.rows is not None) == (name == "memory")
            if name not in ("base", "retrieval"):
                assert steps[-1][0] == steps[-1][1]
                assert len(taught.losses) == (1 if name == "full" else 2)
        with workshop.taught(Base(), lesson(workshop)) as taught:
            assert torch.equal(logits(taught.model), before), name


@pytest.mark.parametrize("method", [LoRA(rank=2, passes=1), Full(passes=1), OSF(passes=1), SHiRA(rank=2, passes=1)], ids=lambda m: m.method)
def test_after_its_last_step_a_rival_is_measured_as_it_is_in_the_end(method: AnyMethod) -> None:
    base = torch.nn.Module.to(tiny_model(depth=2), torch.bfloat16)
    shop = Workshop(base, tiny_tokenizer(), backgrounds={"own": lambda: TEXTS}, background_tokens=600)
    last: list[torch.Tensor] = []

    def on_step(so_far: SoFar) -> None:
        if so_far.done == so_far.total:
            costs = so_far.costs()
            with so_far.model() as model:
                assert model.dtype == torch.bfloat16
                model.eval()
                last.append(logits(model))
            assert so_far.costs()["seconds"] == pytest.approx(costs["seconds"], abs=0.5)

    with shop.taught(method, lesson(shop, in_order=True), on_step) as taught:
        assert torch.equal(last[0], logits(taught.model))


def test_the_base_cant_be_asked_while_a_rival_may_be_within_it(workshop: Workshop) -> None:
    with (
        workshop.taught(LoRA(rank=2, passes=1), lesson(workshop)),
        pytest.raises(MemgraftError, match="ask it before"),
        workshop.taught(Base(), lesson(workshop)),
    ):
        pass
    with workshop.taught(own(MEMORY), lesson(workshop)), workshop.taught(Base(), lesson(workshop)):
        pass


def test_frozen_states_kept_over_runs_change_no_bit(workshop: Workshop) -> None:
    def written(prefix_bytes: int, runs: int) -> list[float]:
        shop = Workshop(
            tiny_model(depth=3), tiny_tokenizer(), backgrounds={"own": lambda: TEXTS}, background_tokens=600, prefix_bytes=prefix_bytes
        )
        same = lesson(shop)
        for _ in range(runs):
            with shop.taught(own(MEMORY), same) as taught:
                result = [*taught.losses, *logits(taught.model).flatten().tolist()]
        assert bool(shop._prefixes) == bool(prefix_bytes)
        return result

    without = written(0, 1)
    assert written(2**30, 1) == without
    assert written(2**30, 2) == without, "a run on kept states differs"


def test_what_an_earlier_run_computed_counts_for_a_run_that_uses_it() -> None:
    shop = Workshop(tiny_model(depth=3), tiny_tokenizer(), backgrounds={"own": lambda: TEXTS}, background_tokens=600)
    same, method = lesson(shop), own(MEMORY)
    assert isinstance(method, Memory)
    with shop.taught(method, same):
        pass
    assert shop._prefixes
    spent = 1000.0
    shop._prefixes = {key: replace(prefix, seconds=spent) for key, prefix in shop._prefixes.items()}
    with shop.taught(method, same) as taught:
        assert taught.seconds > spent


def test_an_unknown_background_is_named(workshop: Workshop) -> None:
    with pytest.raises(MemgraftError, match="no background is called 'x': expected self-written, own"):
        workshop.background("x")


def test_self_written_text_is_kept_in_the_cache(tmp_path: Path) -> None:
    first = Workshop(tiny_model(), tiny_tokenizer(), background_tokens=64, cache=tmp_path).background()
    (path,) = tmp_path.iterdir()
    path.write_text('["kept"]')
    assert Workshop(tiny_model(), tiny_tokenizer(), background_tokens=64, cache=tmp_path).background() == ["kept"]
    assert first != ["kept"]


def test_self_written_text_of_another_model_of_that_name_is_not_taken(tmp_path: Path) -> None:
    base = tiny_model()
    first = Workshop(base, tiny_tokenizer(), background_tokens=64, cache=tmp_path).background()
    with torch.no_grad():
        for weight in base.parameters():
            weight.copy_(torch.randn_like(weight) * 0.1)
    assert Workshop(base, tiny_tokenizer(), background_tokens=64, cache=tmp_path).background() != first


def test_a_rival_does_not_pay_for_the_memory_in_the_same_process(workshop: Workshop) -> None:
    workshop.grafted(own_memory := own(MEMORY))
    with workshop.taught(own_memory, lesson(workshop)):
        pass
    assert workshop._grafted is not None
    workshop._grafted[1].ballast = torch.ones(512 * 2**20, dtype=torch.uint8)  # as large tables and background reads are
    with workshop.taught(Full(passes=1), lesson(workshop)) as taught:
        assert taught.peak_bytes is not None
        assert taught.peak_bytes < (workshop._floor or 0) + 256 * 2**20
        assert not any(module._forward_pre_hooks for module in taught.model.modules())
    assert any(module._forward_pre_hooks for module in workshop.base.modules()), "the memory is on the base as before"


def test_peak_memory_sees_what_was_allocated() -> None:
    with peak_memory(torch.device("cpu")) as peak:
        before = peak()
        block = torch.ones(256 * 2**20, dtype=torch.uint8)  # much, as the system may take other pages away meanwhile
        after = peak()
        del block
    assert before is not None
    assert after is not None
    assert after - before > 64 * 2**20


def test_the_arithmetic_is_the_base_s_whatever_was_taught_and_tells_roundings_apart() -> None:
    workshop = Workshop(tiny_model(depth=3), tiny_tokenizer(), backgrounds={"own": lambda: TEXTS}, background_tokens=600)
    alone = workshop.arithmetic()
    grafted = workshop.grafted(MEMORY.model_copy(update={"background": "own"}))
    values = torch.ones(256, grafted.base.config.hidden_size)
    grafted.assign_rows({name: Rows(torch.arange(256), values) for name in grafted.tables})
    assert workshop.arithmetic() == alone
    head = workshop.base.get_output_embeddings().weight
    with torch.no_grad():
        head[0, 0] = torch.nextafter(head[0, 0], torch.tensor(9.0))
    assert workshop.arithmetic() != alone
