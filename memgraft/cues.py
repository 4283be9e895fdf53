"""Cues: what tells that a text is about a taught fact. A lesson is read from there on, and not before and elsewhere.

A memory that is read at every token is disturbed, however little, by whatever was written to it. A fact matters only where its
subject came up, and that can be told from the hidden states that the first memory layer reads: the states of the subject's own
tokens recur in all wordings of the fact, and hardly anywhere else (`memgraft.finding`). A lesson is read where one of its own facts
came up. Where none did, the model is the base model, bit for bit. Edits with a scope: SERAC (Mitchell et al. 2022, arXiv
2206.06520), GRACE (Hartvigsen et al. 2023, arXiv 2211.11031). Here a scope is a handful of key vectors a fact, and lasts from where
they were heard to the end of the sequence.

Namesakes share cues: of the Wardrups, Leo and Ada, either's open the memory for the other. Which of two is spoken of is told by how
fully each one's name was said (`Cues.said`), for which the keys of all its tokens are kept, those too that open nothing.

Shape suffixes: B sequences, T tokens, N tokens of several sequences, C cues, A of them, P query width, M cues kept a token, F facts of
which something was heard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from memgraft.anchors import Anchors, Opened, keys_problem
from memgraft.precision import in_own_precision

ENOUGH = 0.6  # share of a fact's cues that opens the memory
ALIKE = 0.75  # share of a fact's cues that are heard in another one's where both are of the same subject
SAME = 0.55  # cosine from which tokens of two names are the same one: of 36 pairs of namesakes no more than .52, of a name and itself .59
SAID = 0.5  # cosine with a token of a name from which this speaks for its having been said; below it against, by a quarter of that
REACH = 16  # tokens within which they must be heard: the words of a name stand together
KEPT = 1024  # cues, of all lessons, that one token can be at the same time: some 300 facts may be about one name
AT_ONCE = 1 << 24  # cosines that are computed at once, 64 MiB of them
NEVER = 2.0  # a cosine that no token reaches


_ANCHORS = "anchors."  # how names of tensors start that are not the cues' own


@dataclass(frozen=True, eq=False)
class Cues:
    """The cues of facts, fact by fact: where a lesson is read. Among them the other tokens of a fact's name, which open nothing."""

    keys: Tensor  # (C, P) fp32 of unit length: the query of a token that is the cue
    least: Tensor  # (C,) fp32: cosine with its key above which a token is the cue; `NEVER`: it opens nothing
    facts: Tensor  # (C,) int64: of which fact; 0, …, 0, 1, …, 1, 2, …
    anchors: Anchors | None = None  # at which tokens, once open; None: at all. Of n facts cue facts i and n + i are both fact i

    @classmethod
    def empty(cls, width: int) -> Cues:
        return cls(torch.zeros(0, width), torch.zeros(0), torch.zeros(0, dtype=torch.int64))

    @classmethod
    def joined(cls, parts: Iterable[Cues], width: int) -> Cues:
        """The cues of all parts, in order, without anchors."""
        parts = [cls.empty(width), *parts]
        numbers, count = [], 0
        for part in parts:
            numbers.append(part.facts + count)
            count += part.fact_count
        return cls(
            torch.cat([part.keys for part in parts]),
            torch.cat([part.least for part in parts]),
            torch.cat(numbers),
        )

    def __len__(self) -> int:
        return len(self.least)

    @property
    def fact_count(self) -> int:
        return int(self.facts[-1]) + 1 if len(self) else 0

    @property
    def opens(self) -> Tensor:
        """(C,) bool: those that open something."""
        return self.least < NEVER

    def that_open(self) -> Cues:
        """Those alone, without anchors. Facts keep their numbers."""
        return Cues(self.keys[self.opens], self.least[self.opens], self.facts[self.opens])

    def of_fact(self, fact: int) -> Cues:
        """Those of one fact alone, without anchors."""
        own = self.facts == fact
        return Cues(self.keys[own], self.least[own], torch.zeros_like(self.facts[own]))

    def to(self, device: torch.device) -> Cues:
        """The same on a device."""
        return Cues(
            self.keys.to(device), self.least.to(device), self.facts.to(device), None if self.anchors is None else self.anchors.to(device)
        )

    def tensors(self) -> dict[str, Tensor]:
        """All numbers by name."""
        return {
            **self._own(),
            **{_ANCHORS + name: tensor for name, tensor in (self.anchors.tensors() if self.anchors is not None else {}).items()},
        }

    def _own(self) -> dict[str, Tensor]:
        return {"keys": self.keys, "least": self.least, "facts": self.facts}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Cues:
        """The inverse of `tensors`. ValueError, which names one, where tensors are missing or unknown."""
        anchors = {name.removeprefix(_ANCHORS): tensor for name, tensor in tensors.items() if name.startswith(_ANCHORS)}
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith(_ANCHORS)}
        odd = sorted(own.keys() ^ {"keys", "least", "facts"})
        odd += sorted(_ANCHORS + name for name in anchors.keys() ^ {field.name for field in fields(Anchors)}) if anchors else []
        if odd:
            raise ValueError(odd[0])
        return cls(**own, anchors=Anchors(**anchors) if anchors else None)

    @property
    def nbytes(self) -> int:
        """Bytes of all numbers."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def equal(self, other: Cues) -> bool:
        """The same numbers."""
        mine, theirs = self.tensors(), other.tensors()
        return mine.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())

    def __eq__(self, other: object) -> bool:
        return self.equal(other) if isinstance(other, Cues) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def problem(self, width: int) -> str | None:
        """Why these can't be cues for queries of that width; None when they can."""
        problem = keys_problem(self._own(), width)
        if problem:
            return problem
        if self.anchors is not None:
            problem = self.anchors.problem()
            if problem:
                return f"anchors: {problem}"
            if self.fact_count not in (self.anchors.fact_count, 2 * self.anchors.fact_count):
                return f"anchors: they are of {self.anchors.fact_count} facts, the cues of {self.fact_count}"
        return None

    def heard(self, queries_BTP: Tensor) -> Tensor:
        """Which cues each token is: (B, T, M) int64 numbers of cues, nearest first, -1 where there are fewer than at another token.

        A share of the tokens at a time, so that beside many cues a long text takes no more memory.
        """
        tokens = max(1, AT_ONCE // max(1, len(self)))
        found = [self._heard(part) for part in queries_BTP.flatten(0, 1).split(tokens)]
        most = max(each.shape[-1] for each in found)
        return torch.cat([F.pad(each, (0, most - each.shape[-1]), value=-1) for each in found]).view(*queries_BTP.shape[:-1], most)

    def _heard(self, queries_NP: Tensor) -> Tensor:
        with in_own_precision(queries_NP):
            above = (queries_NP @ self.keys.T).sub_(self.least)  # (N, C)
        most = int((above > 0).sum(-1).max()) if above.numel() else 0
        nearest = above.topk(min(KEPT, most), dim=-1)
        found = nearest.indices.masked_fill(nearest.values <= 0, -1)
        return found if most else found.new_full((len(found), 1), -1)

    def open(self, heard_BTM: Tensor) -> Tensor:
        """(B, T) bool: from the token on by which enough cues of one fact were heard, close to each other."""
        return self.open_facts(heard_BTM)[1].any(-1)

    def open_facts(self, heard_BTM: Tensor) -> tuple[Tensor, Tensor]:
        """The facts (F,) of which any cue was heard, and from which token on each is open, (B, T, F) bool."""
        batch, tokens, _ = heard_BTM.shape
        heard_BTM = heard_BTM[..., (heard_BTM >= 0).flatten(0, 1).any(0)]  # mostly few of M
        there = heard_BTM[heard_BTM >= 0].unique()  # (A,), those of the cues that were heard at all
        is_cue = torch.zeros(batch, tokens, len(there) + 1, dtype=torch.bool, device=heard_BTM.device)  # (B, T, A), and one for none
        place = torch.where(heard_BTM >= 0, torch.searchsorted(there, heard_BTM.contiguous()), len(there))
        is_cue = is_cue.scatter_(2, place, torch.ones_like(place, dtype=torch.bool))[..., :-1]
        times = F.pad(is_cue.int().cumsum(1), (0, 0, REACH, 0))  # heard by then, zero before the start
        lately = times[:, REACH:] > times[:, :tokens]
        facts, fact = self.facts[there].unique(return_inverse=True)
        heard = torch.zeros(batch, tokens, len(facts), device=heard_BTM.device).index_add_(2, fact, lately.float())
        enough = ENOUGH * torch.bincount(self.facts[self.opens])[facts]
        return facts, (heard >= enough - 1e-3).cumsum(1) > 0

    def said(self, facts: Tensor, queries_BTP: Tensor, there_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """How fully the name of each of these facts was said where its cues were last heard, and where that was.

        A name that has more tokens, or that fits better, is said more fully than one that shares only some of them. What was said before
        is left aside: the last mention counts.

        Returns:
            (B, T, F) fp32, and (B, T, F) int32: the token by which enough cues were heard, -1 where there was none so far.

        Args:
            facts: (F,) int64, ascending.
            there_BT: bool, False at tokens that are not there.
        """
        own = torch.isin(self.facts, facts).nonzero()[:, 0]
        fact, least = torch.searchsorted(facts, self.facts[own]), self.least[own]  # (A,)
        with in_own_precision(queries_BTP):
            cosines = queries_BTP @ self.keys[own].T  # (B, T, A)
        if there_BT is not None:
            cosines = cosines.masked_fill(~there_BT[..., None], -1.0)

        def by_fact(values_BTA: Tensor) -> Tensor:
            return values_BTA.new_zeros(*values_BTA.shape[:2], len(facts)).index_add_(2, fact, values_BTA)

        is_cue = (cosines > least).float()
        count, opens = torch.bincount(fact, minlength=len(facts)), torch.bincount(fact[least < NEVER], minlength=len(facts))
        heard = (by_fact(_highest_lately(is_cue, REACH)) >= ENOUGH * opens - 1e-3) & (by_fact(is_cue) > 0)
        token = torch.arange(heard.shape[1], device=heard.device)[:, None]
        places = torch.where(heard, token, -1).cummax(1).values
        # A name's tokens stand in order, so that it ends as many tokens behind its last cue as it has there, and one mention is not longer.
        number = torch.arange(len(own), device=own.device)
        last_cue = number.new_zeros(len(facts)).scatter_reduce_(0, fact, number.where(least < NEVER, -1), "amax", include_self=False)
        behind = torch.bincount(fact[number > last_cue[fact]], minlength=len(facts))
        speaks = torch.empty_like(cosines)
        for size in count.unique().tolist():
            of_size = count[fact] == size
            speaks[..., of_size] = _highest_lately(cosines[..., of_size], size + 2) - SAID
        fully = by_fact(speaks.clamp(min=0) + speaks.clamp(max=0) / 4)
        return fully.gather(1, torch.minimum(places.clamp(min=0) + behind, token)), places.int()

    def meets(self, other: Cues) -> bool:
        """Whether a text about a fact of one may read the other, as far as their own cues and anchors tell; closed facts don't count."""
        if self.anchors is not None and other.anchors is not None and not self.anchors.meets(other.anchors):
            return False
        return self._opened_by(other) or other._opened_by(self)

    def _opened_by(self, other: Cues) -> bool:
        with in_own_precision(self.keys):
            if not bool((other.keys @ self.keys.T > self.least).any()):
                return False
        lively = other.facts[other.opens].unique().tolist()
        return any(bool(self.open(self.heard(other.keys[other.facts == fact][None])).any()) for fact in lively)

    def same_subject(self, fact: int, other: Cues, other_fact: int) -> bool:
        """Whether both facts are of one subject: their names have the same tokens. Facts are numbered as by `anchors`.

        Names are found in wordings and may be longer in some: where one has all tokens of the other, nearly all cues of either must be
        heard in the other; and they may not each have a token of its own in the other case, as they stand or in lower, in which they
        may have been found in full.
        """
        covered = {
            (one, two): self._covered(own, other, its)
            for one, own in enumerate(self._groups(fact))
            for two, its in enumerate(other._groups(other_fact))
        }
        if any(min(each) >= SAME for each in covered.values()):
            return True
        if (
            self._named_in_two_cases(fact)
            and other._named_in_two_cases(other_fact)
            and any(max(covered[case, case]) < SAME for case in (0, 1))
        ):
            return False
        return (
            any(max(each) >= SAME for each in covered.values())
            and self._names(fact, other, other_fact)
            and other._names(other_fact, self, fact)
        )

    def _covered(self, group: int, other: Cues, other_group: int) -> tuple[float, float]:
        """The least cosine of a token of one name with the nearest of the other's, either way."""
        own = self._name(group)
        with in_own_precision(own):
            alike = own @ other._name(other_group).to(own.device).T
        return float(alike.amax(1).min()), float(alike.amax(0).min())

    def named_apart(self, fact: int, other: Cues, other_fact: int) -> bool:
        """Whether both names were found, as more than cues, and this one is not nearly all in the other's, as it stands or in lower case.

        Cues may be of the question ("motto"), so that a quarter of them may be missing there. Tokens that are none were found next to
        cues, and so are of the name.
        """
        theirs = other._groups(other_fact)
        if not (self._named(fact) and other._named(other_fact)):
            return False
        for case, group in enumerate(self._groups(fact)):
            own = self.facts == group
            with in_own_precision(self.keys):
                alike = self.keys[own] @ other._name(theirs[min(case, len(theirs) - 1)]).to(self.keys.device).T
            missing = alike.amax(1) < SAME
            if bool((missing & ~self.opens[own]).any()) or float(missing.float().mean()) > 1 - ALIKE:
                return True
        return False

    def _named(self, fact: int) -> bool:
        """Whether its name was found, as more than its cues."""
        return any(not bool(self.opens[self.facts == group].all()) for group in self._groups(fact))

    def _named_in_two_cases(self, fact: int) -> bool:
        """Whether it was found in lower case apart from as it stands."""
        groups = self._groups(fact)
        return len(groups) > 1 and self._named(fact) and not torch.equal(self._name(groups[0]), self._name(groups[1]))

    def _name(self, group: int) -> Tensor:
        return self.keys[self.facts == group]

    def _names(self, fact: int, other: Cues, other_fact: int) -> bool:
        """Whether nearly all cues of the other fact are heard in those of this one, as they stand or in lower case."""
        for group in self._groups(fact):
            name = self._name(group).to(other.keys.device)
            for wanted in map(other._cues_of, other._groups(other_fact)):
                with in_own_precision(name):
                    heard = (name @ other.keys[wanted].T > other.least[wanted]).any(0)
                if len(wanted) and int(heard.sum()) >= ALIKE * len(wanted):
                    return True
        return False

    def _cues_of(self, group: int) -> Tensor:
        return ((self.facts == group) & self.opens).nonzero()[:, 0]

    def _groups(self, fact: int) -> list[int]:
        assert self.anchors is not None
        return list(range(fact, self.fact_count, self.anchors.fact_count))

    def without(self, facts: Iterable[int]) -> Cues:
        """The same, but nothing opens these facts any more."""
        closed = torch.isin(self.facts, torch.tensor(sorted(facts), dtype=torch.int64, device=self.facts.device))
        return replace(self, least=self.least.masked_fill(closed, NEVER))


def _highest_lately(values_BTA: Tensor, tokens: int) -> Tensor:
    """(B, T, A): the highest value of the last so many tokens."""
    if not values_BTA.numel():
        return values_BTA
    padded = F.pad(values_BTA.transpose(1, 2), (tokens - 1, 0), value=-1.0)
    return F.max_pool1d(padded, tokens, stride=1).transpose(1, 2)


class Scopes:
    """The cues of several lessons together, each of which is open where one of its own facts is."""

    def __init__(self, lessons: Sequence[Cues], width: int) -> None:
        self.names = Cues.joined(lessons, width)
        self.cues = self.names.that_open()
        counts = torch.tensor([cues.fact_count for cues in lessons], dtype=torch.int64)
        self._lesson = torch.arange(len(lessons)).repeat_interleave(counts)  # of each fact
        self._first = counts.cumsum(0) - counts  # fact of each lesson
        # Other lessons have other cues, and of no two are all least cosines the same.
        self.mark = hashlib.sha256(self.cues.least.cpu().numpy().tobytes() + self.cues.facts.cpu().numpy().tobytes()).hexdigest()

    def to(self, device: torch.device) -> Scopes:
        """The same on a device."""
        if self.cues.keys.device != device:
            self.names, self._lesson, self._first = self.names.to(device), self._lesson.to(device), self._first.to(device)
            self.cues = self.cues.to(device)  # the cues last: another thread asks for theirs
        return self

    def open(self, heard_BTM: Tensor, mask_BT: Tensor | None = None) -> dict[int, Opened]:
        """For each lesson that is open anywhere: which of its facts, from which tokens on. Tokens that the mask hides are not there."""
        there_BT, order_BT = _arranged(mask_BT, heard_BTM)
        heard_BTM = _in_order(heard_BTM, order_BT)
        if there_BT is not None:
            heard_BTM = heard_BTM.masked_fill(~there_BT[..., None], -1)
        facts, open_BTF = self.cues.open_facts(heard_BTM)
        somewhere = open_BTF.any(1).any(0)
        facts, open_BTF = facts[somewhere], _back(open_BTF[..., somewhere], order_BT)
        lessons = self._lesson[facts]
        return {
            lesson: Opened(facts[lessons == lesson] - self._first[lesson], open_BTF[..., lessons == lesson])
            for lesson in lessons.unique().tolist()
        }

    def told(self, lesson: int, opened: Opened, queries_BTP: Tensor, mask_BT: Tensor | None = None) -> Opened:
        """What is open of a lesson, with how fully the names of these facts were said.

        Args:
            opened: of the last tokens, or of all.
            queries_BTP: of all tokens.
        """
        there_BT, order_BT = _arranged(mask_BT, queries_BTP)
        facts = opened.facts.to(self._first.device) + self._first[lesson]
        told = self.names.said(facts, _in_order(queries_BTP, order_BT), there_BT)
        said, places = (_back(each, order_BT)[:, -opened.tokens.shape[1] :] for each in told)
        return Opened(opened.facts, opened.tokens, said, places)


def _arranged(mask_BT: Tensor | None, tokens_BTN: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Which tokens are there, and the order in which they stand in which these are; None: all, and as they are.

    Padding behind tokens, between a shared beginning and the rest for one: in front of all tokens it separates none.
    """
    if mask_BT is None or mask_BT.shape != tokens_BTN.shape[:2]:
        return None, None
    there_BT = mask_BT.to(tokens_BTN.device).bool()
    if not bool((there_BT.int().diff(dim=1) < 0).any()):
        return there_BT, None
    order_BT = there_BT.int().argsort(dim=1, stable=True)
    return there_BT.gather(1, order_BT), order_BT


def _in_order(values_BTN: Tensor, order_BT: Tensor | None) -> Tensor:
    return values_BTN if order_BT is None else values_BTN.gather(1, order_BT[..., None].expand_as(values_BTN))


def _back(values_BTN: Tensor, order_BT: Tensor | None) -> Tensor:
    """The inverse of `_in_order`."""
    return values_BTN if order_BT is None else _in_order(values_BTN, order_BT.argsort(dim=1))
