"""A gate keeps a lesson only if the probes hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from memgraft.errors import GateError
from memgraft.gate import Gate
from memgraft.grafted import GraftedModel
from memgraft.grafting import graft
from memgraft.learning import learn
from memgraft.probes import DriftProbe, TextProbe
from memgraft.teaching import Recipe
from memgraft.writers import SGD
from tests.models import tiny_model, tiny_tokenizer

ROUGH = Recipe(ranking="all", writer=SGD(learning_rate=100.0), passes=2, t=None)
PROSE = TextProbe(name="prose", texts=("ZQX ZQX QXZ 77\n" * 20,), window=32)
DRIFT = DriftProbe(name="drift", texts=("ZQX ZQX QXZ 77\n" * 5,), window=32)


@pytest.fixture
def model() -> GraftedModel:
    return graft(tiny_model(), tiny_tokenizer(), slots=256, top_k=4, background=["The ship left.", "A lamp and a chair."])


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("aaaa bbbb aaaa bbbb\n")
    return path


def test_a_lesson_after_which_a_probe_falls_is_not_kept(model: GraftedModel, text: Path) -> None:
    with pytest.raises(GateError, match=r"the lesson is not kept: drift drift KL 0\.0000 → \d"):
        learn(model, text, message="m", recipe=ROUGH, gate=Gate([PROSE, DRIFT], tolerance=0.0))
    assert model.history.active() == []
    assert not len(model.rows()["0"])


def test_a_lesson_within_the_tolerance_is_kept_with_its_measurements(model: GraftedModel, text: Path) -> None:
    record = learn(model, text, message="m", recipe=ROUGH, gate=Gate([PROSE, DRIFT], tolerance=1000.0)).record
    assert [measured["name"] for measured in record["gate"]] == ["prose", "drift"]
    assert all(measured["after"] != measured["before"] for measured in record["gate"])


def test_drift_is_only_held_against_a_lesson_with_a_tolerance(model: GraftedModel, text: Path) -> None:
    assert learn(model, text, message="m", recipe=ROUGH, gate=Gate([DRIFT])).record["gate"][0]["after"] > 0
    with pytest.raises(GateError, match="drift KL"):
        learn(model, text, message="again", recipe=ROUGH.model_copy(update={"seed": 1}), gate=Gate([DRIFT], tolerance=0.0))


def test_a_lesson_is_held_to_what_was_before_it_not_to_the_base(model: GraftedModel, text: Path) -> None:
    learn(model, text, message="rough", recipe=ROUGH)
    gentle = ROUGH.model_copy(update={"writer": SGD(learning_rate=1e-4), "passes": 1})
    record = learn(model, text, message="gentle", recipe=gentle, gate=Gate([PROSE], tolerance=0.01)).record
    assert abs(record["gate"][0]["delta"]) < 0.01
