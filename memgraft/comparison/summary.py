"""From runs to a summary: means over seeds, each method's fronts, and every rival's forgetting where it learned as much as the memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memgraft.comparison.fronts import Equal, Outcome, at_equal_learning, front
from memgraft.comparison.methods import Base, described, method_of
from memgraft.comparison.methods import settings as settings_of
from memgraft.errors import MemgraftError
from memgraft.probes import Interval, mean_interval, paired_bootstrap
from memgraft.probes.intervals import resampled_sums

Run = Mapping[str, Any]
Vector = NDArray[np.float64]

LEARNED, CONTROL = "learned", "control"
NEAR, LEAKED = "near misses", "leaks"  # how far answers beside the facts stayed, and where the taught answer came unasked
OWN = (LEARNED, CONTROL, NEAR, LEAKED)  # probes that belong to the facts, others in each run; the rest are what may be forgotten
MEMORY, BASE = "memory", "base"
# What is judged: pooled probes by their metric. The first is the paper's headline, a relative drop of F1.
POOLED = {"qa_f1": "F1", "answer_nll": "answer NLL", "text_nll": "text NLL", "accuracy": "accuracy"}
NOTHING_TO_FORGET = (
    "the base answers none of the probes' questions, so that what is forgotten can't be told: name questions that it can answer, or a text"
)
SCORED = ("F1", "accuracy")  # more is better, from 0 to 1: forgetting is a drop relative to the base's


@dataclass(frozen=True)
class Setting:
    """One method with one set of settings: its runs, one a seed."""

    method: str
    settings: Mapping[str, Any]
    runs: tuple[Run, ...]
    bases: tuple[Run, ...]  # of the base, one for each of these, where numbers are rounded alike

    def items(self, probe: str) -> Vector:
        """Values of a probe's items. Items that all seeds share are averaged over them; facts differ by seed and are put in a row."""
        return _items(self.runs, probe)

    def before(self, probe: str) -> Vector:
        """What the base scores on the items that all seeds share."""
        return _items(self.bases, probe)

    def interval(self, probe: str, values: Vector | None = None) -> Interval:
        """The mean of a probe's items, which belong to the facts. Those of several seeds that are one question are resampled together.

        Args:
            values: instead of the items' own, one for each.
        """
        values = self.items(probe) if values is None else values
        which = [number for run in self.runs for number in run.get("items", {}).get(probe, ())]
        if len(which) != len(values):  # nothing is known of what the seeds share
            return mean_interval(values.tolist())
        _, place, counts = np.unique(which, return_inverse=True, return_counts=True)
        means = np.bincount(place, weights=values) / counts
        return mean_interval(means.tolist(), counts.tolist())

    @property
    def learned(self) -> float:
        """Mean F1 on the taught facts."""
        return float(self.items(LEARNED).mean())


def _items(runs: Sequence[Run], probe: str) -> Vector:
    values = [np.asarray(run["scores"][probe]["values"], dtype=np.float64) for run in runs]
    return np.concatenate(values) if probe in OWN else np.mean(values, axis=0)


@dataclass(frozen=True)
class Change:
    """Values of items before and after, in the same order."""

    before: Vector
    after: Vector

    def mixed(self, other: Change, share: float) -> Change:
        """(1 - share) · this + share · the other."""
        return Change((1 - share) * self.before + share * other.before, (1 - share) * self.after + share * other.after)


@dataclass(frozen=True)
class Pool:
    """Probes of one metric, their items put in a row."""

    metric: str
    probes: tuple[str, ...]
    weights: Vector

    def of(self, setting: Setting) -> Change:
        """All items, by the base and as taught."""
        return Change(*(np.concatenate([values(probe) for probe in self.probes]) for values in (setting.before, setting.items)))

    def forgotten(self, change: Change) -> float:
        """F1 and accuracy: drop relative to the base's; NLL: rise in nats."""
        if self.metric in SCORED:
            before = float(self.weights @ change.before)
            return (before - float(self.weights @ change.after)) / before if before else 0.0
        return float(self.weights @ (change.after - change.before) / self.weights.sum())

    def interval(self, change: Change) -> dict[str, Any]:
        """`forgotten` with its paired bootstrap interval."""
        if self.metric not in SCORED:
            return fields(paired_bootstrap(change.before.tolist(), change.after.tolist(), self.weights.tolist()))
        estimate, count = self.forgotten(change), len(self.weights)
        before, after = resampled_sums([change.before * self.weights, change.after * self.weights], 4000, seed=0)
        drops = (before[before > 0] - after[before > 0]) / before[before > 0]
        low, high = (None, None) if count < 2 or not len(drops) else np.quantile(drops, [0.025, 0.975]).tolist()
        return fields(Interval(estimate, low, high, count, 0.95))


def grouped(runs: Sequence[Run]) -> list[Setting]:
    """Runs by method and settings, in the order of their first run; settings of which a run failed are left out.

    Raises MemgraftError for a run without one of the base where numbers are rounded as there: every change would carry the difference.
    """
    bases = {arithmetic_of(run): run for run in reversed(runs) if run["method"] == BASE and "failed" not in run}
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(repr((run["method"], sorted(run["settings"].items(), key=lambda item: item[0]))), []).append(run)
    found = []
    for group in groups.values():
        if any("failed" in run for run in group):
            continue
        if missing := [run for run in group if arithmetic_of(run) not in bases]:
            raise MemgraftError(
                f"{missing[0]['method']}, seed {missing[0]['seed']}: no run of the base whose numbers are rounded alike "
                f"(arithmetic {arithmetic_of(missing[0])}); run the base on that machine too"
            )
        if group[0]["method"] == BASE:  # once a seed: on other machines it is what other runs are compared with
            group = list({run["seed"]: run for run in reversed(group)}.values())
        in_order = tuple(sorted(group, key=lambda run: run["seed"]))
        found.append(Setting(group[0]["method"], group[0]["settings"], in_order, tuple(bases[arithmetic_of(run)] for run in in_order)))
    return found


def arithmetic_of(run: Run) -> str | None:
    """How the run's numbers were rounded (`memgraft.comparison.runs.arithmetic`); None: as in all runs that don't say so."""
    found: str | None = run.get("environment", {}).get("arithmetic")
    return found


def pools(base: Setting) -> dict[str, Pool]:
    """The pooled probes that the base was measured on; not those of questions of which it answers none: it has nothing to forget there."""
    scores = base.runs[0]["scores"]
    found = {}
    for name, metric in POOLED.items():
        probes = tuple(probe for probe in scores if scores[probe]["metric"] == metric and probe not in OWN)
        if probes and (metric not in SCORED or any(base.before(probe).any() for probe in probes)):
            weights = [np.asarray(scores[probe].get("weights") or [1.0] * len(scores[probe]["values"])) for probe in probes]
            found[name] = Pool(metric, probes, np.concatenate(weights))
    return found


def balance(setting: Setting, pooled: Mapping[str, Pool]) -> float:
    """By which a winner is chosen: learned F1 × exp(−rise of the text NLL), or of the answers' where no text is probed."""
    pool = pooled.get("text_nll") or pooled.get("answer_nll")
    rise = max(0.0, pool.forgotten(pool.of(setting))) if pool else 0.0
    return setting.learned * math.exp(-rise)


def fronts_of(settings: Sequence[Setting], pool: Pool) -> dict[str, list[Outcome[Setting]]]:
    """Each method's front under one pool, the base left out."""
    outcomes: dict[str, list[Outcome[Setting]]] = {}
    for setting in settings:
        if setting.method != BASE:
            outcomes.setdefault(setting.method, []).append(Outcome(setting.learned, pool.forgotten(pool.of(setting)), setting))
    return {method: front(group) for method, group in outcomes.items()}


def summarise(runs: Sequence[Run], chosen: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Settings with means and intervals, fronts, and the rivals at the memory's learning. Empty without a run of the base.

    Args:
        runs: of one split, the base's among them. Their `items`, where they have them, say of the facts' own probes which question each
            item is, so that one that several seeds ask is no more than one for the intervals.
        chosen: the memory's settings at which rivals are compared with it, chosen on other runs; by default these runs' best.
    """
    if not any(run["method"] == BASE and "failed" not in run for run in runs):
        return {}
    settings = grouped(runs)
    base = next(setting for setting in settings if setting.method == BASE)
    pooled = pools(base)
    fronts = {name: fronts_of(settings, pool) for name, pool in pooled.items()}
    return {
        "settings": [setting_summary(setting, pooled) for setting in settings],
        "fronts": {
            name: {method: [point(outcome) for outcome in outcomes] for method, outcomes in methods.items()}
            for name, methods in fronts.items()
        },
        "at_equal_learning": equal_learning(settings, base, pooled, fronts, chosen),
        "failed": [
            {"method": run["method"], "label": described(method_of(dict(run["settings"]))), "seed": run["seed"], "why": run["failed"]}
            for run in runs
            if "failed" in run
        ],
    }


def point(outcome: Outcome[Setting]) -> dict[str, Any]:
    """One point of a front."""
    return {
        "settings": dict(outcome.of.settings),
        "label": described(method_of(dict(outcome.of.settings))),
        "learned_f1": round(outcome.learned, 6),
        "forgotten": round(outcome.forgotten, 6),
    }


def setting_summary(setting: Setting, pooled: Mapping[str, Pool]) -> dict[str, Any]:
    """Means and intervals of a setting over its seeds."""
    scores = setting.runs[0]["scores"]
    learned = setting.items(LEARNED)
    summary: dict[str, Any] = {
        "method": setting.method,
        "label": described(method_of(dict(setting.settings))),
        "settings": dict(setting.settings),
        "seeds": [run["seed"] for run in setting.runs],
        "learned_f1": fields(setting.interval(LEARNED)),
        "balance": round(balance(setting, pooled), 6),
    }
    if CONTROL in scores:
        control = setting.items(CONTROL)
        summary["control_f1"] = fields(setting.interval(CONTROL))
        summary["net_f1"] = fields(setting.interval(LEARNED, learned - control)) if len(control) == len(learned) else None
    for probe, field in ((NEAR, "near_miss_f1"), (LEAKED, "leaked_f1")):
        if probe in scores:
            summary[field] = fields(setting.interval(probe))
    summary["probes"] = {}
    for probe in scores:
        if probe not in OWN:
            weights = scores[probe].get("weights")
            before, after = setting.before(probe), setting.items(probe)
            summary["probes"][probe] = {
                "metric": scores[probe]["metric"],
                "before": round(mean_interval(before.tolist(), weights, resamples=1).estimate, 6),
                "after": round(mean_interval(after.tolist(), weights, resamples=1).estimate, 6),
                "change": fields(paired_bootstrap(before.tolist(), after.tolist(), weights)),
            }
    summary["forgotten"] = {name: pool.interval(pool.of(setting)) for name, pool in pooled.items()}
    for cost in ("seconds", "setup_seconds", "peak_bytes", "bytes", "rows", "rows_per_fact"):
        values = [run[cost] for run in setting.runs if run.get(cost) is not None]
        summary[cost] = round(fmean(values), 3) if values else None
    return summary


def equal_learning(
    settings: Sequence[Setting],
    base: Setting,
    pooled: Mapping[str, Pool],
    fronts: Mapping[str, Mapping[str, list[Outcome[Setting]]]],
    chosen: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Each rival's forgetting, beside the memory's, at the learned F1 of the memory's winner: the chosen settings, or else the best."""
    own = [setting for setting in settings if setting.method == MEMORY and (chosen is None or setting.settings == chosen)]
    if not own:
        return {}
    winner = max(own, key=lambda setting: balance(setting, pooled))
    result: dict[str, Any] = {"learned_f1": round(winner.learned, 6), "memory": dict(winner.settings), "rivals": {}}
    for name, pool in pooled.items():
        memory = pool.of(winner)
        result.setdefault("forgotten", {})[name] = pool.interval(memory)
        for method, outcomes in fronts[name].items():
            if method == MEMORY:
                continue
            equal = at_equal_learning(_from_the_base(outcomes, base, winner.learned), winner.learned)
            change = pool.of(equal.lower).mixed(pool.of(equal.upper), equal.share)
            learned = (1 - equal.share) * equal.lower.learned + equal.share * equal.upper.learned
            own, rivals = ((each.after - each.before).tolist() for each in (memory, change))
            difference = paired_bootstrap(own, rivals, pool.weights.tolist())
            result["rivals"].setdefault(method, {})[name] = {
                "reached": equal.reached,
                "learned_f1": round(learned, 6),
                "learned_f1_minus_memory": _learned_beside(winner, equal),
                "most_learned_f1": round(outcomes[-1].learned, 6),
                "between": [described(method_of(dict(each.settings))) or each.method for each in (equal.lower, equal.upper)],
                "forgotten": pool.interval(change),
                "mean_minus_memory": fields(difference),
            }
    return result


def _from_the_base(outcomes: list[Outcome[Setting]], base: Setting, learned: float) -> list[Outcome[Setting]]:
    """A front that begins where nothing is taught and nothing forgotten, if even its lowest setting learned more than this."""
    lowest = outcomes[0]
    if lowest.learned <= learned or lowest.forgotten <= 0:
        return outcomes
    seeds = {run["seed"] for run in lowest.of.runs}
    same = tuple(run for run in base.runs if run["seed"] in seeds)
    untaught = Setting(BASE, settings_of(Base()), same, same)
    return [Outcome(untaught.learned, 0.0, untaught), *outcomes]


def _learned_beside(memory: Setting, rival: Equal[Setting]) -> dict[str, Any] | None:
    """The rival's F1 on the taught facts minus the memory's, paired; None where they were not taught the same facts: other seeds."""
    parts = (memory, rival.lower, rival.upper)
    own, lower, upper = (each.items(LEARNED) for each in parts)
    if len({tuple(run["seed"] for run in each.runs) for each in parts}) > 1 or not len(own) == len(lower) == len(upper):
        return None
    return fields(memory.interval(LEARNED, (1 - rival.share) * lower + rival.share * upper - own))


def fields(interval: Interval) -> dict[str, Any]:
    """An interval as JSON."""
    bounds = {name: None if bound is None else round(bound, 6) for name, bound in (("low", interval.low), ("high", interval.high))}
    return {"mean": round(interval.estimate, 6), **bounds, "n": interval.n}
