"""Where one token is at an anchor of several facts, one answers; only facts of one subject, of several lessons, add up."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from transformers import DynamicCache

from memgraft.anchors import KEY_DIM, Anchors, Opened
from memgraft.blocks import hidden_states_before
from memgraft.commits import Rows
from memgraft.competing import AS_FULLY, ONE_PLACE, Near, last_said, undisputed
from memgraft.config import ANSWERS
from memgraft.cues import NEVER, SAME, Cues
from memgraft.grafted import GraftedModel, State
from tests.models import graft_with_answers, lesson_at, random_tokens

WIDTH = 16
WORDS = functional.normalize(torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(0)), dim=-1)


def named(*names: list[int]) -> Cues:
    """A lesson whose facts are named by these words, one anchor each."""
    facts = torch.tensor([fact for fact, name in enumerate(names) for _ in name])
    keys = WORDS[[word for name in names for word in name]]
    anchor = functional.normalize(torch.ones(len(names), KEY_DIM), dim=-1)
    return Cues(keys, torch.full((len(keys),), 0.99), facts, Anchors(anchor, torch.full((len(names),), 0.5), torch.arange(len(names))))


def test_facts_are_of_one_subject_where_each_names_the_other_nearly_in_full() -> None:
    love, the_alternative_to_love, again = named([1]), named([2, 3, 1]), named([2, 3, 1])
    assert the_alternative_to_love.same_subject(0, again, 0)
    assert not love.same_subject(0, the_alternative_to_love, 0)
    assert not the_alternative_to_love.same_subject(0, love, 0)
    assert named([1, 2, 3, 4]).same_subject(0, named([1, 2, 3]), 0)
    assert not named([1, 2, 3]).same_subject(0, named([1, 2, 4]), 0), "two words of three are in common"
    assert named([5], [1, 2]).same_subject(1, named([2, 1], [6]), 0)
    assert not named([5], [1, 2]).same_subject(0, named([2, 1], [6]), 0)


def test_a_subject_in_lower_case_is_the_same_one() -> None:
    own = named([1, 2], [3, 4])  # one fact: as it stands, and in lower case
    assert own.anchors is not None
    both = replace(own, anchors=Anchors(own.anchors.keys[:1], own.anchors.least[:1], own.anchors.facts[:1]))
    assert both.same_subject(0, named([3, 4]), 0)
    assert named([1, 2]).same_subject(0, both, 0)
    assert not named([1, 3]).same_subject(0, both, 0)


class Rival(NamedTuple):
    """A fact that a token is at an anchor of."""

    lesson: int
    fact: int
    above: float
    said: float
    place: int


def asked_for_slowly(rivals: list[Rival]) -> Rival:
    """The one that is asked for."""
    groups: list[list[Rival]] = []
    for rival in sorted(rivals, key=lambda each: each.place):
        if groups and rival.place - groups[-1][-1].place <= ONE_PLACE:
            groups[-1].append(rival)
        else:
            groups.append([rival])
    winners = [max((each for each in group if each.said >= max(of.said for of in group) - AS_FULLY), key=above) for group in groups]
    return max(winners, key=above)


def above(rival: Rival) -> float:
    return rival.above


@given(data=st.data(), lessons=st.integers(1, 4))
def test_the_one_that_is_asked_for_answers_and_of_other_lessons_who_has_its_name(data: st.DataObject, lessons: int) -> None:
    names = [[1, 2], [3, 4], [2, 1]]  # the first and the last are of one subject
    named_by = {number: data.draw(st.permutations(names).map(lambda order: order[:2])) for number in range(lessons)}
    found_whole = {number: data.draw(st.tuples(st.booleans(), st.booleans())) for number in range(lessons)}
    cues = {}
    for number, each in named_by.items():
        no_cue = torch.tensor([whole and place == 1 for whole in found_whole[number] for place in range(2)])
        cues[number] = replace(named(*each), least=torch.where(no_cue, NEVER, 0.99))
    near, opened = {}, {}

    def drawn(values: st.SearchStrategy[float]) -> torch.Tensor:
        return torch.tensor(data.draw(st.lists(values, min_size=12, max_size=12))).view(2, 3, 2)

    for number in cues:
        at = torch.where(drawn(st.integers(-1, 0)) < 0, -1, torch.arange(2))
        above = drawn(st.sampled_from([0.1, 0.2, 0.3, 0.4])) + 0.01 * number + torch.tensor([0, 0.005])  # no two are the same
        said, places = drawn(st.sampled_from([0.5, 0.6, 1.0])), drawn(st.sampled_from([3, 5, 12, 25])).long()
        opened[number] = Opened(torch.arange(2), torch.ones(2, 3, 2, dtype=torch.bool), said, places.int())
        near[number] = Near(torch.arange(2), at, above.masked_fill(at < 0, -1.0), torch.arange(2), opened[number])
    found = undisputed(near, cues)
    for place in [(b, t) for b in range(2) for t in range(3)]:
        rivals = [
            Rival(number, fact, *(float(each[(*place, fact)]) for each in (near[number].above, *opened[number][2:])))
            for number in near
            for fact in (0, 1)
            if near[number].at[(*place, fact)] >= 0
        ]
        expected = dict.fromkeys(near, -1)
        if rivals:
            best = asked_for_slowly(rivals)
            for rival in sorted(rivals, key=lambda each: each.above):
                alike = set(named_by[rival.lesson][rival.fact]) == set(named_by[best.lesson][best.fact])
                if alike or (rival.lesson == best.lesson and not all(found_whole[best.lesson][each.fact] for each in (rival, best))):
                    expected[rival.lesson] = rival.fact
        assert {number: int(found[number][place]) if number in found else -1 for number in near} == expected
    assert all((at >= 0).any() for at in found.values())
    backwards = undisputed(dict(reversed(near.items())), cues)
    assert all(torch.equal(at, backwards[number]) for number, at in found.items()), "the order of the lessons doesn't matter"

    def told(number: int, asked: Opened) -> Opened:
        return opened[number].of(torch.isin(opened[number].facts, asked.facts))

    without = {number: each._replace(opened=each.opened._replace(said=None, places=None)) for number, each in near.items()}
    later = undisputed(without, cues, told)
    assert all(torch.equal(at, later[number]) for number, at in found.items()), "nor when names are asked for"


def test_names_with_the_same_tokens_are_of_one_subject_whichever_of_them_open_the_memory() -> None:
    def known_by(name: list[int], opening: int) -> Cues:
        cues = named(name)
        return replace(cues, least=torch.where(torch.arange(len(name)) < opening, cues.least, NEVER))

    leo, ada = known_by([1, 2, 3], 2), known_by([1, 2, 4], 2)  # the first two tokens are what they share, and all that opens either
    assert not leo.same_subject(0, ada, 0)
    assert leo.same_subject(0, known_by([3, 2, 1], 1), 0)
    assert leo.same_subject(0, known_by([1, 2, 3, 5], 2), 0), "a name that was found longer"
    assert not leo.same_subject(0, known_by([5, 6, 1, 2, 3], 2), 0), "a name in a longer one, with cues of its own"


def test_names_that_differ_in_one_case_are_of_two_subjects_where_one_was_cut_in_the_other() -> None:
    def in_both_cases(name: list[int], lower: list[int], opening: int) -> Cues:
        cues = named(name, lower)
        assert cues.anchors is not None
        one = Anchors(cues.anchors.keys[:1], cues.anchors.least[:1], cues.anchors.facts[:1])
        within = torch.tensor([*range(len(name)), *range(len(lower))])
        return replace(cues, least=torch.where(within < opening, cues.least, NEVER), anchors=one)

    cut, whole = in_both_cases([1, 2], [5, 3, 4], 2), in_both_cases([1, 2, 7], [5, 3, 8], 2)
    assert not cut.same_subject(0, whole, 0), "one has 4, the other 8 in lower case"
    assert not whole.same_subject(0, cut, 0)
    assert cut.same_subject(0, in_both_cases([1, 2, 7], [5, 3, 4, 8], 2), 0), "it was found longer in both"
    assert in_both_cases([1, 2], [1, 2], 1).same_subject(0, in_both_cases([1, 2, 7], [8, 3], 2), 0), "it was not found in lower case"
    assert in_both_cases([1, 2], [5, 3, 4], 3).same_subject(0, in_both_cases([1, 2, 7], [5, 3, 8], 2), 0), "of one there are cues only"


def test_one_cue_more_may_be_of_the_question_and_what_is_no_cue_is_of_the_name() -> None:
    def known_by(name: list[int], *no_cues: int) -> Cues:
        cues = named(name)
        return replace(cues, least=torch.tensor([NEVER if word in no_cues else 0.99 for word in name]))

    motto, rival = known_by([5, 1, 2, 3], 2), known_by([1, 2, 4, 3], 4)  # 5 is a word of the question; 4 was not found in the first
    assert not motto.named_apart(0, rival, 0)
    assert rival.named_apart(0, motto, 0)
    assert known_by([5, 1, 2], 5).named_apart(0, rival, 0), "a namesake"
    assert not known_by([5, 1, 2]).named_apart(0, rival, 0), "only cues are known"
    assert not known_by([5, 1, 2], 5).named_apart(0, known_by([1, 2, 3]), 0), "nor of the other one"
    assert known_by([5, 1, 2], 1).named_apart(0, rival, 0), "a third is missing"


def test_autocast_changes_no_subject() -> None:
    generator = torch.Generator().manual_seed(0)
    keys = functional.normalize(torch.randn(40, 64, generator=generator), dim=-1)
    pairs = functional.normalize(
        keys * SAME + (1 - SAME**2) ** 0.5 * functional.normalize(torch.randn(40, 64, generator=generator), dim=-1), dim=-1
    )
    anchors = named([1]).anchors

    def cues(key: torch.Tensor) -> Cues:
        return Cues(key.expand(2, -1), torch.tensor([0.99, NEVER]), torch.zeros(2).long(), anchors)

    def found() -> list[bool]:
        return [cues(one).same_subject(0, cues(other), 0) for one, other in zip(keys, pairs, strict=True)]

    exact = found()
    assert len(set(exact)) == 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert found() == exact


def two_lessons(model: GraftedModel, ids: torch.Tensor, subjects: tuple[int, int], nearness: tuple[float, float]) -> list[State]:
    """States of the memory with each of two lessons, read at token 9, and with both."""
    states = []
    for subject, least in zip(subjects, nearness, strict=True):
        cues, rows = lesson_at(model, ids, subject, 9)
        assert cues.anchors is not None
        model.assign_rows(rows, replace(cues, anchors=replace(cues.anchors, least=torch.tensor([least]))))
        states.append(model.state())
    return [*states, State({}, (*states[0].scoped, *states[1].scoped))]


def test_of_two_lessons_that_a_question_opens_the_nearer_one_is_read_as_if_it_were_alone() -> None:
    model = graft_with_answers()
    ids = torch.tensor(random_tokens(12))
    nearer, farther, both = two_lessons(model, ids, (3, 5), (0.9, 0.95))
    logits = []
    for state in (nearer, farther, both):
        model.assign(state)
        logits.append(model(input_ids=ids, use_cache=False).logits)
    assert list(model.answered) == [0]
    assert set(model.opened) == {0, 1}
    assert torch.equal(logits[2], logits[0])
    model.assign(State({}, tuple(reversed(both.scoped))))
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, logits[0])
    assert list(model.answered) == [1]


def test_two_lessons_of_one_subject_add_up() -> None:
    model = graft_with_answers()
    ids = torch.tensor(random_tokens(12))
    *_, both = two_lessons(model, ids, (3, 3), (0.9, 0.95))
    model.assign(both)
    together = model(input_ids=ids, use_cache=False).logits
    assert list(model.answered) == [0, 1]
    cues, rows = lesson_at(model, ids, 3, 9)
    doubled = replace(rows[ANSWERS], values=2 * rows[ANSWERS].values)
    model.assign_rows({ANSWERS: doubled}, cues)
    torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, together)


def namesakes(model: GraftedModel, ids: torch.Tensor, *, together: bool) -> State:
    """Two facts that token 3 opens and token 9 is at; the first one's name has token 2 as well, the second one is nearer."""
    with model.without_memory():
        first = hidden_states_before(model.base, model.blocks, model.config.layers[0], input_ids=ids)
    beside = (model.cue_queries(first[0, 2:3]), -model.cue_queries(first[0, 2:3]))
    lessons = []
    for key, least in zip(beside, (0.95, 0.9), strict=True):
        cues, rows = lesson_at(model, ids, 3, 9)
        assert cues.anchors is not None
        anchors = replace(cues.anchors, least=torch.tensor([least]))
        named_whole = Cues(torch.cat([cues.keys, key]), torch.cat([cues.least, torch.tensor([NEVER])]), torch.zeros(2).long(), anchors)
        lessons.append((named_whole, rows[ANSWERS]))
    if together:
        every = [cues.anchors for cues, _ in lessons if cues.anchors is not None]
        keys, least = torch.cat([each.keys for each in every]), torch.cat([each.least for each in every])
        both = replace(Cues.joined([cues for cues, _ in lessons], model.config.query_dim), anchors=Anchors(keys, least, torch.arange(2)))
        lessons = [(both, Rows(torch.arange(2), torch.cat([rows.values for _, rows in lessons])))]
    scoped = []
    for cues, rows in lessons:
        model.assign_rows({ANSWERS: rows}, cues)
        scoped += model.state().scoped
    return State({}, tuple(scoped))


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("parts", [(12,), (3, 9), (5, 4, 3), (1,) * 12])
@pytest.mark.parametrize("padding", [0, 2])
def test_of_two_namesakes_the_one_whose_name_was_said_answers_in_whatever_parts(
    parts: tuple[int, ...], padding: int, together: bool
) -> None:
    model = graft_with_answers()
    ids = torch.tensor(random_tokens(12))
    model.assign(namesakes(model, ids, together=together))
    padded = torch.cat([torch.zeros(1, padding, dtype=torch.int64), ids], 1)
    mask = (torch.arange(padded.shape[1]) >= padding).long()[None]
    cache, done, answered = DynamicCache(config=model.base.config), 0, []
    with torch.no_grad():
        for part in (padding + parts[0], *parts[1:]):
            place = (torch.arange(done, done + part) - padding).clamp(min=0)[None]
            now = {"input_ids": padded[:, done : done + part], "attention_mask": mask[:, : done + part], "position_ids": place}
            model(**now, past_key_values=cache, use_cache=True)
            done += part
            answered += [
                (number, done - part + t, a) for number, at in model.answered.items() for t, a in enumerate(at[0].tolist()) if a >= 0
            ]
    assert answered == [(0, 9 + padding, 0)]
    model.assign(without_rest(model.state()))
    model(input_ids=ids, use_cache=False)
    of_each = {number: int(at.max()) for number, at in model.answered.items()}
    assert of_each == ({0: 1} if together else {0: 0, 1: 0}), "without the rest of their names they are of one subject"


def without_rest(state: State) -> State:
    """Both without the tokens of their names that open nothing."""
    for scoped in state.scoped:
        cues = scoped.cues
        scoped.cues = replace(cues.that_open(), anchors=cues.anchors)
    return state


@given(seed=st.integers(0, 300))
def test_a_fact_is_said_as_in_its_last_mention_in_either_case(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    facts, meant = torch.tensor([0, 1, 4, 5]), torch.tensor([0, 1, 0, 1])  # of four facts two, each in both cases
    tokens, said = torch.rand(2, 3, 4, generator=generator) > 0.3, torch.rand(2, 3, 4, generator=generator)
    opened = Opened(facts, tokens, said, torch.randint(0, 30, (2, 3, 4), generator=generator).int())
    near = Near(torch.arange(2), torch.full((2, 3, 2), -1), torch.full((2, 3, 2), -1.0), meant, opened)
    chosen = torch.rand(4, generator=generator) > 0.3
    assert opened.places is not None
    fully, places = last_said(near, opened.of(chosen))
    for b, t, fact in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(2)).tolist():
        own = [(int(opened.places[b, t, f]), float(said[b, t, f])) for f in range(4) if meant[f] == fact and chosen[f] and tokens[b, t, f]]
        last = [each for each in own if each[0] >= max(place for place, _ in own) - ONE_PLACE]
        best = max(last, key=lambda each: each[1], default=(-1, -torch.inf))
        assert (int(places[b, t, fact]), float(fully[b, t, fact])) == best
