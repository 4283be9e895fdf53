"""Summaries of runs with known numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memgraft.baselines import AdamW, LoRA
from memgraft.comparison.methods import AnyMethod, Base, Memory, described, family, method_of, settings
from memgraft.comparison.summary import Change, grouped, pools, summarise
from memgraft.errors import MemgraftError
from memgraft.teaching import Recipe
from memgraft.writers import SGD


def run(
    method: AnyMethod,
    learned: list[float],
    questions: list[float],
    nll: list[float],
    seed: int = 0,
    control: float = 0.0,
) -> dict[str, Any]:
    return {
        "method": family(method),
        "settings": settings(method),
        "seed": seed,
        "scores": {
            "learned": {"metric": "F1", "values": learned},
            "control": {"metric": "F1", "values": [control, control]},
            "webquestions": {"metric": "F1", "values": questions},
            "wikitext": {"metric": "text NLL", "values": nll, "weights": [3.0, 1.0]},
        },
        "seconds": 10.0,
        "bytes": 100,
    }


BASE = run(Base(), [0.0, 0.0], [1.0, 0.5, 0.5, 0.0], [3.0, 2.0])
MEMORY = run(Memory(), [1.0, 0.2], [1.0, 0.5, 0.25, 0.0], [3.1, 2.0], control=0.1)
LOW = run(LoRA(optimizer=AdamW(lr=1e-5)), [0.4, 0.4], [1.0, 0.5, 0.5, 0.0], [3.2, 2.0])
HIGH = run(LoRA(optimizer=AdamW(lr=1e-3)), [0.8, 0.8], [0.0, 0.5, 0.5, 0.0], [4.0, 2.0])


def test_f1_is_forgotten_relative_to_the_base_and_nll_in_nats() -> None:
    memory = next(each for each in summarise([BASE, MEMORY])["settings"] if each["method"] == "memory")
    assert memory["learned_f1"]["mean"] == pytest.approx(0.6)
    assert memory["net_f1"]["mean"] == pytest.approx(0.5)
    assert memory["forgotten"]["qa_f1"]["mean"] == pytest.approx(0.25 / 2)
    assert memory["forgotten"]["text_nll"]["mean"] == pytest.approx(0.1 * 3 / 4)
    assert memory["probes"]["webquestions"]["change"]["mean"] == pytest.approx(-0.25 / 4)


def test_a_question_that_several_seeds_ask_is_resampled_as_one() -> None:
    other_base, other = (
        run(Base(), [0.0, 0.0], [1.0, 0.5, 0.5, 0.0], [3.0, 2.0], seed=1),
        run(Memory(), [0.0, 1.0], [1.0] * 4, [3.0, 2.0], seed=1),
    )
    apart = summarise([BASE, MEMORY, other_base, other])["settings"][1]["learned_f1"]
    items = {0: {"learned": [7, 8]}, 1: {"learned": [8, 7]}}
    runs = [{**each, "items": items[each["seed"]]} for each in (BASE, MEMORY, other_base, other)]
    shared = summarise(runs)["settings"][1]["learned_f1"]
    assert (apart["n"], shared["n"]) == (4, 2)
    assert apart["mean"] == shared["mean"] == pytest.approx(0.55)
    # Question 7 was answered by both, 1.0 and 1.0, question 8 by 0.2 and 0.0.
    assert (shared["low"], shared["high"]) == (pytest.approx(0.1), pytest.approx(1.0))
    net = summarise(runs)["settings"][1]["net_f1"]
    assert net["n"] == 2


def test_a_rival_is_weighted_between_the_settings_that_enclose_the_memorys_learning() -> None:
    equal = summarise([BASE, MEMORY, LOW, HIGH])["at_equal_learning"]
    assert equal["learned_f1"] == pytest.approx(0.6)
    lora = equal["rivals"]["lora"]
    assert lora["text_nll"]["reached"]
    assert lora["text_nll"]["learned_f1"] == pytest.approx(0.6)
    assert lora["text_nll"]["forgotten"]["mean"] == pytest.approx((0.2 + 1.0) / 2 * 3 / 4)
    assert lora["qa_f1"]["forgotten"]["mean"] == pytest.approx(0.5 / 2)
    assert lora["text_nll"]["mean_minus_memory"]["mean"] == pytest.approx((0.6 - 0.1) * 3 / 4)


def test_a_rival_whose_settings_all_learn_more_is_weighted_with_the_untaught_base() -> None:
    equal = summarise([BASE, MEMORY, HIGH])["at_equal_learning"]
    lora = equal["rivals"]["lora"]
    assert (lora["text_nll"]["learned_f1"], lora["text_nll"]["most_learned_f1"]) == (pytest.approx(0.6), pytest.approx(0.8))
    assert lora["text_nll"]["forgotten"]["mean"] == pytest.approx(1.0 * 3 / 4 * 0.6 / 0.8)
    assert lora["qa_f1"]["forgotten"]["mean"] == pytest.approx(0.5 * 0.6 / 0.8)
    assert lora["text_nll"]["between"][0] == "base"


def test_the_drop_of_a_single_question_has_no_interval() -> None:
    one = [run(method, [1.0], [right], [3.0, 2.0]) for method, right in ((Base(), 1.0), (Memory(), 0.5))]
    drop = summarise(one)["settings"][1]["forgotten"]["qa_f1"]
    assert (drop["mean"], drop["low"], drop["high"]) == (0.5, None, None)


def test_a_rival_that_never_learns_as_much_is_marked() -> None:
    lora = summarise([BASE, MEMORY, LOW])["at_equal_learning"]["rivals"]["lora"]["text_nll"]
    assert not lora["reached"]
    assert lora["learned_f1"] == pytest.approx(0.4)


def test_what_a_rival_learned_is_paired_with_what_the_memory_did_where_they_were_taught_the_same() -> None:
    lora = summarise([BASE, MEMORY, LOW])["at_equal_learning"]["rivals"]["lora"]["text_nll"]
    assert lora["learned_f1_minus_memory"] == {"mean": -0.2, "low": -0.6, "high": 0.2, "n": 2}
    between = summarise([BASE, MEMORY, LOW, HIGH])["at_equal_learning"]["rivals"]["lora"]["text_nll"]
    assert between["learned_f1_minus_memory"] == {"mean": 0.0, "low": -0.4, "high": 0.4, "n": 2}
    other = run(Memory(), [0.0, 0.0], [0.0, 0.5, 0.75, 0.0], [3.3, 2.0], seed=1)
    unpaired = summarise([BASE, MEMORY, other, LOW])["at_equal_learning"]["rivals"]["lora"]["text_nll"]
    assert unpaired["learned_f1_minus_memory"] is None


def test_seeds_are_averaged_per_probe_item_and_facts_are_put_in_a_row() -> None:
    other = run(Memory(), [0.0, 0.0], [0.0, 0.5, 0.75, 0.0], [3.3, 2.0], seed=1)
    _, setting = grouped([BASE, MEMORY, other])
    assert setting.items("webquestions").tolist() == [0.5, 0.5, 0.5, 0.0]
    assert setting.items("learned").tolist() == [1.0, 0.2, 0.0, 0.0]
    pool = pools(grouped([BASE])[0])["text_nll"]
    assert pool.forgotten(pool.of(setting)) == pytest.approx(0.2 * 3 / 4)


def test_without_the_base_there_is_nothing_to_say() -> None:
    assert summarise([MEMORY]) == {}


def test_each_run_is_compared_with_the_base_where_numbers_are_rounded_alike() -> None:
    def there(run: dict[str, Any]) -> dict[str, Any]:
        return {**run, "environment": {"arithmetic": "other"}}

    other_base = there(run(Base(), [0.0, 0.0], [1.0, 1.0, 0.5, 0.0], [3.5, 2.0]))  # the same model answers one more question there
    other = there(run(Memory(), [1.0, 0.2], [1.0, 1.0, 0.25, 0.0], [3.6, 2.0], seed=1))
    base, memory = summarise([BASE, MEMORY, other_base, other])["settings"]
    assert (base["seeds"], base["learned_f1"]["n"]) == ([0], 2), "asked on two machines, it is still one run"
    assert base["forgotten"]["qa_f1"]["mean"] == 0
    assert memory["forgotten"]["qa_f1"]["mean"] == pytest.approx(0.25 / 2.25)
    assert memory["forgotten"]["text_nll"]["mean"] == pytest.approx(0.1 * 3 / 4), "not moved by how the machines differ"
    assert memory["probes"]["webquestions"]["before"] == pytest.approx((0.5 + 0.625) / 2)
    with pytest.raises(MemgraftError, match=r"memory, seed 1: no run of the base .*arithmetic other"):
        summarise([BASE, MEMORY, other])


def test_methods_come_back_from_their_json_and_say_what_they_are() -> None:
    papers = Memory(recipe=Recipe(writer=SGD(), t=500, rows=None, passes=6, scope="everywhere"), threshold=0)
    for method in (Base(), Memory(), papers, LoRA(replay=2)):
        assert method_of(settings(method)) == method
    open_memory = Memory(recipe=Recipe(scope="everywhere"))
    assert [family(each) for each in (Memory(), open_memory, papers, LoRA(), LoRA(replay=2))] == [
        "memory",
        "memory (no cues)",
        "memory (tfidf, sgd)",
        "lora",
        "lora + replay",
    ]
    assert described(LoRA(replay=2)) == "r 16, α 32, adamw lr 0.0002, 4 passes, 2 documents a step"
    assert described(papers) == "tfidf, t 500, sgd, lr 3, 6 passes"


def test_rivals_are_compared_at_the_settings_chosen_elsewhere() -> None:
    other = run(Memory(recipe=Recipe(passes=3)), [0.9, 0.9], [1.0, 0.5, 0.5, 0.0], [3.0, 2.0])
    runs = [BASE, MEMORY, other, LOW, HIGH]
    assert summarise(runs)["at_equal_learning"]["learned_f1"] == pytest.approx(0.9)
    assert summarise(runs, MEMORY["settings"])["at_equal_learning"]["learned_f1"] == pytest.approx(0.6)
    assert summarise(runs, settings(Memory(recipe=Recipe(passes=4))))["at_equal_learning"] == {}


def test_settings_that_broke_down_are_named_and_left_out_of_the_figures() -> None:
    broken = {"method": "lora", "settings": HIGH["settings"], "seed": 1, "failed": "the loss is nan"}
    summary = summarise([BASE, MEMORY, LOW, HIGH, broken])
    assert [each["why"] for each in summary["failed"]] == ["the loss is nan"]
    assert [each["label"] for each in summary["settings"] if each["method"] == "lora"] == [described(method_of(LOW["settings"]))]


def test_the_interval_of_a_relative_drop_is_paired_and_as_wide_as_it_should_be() -> None:
    right = [1.0] * 50 + [0.0] * 50
    base = run(Base(), [0.0], right, [3.0, 2.0])
    pool = pools(grouped([base])[0])["qa_f1"]
    before = np.asarray(right)
    halved = pool.interval(Change(before, np.asarray([0.5] * 50 + [0.0] * 50)))
    assert (halved["mean"], halved["low"], halved["high"]) == (0.5, 0.5, 0.5), "each item falls by half: nothing is left to chance"
    lost = pool.interval(Change(before, np.asarray([0.0] * 20 + [1.0] * 30 + [0.0] * 50)))
    assert lost["mean"] == pytest.approx(0.4)
    spread = 1.96 * (0.4 * 0.6 / 50) ** 0.5  # of a share among the 50 that count
    assert lost["low"] == pytest.approx(0.4 - spread, abs=0.03)
    assert lost["high"] == pytest.approx(0.4 + spread, abs=0.03)
