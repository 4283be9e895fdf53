"""Cues against their slow twin, and the memory that they open, on a random model."""

from __future__ import annotations

import copy
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin

from memgraft.anchors import Opened
from memgraft.blocks import hidden_states_before
from memgraft.commits import Rows
from memgraft.cues import ENOUGH, NEVER, REACH, SAID, Cues, Scopes
from memgraft.errors import GraftError
from memgraft.grafted import GraftedModel, Scoped, State
from memgraft.grafting import graft
from memgraft.hearing import Heard, heard_so_far
from memgraft.memory import Tables
from memgraft.models import load_model
from memgraft.probes import generate_answers
from memgraft.probes.prefix import compute_prefix
from memgraft.reads import Recorder, recording
from tests.models import ARCHITECTURES, fill, random_tokens, tiny_graft, tiny_model


def cues_of(*counts: int, width: int = 4, seed: int = 0) -> Cues:
    """Random cues of facts that have so many each."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    keys = torch.nn.functional.normalize(torch.randn(total, width, generator=generator), dim=-1)
    facts = torch.tensor([number for number, count in enumerate(counts) for _ in range(count)], dtype=torch.int64)
    return Cues(keys, torch.full((total,), 0.5), facts)


def open_slowly(cues: Cues, heard: Tensor) -> Tensor:
    """What `Cues.open` says, sequence by sequence and token by token."""
    facts = cues.facts.tolist()
    result = torch.zeros(heard.shape[:2], dtype=torch.bool)
    for row, sequence in enumerate(heard.tolist()):
        opened = False
        for position in range(len(sequence)):
            lately = {number for numbers in sequence[max(0, position - REACH + 1) : position + 1] for number in numbers if number >= 0}
            for fact in range(cues.fact_count):
                opened = opened or sum(facts[number] == fact for number in lately) >= ENOUGH * facts.count(fact) - 1e-3
            result[row, position] = opened
    return result


@given(
    counts=st.lists(st.integers(1, 4), min_size=0, max_size=5),
    seed=st.integers(0, 50),
    data=st.data(),
)
def test_open_is_what_the_slow_twin_says(counts: list[int], seed: int, data: st.DataObject) -> None:
    cues = cues_of(*counts, seed=seed)
    number = st.integers(-1, max(len(cues) - 1, -1))
    heard = torch.tensor(data.draw(st.lists(st.lists(number, min_size=9, max_size=9), min_size=1, max_size=40)))[None]
    assert torch.equal(cues.open(heard), open_slowly(cues, heard))


@given(counts=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), max_size=3), seed=st.integers(0, 20))
def test_joined_cues_open_where_one_part_does(counts: list[list[int]], seed: int) -> None:
    parts = [cues_of(*each, seed=seed + number) for number, each in enumerate(counts)]
    joined = Cues.joined(parts, 4)
    queries = torch.nn.functional.normalize(torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(seed)), dim=-1)
    expected = torch.zeros(2, 6, dtype=torch.bool)
    for part in parts:
        expected |= part.open(part.heard(queries))
    assert torch.equal(joined.open(joined.heard(queries)), expected)
    assert joined.problem(4) is None


@given(counts=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), max_size=3), seed=st.integers(0, 20))
def test_each_lesson_is_open_where_one_of_its_own_facts_is(counts: list[list[int]], seed: int) -> None:
    lessons = [cues_of(*each, seed=seed + number) for number, each in enumerate(counts)]
    scopes = Scopes(lessons, 4)
    heard = torch.randint(-1, max(len(scopes.cues), 1), (2, 12, 7), generator=torch.Generator().manual_seed(seed))
    heard[heard >= len(scopes.cues)] = -1
    opened, first = scopes.open(heard), 0
    for number, lesson in enumerate(lessons):
        own = torch.where((heard >= first) & (heard < first + len(lesson)), heard - first, -1)
        found = opened.get(number, Opened(torch.zeros(0, dtype=torch.int64), torch.zeros(2, 12, 0, dtype=torch.bool)))
        assert torch.equal(found.tokens.any(-1), open_slowly(lesson, own))
        for fact in range(lesson.fact_count):  # each as if it were a lesson's only one
            its = lesson.facts == fact
            alone = Cues(lesson.keys[its], lesson.least[its], torch.zeros_like(lesson.facts[its]))
            before = int((lesson.facts < fact).sum())
            of_fact = torch.where((own >= before) & (own < before + len(alone)), own - before, -1)
            assert torch.equal(found.tokens[..., found.facts == fact].any(-1), open_slowly(alone, of_fact))
        first += len(lesson)
    assert all(bool(each.tokens.any(1).any(0).all()) for each in opened.values())


def said_slowly(cues: Cues, fact: int, queries: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """What `Cues.said` says of one fact, sequence by sequence and token by token."""
    keys, least = cues.keys[cues.facts == fact], cues.least[cues.facts == fact].tolist()
    opening = [i for i in range(len(keys)) if least[i] < NEVER]
    behind = len(keys) - 1 - opening[-1]
    fully, places = torch.zeros(queries.shape[:2]), torch.full(queries.shape[:2], -1)
    for row in range(len(queries)):
        cosines = [[float(query @ key) if bool(there[row, t]) else -1.0 for key in keys] for t, query in enumerate(queries[row])]
        place = -1
        for t in range(len(cosines)):
            lately = cosines[max(0, t - REACH + 1) : t + 1]
            heard = sum(any(each[i] > least[i] for each in lately) for i in opening)
            if heard >= ENOUGH * len(opening) - 1e-3 and any(cosines[t][i] > least[i] for i in opening):
                place = t
            end = min(max(place, 0) + behind, t)
            mention = cosines[max(0, end - len(keys) - 1) : end + 1]
            best = [max(each[i] for each in mention) for i in range(len(keys))]
            fully[row, t] = sum((each - SAID) if each > SAID else (each - SAID) / 4 for each in best)
            places[row, t] = place
    return fully, places


@given(seed=st.integers(0, 200), tokens=st.integers(1, 40), opening=st.lists(st.booleans(), min_size=1, max_size=5), whole=st.booleans())
def test_how_fully_names_were_said_is_what_the_slow_twin_says(seed: int, tokens: int, opening: list[bool], whole: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    opening[seed % len(opening)] = True
    cues = cues_of(2, 3, len(opening), seed=seed)
    cues.least[5:] = torch.where(torch.tensor(opening), 0.5, NEVER)
    queries = torch.nn.functional.normalize(torch.randn(2, tokens, 4, generator=generator), dim=-1)
    there = torch.ones(2, tokens, dtype=torch.bool) if whole else torch.rand(2, tokens, generator=generator) > 0.2
    fully, places = cues.said(torch.tensor([0, 2]), queries, None if whole else there)
    for column, fact in enumerate((0, 2)):
        slowly, slow_places = said_slowly(cues, fact, queries, there)
        assert torch.equal(places[..., column], slow_places)
        torch.testing.assert_close(fully[..., column], slowly)


def names_said(text: list[int], *names: tuple[list[int], list[int]]) -> list[float]:
    """How fully names, each of tokens and which of them are cues, were said at the end of a text. Of tokens no two are alike."""
    keys, least, facts = [], [], []
    for number, (tokens, opening) in enumerate(names):
        keys += tokens
        least += [0.6 if place in opening else NEVER for place in range(len(tokens))]
        facts += [number] * len(tokens)
    cues = Cues(torch.eye(12)[keys], torch.tensor(least), torch.tensor(facts))
    found = cues.said(torch.arange(len(names)), torch.eye(12)[text][None])[0][0, -1].tolist()
    return [float(each) for each in found]


def test_the_last_mention_counts_and_a_name_may_end_behind_its_last_cue() -> None:
    leo, ada, wardrup, and_, vellack, smith, jones, other = range(8)
    a, b = names_said([leo, wardrup, and_, ada, wardrup, other], ([leo, wardrup], [1]), ([ada, wardrup], [1]))
    assert b > a + 0.5
    smiths, joneses = ([vellack, smith], [0]), ([vellack, jones], [0])
    a, b = names_said([vellack, jones, other, other], smiths, joneses)
    assert b > a + 0.5
    a, b = names_said([vellack], smiths, joneses)
    assert a == b, "not said yet"


def test_tokens_of_a_name_that_are_no_cues_open_nothing_and_are_not_missed() -> None:
    cues = Cues(torch.eye(4), torch.tensor([0.5, 0.5, NEVER, NEVER]), torch.tensor([0, 1, 1, 1]))
    assert cues.opens.tolist() == [True, True, False, False]
    assert cues.open(cues.heard(torch.eye(4)[None, 1:2])).tolist() == [[True]]
    assert cues.open(cues.heard(torch.eye(4)[None, 2:])).tolist() == [[False, False]]
    assert len(Scopes([cues], 4).cues) == 2
    assert Scopes([cues], 4).open(Scopes([cues], 4).cues.heard(torch.eye(4)[None]))[0].facts.tolist() == [0, 1]


def test_facts_that_are_closed_open_nothing() -> None:
    cues = cues_of(2, 1, 2)
    heard = torch.full((1, 5, 1), -1)
    heard[0, :, 0] = torch.arange(5)
    assert cues.open_facts(heard)[1][0, -1].tolist() == [True, True, True]
    closed = cues.without([0, 2])
    assert closed.fact_count == 3
    assert (closed.heard(cues.keys[None])[0] == 2).any(-1).tolist()[2]
    assert closed.heard(cues.keys[None])[0].unique().tolist() == [-1, 2]


def test_lessons_meet_where_texts_about_a_fact_of_one_open_the_other() -> None:
    keys = torch.eye(4)
    one, other = (Cues(keys[rows], torch.full((2,), 0.5), torch.tensor([0, 1])) for rows in ([0, 1], [2, 3]))
    assert not one.meets(other)
    assert one.meets(one)
    wide = Cues(torch.ones(1, 4) / 2, torch.tensor([0.4]), torch.zeros(1, dtype=torch.int64))
    assert wide.meets(one)
    assert one.meets(wide)
    assert one.without([0]).meets(one)
    assert not one.without([0, 1]).meets(one)
    assert not one.meets(one.without([0, 1]))


def test_a_token_is_at_most_the_nearest_cues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memgraft.cues.KEPT", 128)
    count = 130
    cues = Cues(torch.eye(count), torch.full((count,), 0.1), torch.arange(count))
    query = torch.linspace(0.9, 0.2, count)
    query[0] = 0.05
    assert cues.heard(query[None, None])[0, 0].tolist() == list(range(1, 129))
    assert cues.heard(torch.zeros(1, 1, count))[0, 0].tolist() == [-1]


def test_hundreds_of_facts_about_one_name_are_all_open() -> None:
    name = torch.nn.functional.normalize(torch.ones(1, 8), dim=-1)
    cues = Cues(name.expand(300, 8).contiguous(), torch.full((300,), 0.5), torch.arange(300))
    assert int(cues.open_facts(cues.heard(name[None]))[1].sum()) == 300


@pytest.mark.parametrize("at_once", [0, 9, 50, 1 << 24])
def test_cues_are_heard_a_few_tokens_at_a_time(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cues, generator = cues_of(*[3] * 60, width=8), torch.Generator().manual_seed(0)
    cues = Cues(cues.keys, torch.full((180,), 0.1), cues.facts)
    queries = torch.nn.functional.normalize(torch.randn(3, 7, 8, generator=generator), dim=-1)
    above = queries @ cues.keys.T - cues.least
    nearest = above.topk(int((above > 0).sum(-1).max()), dim=-1)
    whole = nearest.indices.masked_fill(nearest.values <= 0, -1)
    monkeypatch.setattr("memgraft.cues.AT_ONCE", at_once * len(cues) // 3)
    assert torch.equal(cues.heard(queries), whole)
    assert cues.heard(queries[:, :0]).shape == (3, 0, 1)
    assert cues.heard(queries[:0]).shape == (0, 7, 1)


def test_autocast_changes_nothing_that_is_heard(written: GraftedModel) -> None:
    states = torch.randn(2, 30, written.config.hidden_size, generator=torch.Generator().manual_seed(0))
    queries = written.cue_queries(states)
    # Levels within what bf16 rounds away of the cosines of the tokens.
    level = (queries[0, 0] @ queries[0].T) - 1e-4
    cues = Cues(queries[0, :1].repeat(30, 1), level.abs().clamp_min(1e-3), torch.arange(30))
    heard = cues.heard(queries)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(written.cue_queries(states), queries)
        assert torch.equal(cues.heard(queries), heard)
        assert cues.meets(cues)


def test_many_lessons_about_one_subject_are_all_open() -> None:
    lesson = cues_of(2, 1)
    assert set(Scopes([lesson] * 10, 4).open(Scopes([lesson] * 10, 4).cues.heard(lesson.keys[None]))) == set(range(10))


def test_twenty_lessons_of_three_cues_each_on_one_name_are_all_open() -> None:
    generator = torch.Generator().manual_seed(0)
    name = torch.nn.functional.normalize(torch.randn(16, generator=generator), dim=-1)
    lessons = []
    for _ in range(20):  # each has found the name's last token in wordings of its own
        keys = torch.nn.functional.normalize(name + 0.02 * torch.randn(3, 16, generator=generator), dim=-1)
        lessons.append(Cues(keys, torch.full((3,), 0.8), torch.zeros(3, dtype=torch.int64)))
    scopes = Scopes(lessons, 16)
    heard = scopes.cues.heard(name[None, None])
    assert int((heard >= 0).sum()) == 60
    assert set(scopes.open(heard)) == set(range(20))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"keys": torch.zeros(3, 5)}, "keys must be torch.float32 of shape (3, 4)"),
        ({"least": torch.tensor([0.5, float("nan"), 0.5])}, "least are not finite"),
        ({"facts": torch.tensor([0, 0, 2])}, "facts must count up from 0 in steps of 1"),
        ({"least": torch.tensor(0.5)}, "least must have one dimension, got 0"),
        ({"facts": torch.tensor([1, 1, 1])}, "facts must count up from 0 in steps of 1"),
        ({"facts": torch.tensor([0.0, 0.0, 1.0])}, "facts must be torch.int64 of shape (3,)"),
    ],
)
def test_what_can_not_be_cues(change: dict[str, Tensor], problem: str) -> None:
    cues = cues_of(2, 1)
    assert cues.problem(4) is None
    assert problem in str(Cues(**{**cues.tensors(), **change}).problem(4))


TEXT = "the river runs past the old mill and on to the sea"


def rows_of(seed: int = 0) -> dict[str, Rows]:
    """Large rows in all slots."""
    return {"0": Rows(torch.arange(64), torch.randn(64, 32, generator=torch.Generator().manual_seed(seed)))}


@pytest.fixture
def written(tiny_folder: Path) -> GraftedModel:
    """A random model whose memory holds one lesson of large rows, which nothing opens."""
    loaded = load_model(str(tiny_folder))
    model = graft(loaded.model, loaded.tokenizer, slots=64, background=[TEXT] * 4, background_tokens=128)
    open_after(model, Cues.empty(model.config.query_dim))
    return model


def open_after(model: GraftedModel, *cues: Cues | None) -> None:
    """Lessons of large rows, each read after its cues; None: by every text."""
    alone = [Scoped(tables_of(model, number), each) for number, each in enumerate(cues) if each is not None]
    model.assign(State(rows_of(cues.index(None)) if None in cues else {}, tuple(alone)))


def tables_of(model: GraftedModel, seed: int) -> Tables:
    tables = Tables(model.config.tables, model.config.hidden_size)
    tables.assign(rows_of(seed))
    return tables


def ids_of(model: GraftedModel, text: str = TEXT) -> Tensor:
    return torch.tensor([model.tokenizer(text).input_ids])


def cue_at(model: GraftedModel, text: str, position: int) -> Cues:
    """The token at a position of a text as the one cue of a fact."""
    seen: list[Tensor] = []
    layer = model.config.layers[0]
    handle = model.blocks[layer].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True, prepend=True
    )
    with torch.no_grad(), model.without_memory():
        model(input_ids=ids_of(model, text))
    handle.remove()
    key = model.cue_queries(seen[0])[0, position][None]
    return Cues(key, torch.tensor([0.999]), torch.zeros(1, dtype=torch.int64))


def logits_of(model: GraftedModel, ids: Tensor, **more: object) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, **more).logits
    return logits


def test_without_a_cue_the_model_is_the_base_model(written: GraftedModel) -> None:
    ids = ids_of(written)
    with written.without_memory():
        base = logits_of(written, ids)
    assert torch.equal(logits_of(written, ids), base)
    open_after(written, None)
    assert not torch.allclose(logits_of(written, ids), base)


def test_from_the_cue_on_the_memory_is_read_as_if_it_were_always_open(written: GraftedModel) -> None:
    ids, position = ids_of(written), 9
    with written.without_memory():
        base = logits_of(written, ids)
    open_after(written, cue_at(written, TEXT, position))
    some = logits_of(written, ids)
    assert torch.equal(some[:, :position], base[:, :position])
    assert not torch.allclose(some[:, position:], base[:, position:])
    assert written.opened[0][0].tolist() == [index >= position for index in range(ids.shape[1])]


def test_prompts_share_what_they_start_with_and_where_it_opened_the_memory_all_are_open(written: GraftedModel) -> None:
    rows = [[*ids_of(written)[0].tolist(), last] for last in (5, 9)]
    with written.without_memory():
        base = logits_of(written, torch.tensor(rows))[:, -1]
    for position, opens in ((9, True), (None, False)):
        cues = Cues.empty(written.config.query_dim) if position is None else cue_at(written, TEXT, position)
        open_after(written, cues)
        with torch.no_grad():
            prefix = compute_prefix(written.base, rows)
        assert prefix is not None, "every prompt was computed from its first token on"
        after = logits_of(written, torch.tensor(rows)[:, len(prefix) :], past_key_values=prefix.expanded(2), use_cache=True)[:, -1]
        assert torch.allclose(after, logits_of(written, torch.tensor(rows))[:, -1], atol=1e-4)
        assert torch.allclose(after, base, atol=1e-4) != opens


@pytest.mark.parametrize("position", [1, 9, 30])
def test_only_what_stands_after_the_cue_can_be_written(written: GraftedModel, position: int) -> None:
    ids = ids_of(written)
    tokens = torch.arange(ids.shape[1])[None]
    taught, context = tokens % 3 != 0, tokens % 3 == 0  # a mask with holes, as wordings with a preceding text have
    open_after(written, cue_at(written, TEXT, position))
    alone, all_tokens = Recorder(), Recorder()
    for recorder, scope in ((alone, 0), (all_tokens, None)):
        with recording(written, recorder, taught, context, scope):
            written(input_ids=ids).logits.square().sum().backward()
    for recorded, expected, mask in (
        (alone.of_table(written, "0")[0], all_tokens.of_table(written, "0")[0], taught),
        (alone.context_of("0"), all_tokens.context_of("0"), context),
    ):
        after = tokens[mask] >= position
        assert torch.equal(recorded.slots, expected.slots[after])
        assert torch.equal(recorded.weights, expected.weights[after])
    gradient = alone.of_table(written, "0")[1]
    assert torch.equal(gradient, all_tokens.of_table(written, "0")[1][tokens[taught] >= position])
    assert (gradient != 0).any()


def test_a_lesson_is_read_after_its_own_cues_alone(written: GraftedModel) -> None:
    ids = ids_of(written)
    early, late = cue_at(written, TEXT, 5), cue_at(written, TEXT, 15)
    never = Cues(-early.keys, torch.tensor([0.999]), torch.zeros(1, dtype=torch.int64))
    open_after(written, early, late)
    both = logits_of(written, ids)
    assert {number: int(tokens[0].int().argmax()) for number, tokens in written.opened.items()} == {0: 5, 1: 15}
    open_after(written, early, late, never)  # a lesson about something else changes no bit
    assert torch.equal(logits_of(written, ids), both)
    open_after(written, early)
    assert torch.equal(logits_of(written, ids)[:, :15], both[:, :15])
    assert not torch.allclose(logits_of(written, ids)[:, 15:], both[:, 15:])


def test_a_lesson_that_every_text_reads_opens_no_other(written: GraftedModel) -> None:
    ids = ids_of(written)
    open_after(written, None)
    everywhere = logits_of(written, ids)
    open_after(written, None, Cues.empty(written.config.query_dim))
    assert torch.equal(logits_of(written, ids), everywhere)
    open_after(written, None, cue_at(written, TEXT, 9))
    assert torch.equal(logits_of(written, ids)[:, :9], everywhere[:, :9])
    assert not torch.allclose(logits_of(written, ids)[:, 9:], everywhere[:, 9:])


@pytest.mark.parametrize("configured", [True, False], ids=["layers known", "layers as they come"])
@pytest.mark.parametrize("first", [4, 9, 10, 20])
def test_what_was_heard_lasts_over_the_parts_of_a_text(written: GraftedModel, first: int, configured: bool) -> None:
    ids = ids_of(written)
    open_after(written, cue_at(written, TEXT, 9))
    whole = logits_of(written, ids)
    cache = DynamicCache(config=written.base.config) if configured else DynamicCache()
    parts = [logits_of(written, ids[:, :first], past_key_values=cache, use_cache=True)]
    parts += [logits_of(written, ids[:, i : i + 1], past_key_values=cache, use_cache=True) for i in range(first, ids.shape[1])]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-4)


def test_what_was_heard_follows_its_sequence(written: GraftedModel) -> None:
    with_cue, without = ids_of(written), ids_of(written, "a quite different line of text about nothing at all")
    open_after(written, cue_at(written, TEXT, 9))
    width = min(with_cue.shape[1], without.shape[1]) - 1
    both = torch.cat([with_cue[:, : width + 1], without[:, : width + 1]])
    cache = DynamicCache(config=written.base.config)
    logits_of(written, both[:, :width], past_key_values=cache, use_cache=True)
    swapped = copy.deepcopy(cache)
    swapped.reorder_cache(torch.tensor([1, 0]))
    repeated = copy.deepcopy(swapped)
    repeated.batch_repeat_interleave(2)
    straight = logits_of(written, both[:, width:], past_key_values=cache, use_cache=True)
    crossed = logits_of(written, both[:, width:].flip(0), past_key_values=swapped, use_cache=True)
    assert torch.allclose(straight, crossed.flip(0), atol=1e-4)
    twice = logits_of(written, both[:, width:].flip(0).repeat_interleave(2, 0), past_key_values=repeated, use_cache=True)
    assert torch.allclose(twice, crossed.repeat_interleave(2, 0), atol=1e-4)


@pytest.mark.parametrize("sliding", [False, True])
def test_an_offloading_cache_fetches_its_first_layer_after_its_last_one(sliding: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # On the CPU there is nowhere to offload to: the cache is asked what it asks itself before it updates its last layer.
    name = {"name": "gemma3_text", "depth": 4} if sliding else {"depth": 4}
    model = tiny_graft(tiny_model(**name))
    open_after(model, Cues.empty(model.config.query_dim))
    cache = DynamicCache(config=model.base.config)
    cache.only_non_sliding, cache.prefetch_stream = True, nullcontext()
    fetched = []
    monkeypatch.setattr(CacheLayerMixin, "prefetch", lambda layer: fetched.append(cache.layers.index(layer)))
    logits_of(model, torch.arange(1, 9)[None], past_key_values=cache, use_cache=True)
    assert len(cache.layers) == 5
    cache.prefetch(4, True)
    assert fetched == [1 if sliding else 0]


def test_a_cache_that_was_reset_or_zeroed_has_heard_nothing(written: GraftedModel) -> None:
    ids = ids_of(written)
    open_after(written, cue_at(written, TEXT, 9))
    cache = DynamicCache(config=written.base.config)
    logits_of(written, ids, past_key_values=cache, use_cache=True)
    mark = written._scopes.mark
    query = torch.zeros(1, 1, written.config.query_dim)
    hear = written._scopes.cues.heard
    heard = heard_so_far(cache, len(written.blocks), Heard(torch.zeros(1, 1, 1, dtype=torch.int64), query), mark, hear).cues
    assert heard.amax(-1).tolist()[0][8:11] == [-1, 0, -1]
    for tensor in (cache.layers[-1].keys, cache.layers[-1].values):
        tensor.zero_()
    later = Heard(torch.full((1, 1, 1), -1), query)
    assert int(heard_so_far(cache, len(written.blocks), later, mark, hear).cues.max()) == -1
    cache.reset()
    assert torch.equal(heard_so_far(cache, len(written.blocks), later, mark, hear).cues, later.cues)


def test_a_cache_of_other_lessons_is_refused_where_anything_was_heard_or_would_be_now(written: GraftedModel) -> None:
    ids = ids_of(written)
    # As with real cues, no two have the same least cosines: by these a cache knows whose they are.
    early, later, late = (replace(cue_at(written, TEXT, place), least=torch.tensor([1 - place / 1e4])) for place in (5, 12, 15))

    def begun(*cues: Cues) -> DynamicCache:
        open_after(written, *cues)
        cache = DynamicCache(config=written.base.config)
        logits_of(written, ids[:, :10], past_key_values=cache, use_cache=True)
        return cache

    heard, unheard, silent, same = begun(late, early), begun(late), begun(late), begun(late, early)
    open_after(written, early)
    for cache in (heard, unheard):
        with pytest.raises(GraftError, match="computed with other lessons in the memory: compute the text again"):
            logits_of(written, ids[:, 10:], past_key_values=cache, use_cache=True)
    open_after(written, later)
    logits_of(written, ids[:, 10:], past_key_values=silent, use_cache=True)
    assert set(written.opened) == {0}
    open_after(written, late, early)
    logits_of(written, ids[:, 10:], past_key_values=same, use_cache=True)
    assert set(written.opened) == {0, 1}


def test_several_texts_in_one_row_are_refused_while_lessons_listen(written: GraftedModel) -> None:
    ids = torch.tensor(random_tokens(10))
    position_ids = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]])
    written.assign(State({}, ()))
    packed: list[dict[str, Tensor]] = [{"position_ids": position_ids}, {"cu_seq_lens_q": torch.tensor([0, 4, 10])}]
    for told in packed:
        logits_of(written, ids, use_cache=False, **told)
    open_after(written, cue_at(written, TEXT, 5))
    for told in packed:
        with pytest.raises(GraftError, match="several texts in one row"):
            logits_of(written, ids, use_cache=False, **told)
        with written.without_memory():
            logits_of(written, ids, use_cache=False, **told)
    padded = torch.tensor([[1, 1, 1, 0, 1, 2, 3, 4, 5, 6]])  # as generate() numbers tokens behind padding
    logits_of(written, ids, use_cache=False, position_ids=padded)
    logits_of(written, ids, use_cache=False, position_ids=position_ids, attention_mask=torch.ones_like(ids))


def test_what_was_computed_with_the_memory_off_has_its_place_and_heard_nothing(written: GraftedModel) -> None:
    ids, cache = ids_of(written), DynamicCache(config=written.base.config)
    open_after(written, cue_at(written, TEXT, 2), cue_at(written, TEXT, 15))
    with written.without_memory():
        logits_of(written, ids[:, :10], past_key_values=cache, use_cache=True)
    mask = torch.ones_like(ids)
    logits_of(written, ids[:, 10:], past_key_values=cache, use_cache=True, attention_mask=mask)
    assert set(written.opened) == {1}
    assert written.opened[1][0].tolist() == [index >= 15 for index in range(10, ids.shape[1])]
    assert cache.layers[-1].get_seq_length() == ids.shape[1]


def test_more_cues_at_a_later_token_than_at_all_before(written: GraftedModel) -> None:
    ids, cache = ids_of(written), DynamicCache(config=written.base.config)
    early, late = cue_at(written, TEXT, 5), cue_at(written, TEXT, 15)
    open_after(written, early, late, late, late)
    for part in (ids[:, :10], ids[:, 10:20], ids[:, 20:]):
        logits_of(written, part, past_key_values=cache, use_cache=True)
    assert set(written.opened) == {0, 1, 2, 3}


@pytest.mark.parametrize("by_name", [True, False])
def test_tokens_that_the_mask_hides_are_not_heard(by_name: bool) -> None:
    model = fill(tiny_graft(tiny_model(depth=3), layers=(0,)), size=3)  # states in front of block 0 are the same, hidden or not
    rows, ids = model.rows(), torch.tensor(random_tokens(12))
    with model.without_memory():
        states = hidden_states_before(model.base, model.blocks, 0, input_ids=ids)
    model.assign_rows(rows, Cues(model.cue_queries(states)[0, 3][None], torch.tensor([0.999]), torch.zeros(1, dtype=torch.int64)))
    for hidden in ([3], [0, 1, 2, 3]):
        mask = torch.ones_like(ids)
        mask[0, hidden] = 0
        with torch.no_grad():
            after = model(input_ids=ids, attention_mask=mask) if by_name else model(ids, mask)
            with model.without_memory():
                assert torch.equal(after.logits, model(input_ids=ids, attention_mask=mask).logits)
        assert not model.opened
    logits_of(model, ids)
    assert model.opened


def test_threads_are_in_passes_of_their_own(written: GraftedModel) -> None:
    about, other = ids_of(written), ids_of(written, "a quite different and much longer line of text about nothing at all")
    open_after(written, cue_at(written, TEXT, 9))
    expected = [logits_of(written, ids) for ids in (about, other)]
    wrong: list[object] = []

    def ask(number: int) -> None:
        ids = (about, other)[number % 2]
        for _ in range(30):
            try:
                same = torch.allclose(logits_of(written, ids, attention_mask=torch.ones_like(ids)), expected[number % 2], atol=1e-5)
            except (IndexError, RuntimeError) as error:
                same = False
                wrong.append(error)
            wrong.extend([] if same and bool(written.opened) == (number % 2 == 0) else [number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_generating_reads_the_memory_as_a_single_pass_does(written: GraftedModel) -> None:
    ids = ids_of(written)[:, :20]
    open_after(written, cue_at(written, TEXT, 9))
    written_on = written.generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    greedy = ids
    for _ in range(written_on.shape[1] - ids.shape[1]):
        greedy = torch.cat([greedy, logits_of(written, greedy)[:, -1:].argmax(-1)], 1)
    assert torch.equal(written_on, greedy)


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}], ids=str)
def test_every_way_to_generate_hears_what_the_prompt_said(written: GraftedModel, settings: dict[str, object]) -> None:
    ids = ids_of(written)[:, :20]
    silent, heard = Cues.empty(written.config.query_dim), cue_at(written, TEXT, 9)
    found = []
    for cues in (silent, heard, None):
        open_after(written, cues)
        found.append(written.generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0, **settings))
    with written.without_memory():
        base = written.generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0, **settings)
    assert torch.equal(found[0], base)
    assert not torch.equal(found[1], base)
    assert not torch.equal(found[2], base)


@pytest.mark.parametrize("name", [*ARCHITECTURES, "mamba", "bloom", "gptj"])
@torch.no_grad()
def test_every_architecture_remembers_what_it_heard(name: str) -> None:
    model = fill(tiny_graft(tiny_model(name)), size=3)
    rows = model.rows()
    (ids,) = random_tokens(12)
    prompt, position = torch.tensor([ids]), 5
    with model.without_memory():
        states = hidden_states_before(model.base, model.blocks, model.config.layers[0], input_ids=prompt)
    model.assign_rows(rows, Cues(model.cue_queries(states)[0, position][None], torch.tensor([0.999]), torch.zeros(1, dtype=torch.int64)))
    written = model.generate(input_ids=prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0)
    slowly = model.generate(input_ids=prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0, use_cache=False)
    assert torch.equal(written, slowly)
    assert model.opened[0][0, position - 1 : position + 1].tolist() == [False, True]
    with model.without_memory():
        base = model.generate(input_ids=prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0)
    assert not torch.equal(base, written)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("opens", [True, False])
@torch.no_grad()
def test_a_static_cache_hides_its_empty_places(name: str, opens: bool) -> None:
    model = fill(tiny_graft(tiny_model(name)), size=3)
    rows = model.rows()
    for seed in range(3):
        prompt = torch.tensor(random_tokens(12, seed=seed))
        with model.without_memory():
            states = hidden_states_before(model.base, model.blocks, model.config.layers[0], input_ids=prompt)
        least = torch.tensor([0.99 if opens else NEVER])
        model.assign_rows(rows, Cues(model.cue_queries(states)[0, 5][None], least, torch.zeros(1, dtype=torch.int64)))
        settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
        # Without padding, a token that is computed by itself may get no mask.
        static = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), cache_implementation="static", **settings)
        assert torch.equal(static, model.generate(input_ids=prompt, use_cache=False, **settings))


@torch.no_grad()
def test_padding_between_a_shared_beginning_and_the_rest_separates_no_cues() -> None:
    model = fill(tiny_graft(), size=3)
    rows = model.rows()
    short = "The story of the old river Zoq? Answer:"
    long = "The story of the old river Zow, which is much longer than the other one, as everybody knows well? Answer:"
    ids = ids_of(model, short)
    with model.without_memory():
        states = hidden_states_before(model.base, model.blocks, model.config.layers[0], input_ids=ids)
        base = generate_answers(model.base, model.tokenizer, [short], max_new_tokens=8)
    place = short.index("Zoq")  # a token a letter; "Zo" is in what both prompts start with
    keys = model.cue_queries(states)[0, [place + 1, place + 2]]
    model.assign_rows(rows, Cues(keys, torch.tensor([0.99, 0.99]), torch.zeros(2, dtype=torch.int64)))
    alone = generate_answers(model.base, model.tokenizer, [short], max_new_tokens=8)
    assert alone != base
    assert generate_answers(model.base, model.tokenizer, [short, long], max_new_tokens=8)[:1] == alone


@given(seed=st.integers(0, 500), gap=st.integers(0, 20))
def test_masked_tokens_are_as_if_they_were_not_there(seed: int, gap: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cues = Cues(torch.eye(4)[:, :4].repeat(1, 2), torch.full((4,), 0.5), torch.tensor([0, 0, 1, 1]))
    heard = torch.randint(-1, 4, (2, 14, 1), generator=generator)
    scopes = Scopes([cues], 8)
    filler = torch.randint(-1, 4, (2, gap, 1), generator=generator)
    wide = torch.cat([heard[:, :6], filler, heard[:, 6:]], 1)
    mask = torch.cat([torch.ones(2, 6), torch.zeros(2, gap), torch.ones(2, 8)], 1).long()
    expected, found = scopes.open(heard), scopes.open(wide, mask)
    assert expected.keys() == found.keys()
    for lesson, opened in found.items():
        assert torch.equal(opened.facts, expected[lesson].facts)
        assert torch.equal(torch.cat([opened.tokens[:, :6], opened.tokens[:, 6 + gap :]], 1), expected[lesson].tokens)


@given(seed=st.integers(0, 500), gap=st.integers(0, 5), now=st.integers(1, 14))
def test_names_that_are_asked_for_later_were_said_as_fully(seed: int, gap: int, now: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first = Cues(torch.eye(4), torch.tensor([0.5, NEVER, 0.5, 0.5]), torch.tensor([0, 0, 1, 2]))
    scopes = Scopes([first, Cues(torch.eye(4)[1:3], torch.full((2,), 0.5), torch.tensor([0, 1]))], 4)
    queries = torch.eye(4)[torch.randint(0, 4, (2, 14), generator=generator)]
    said, places = scopes.names.said(torch.arange(5), queries)
    expected = said, torch.where(places < 0, places, places + gap)  # padding goes to the front
    filler = torch.eye(4)[torch.randint(0, 4, (2, gap), generator=generator)]
    wide = torch.cat([queries[:, :6], filler, queries[:, 6:]], 1)
    mask = torch.cat([torch.ones(2, 6), torch.zeros(2, gap), torch.ones(2, 8)], 1).long()
    kept = torch.cat([torch.arange(6), torch.arange(6 + gap, 14 + gap)])
    for lesson, own in ((0, [0, 2]), (0, [1]), (1, [0, 1])):
        opened = Opened(torch.tensor(own), torch.ones(2, 14 + gap, len(own), dtype=torch.bool))
        every, last = scopes.told(lesson, opened, wide, mask), scopes.told(lesson, opened.part(slice(None), slice(-now, None)), wide, mask)
        known = expected[1][..., [number + 3 * lesson for number in own]] >= 0
        for name, values in zip(("said", "places"), expected, strict=True):
            of_facts = values[..., [number + 3 * lesson for number in own]]
            torch.testing.assert_close(getattr(every, name)[:, kept][known], of_facts[known])
            assert torch.equal(getattr(every, name)[:, -now:], getattr(last, name))
