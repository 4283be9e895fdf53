"""SQuAD scores against torchmetrics and by hand."""

from __future__ import annotations

import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.text import SQuAD

from memgraft.probes import exact_match, f1, normalise

PIECES = [
    *["the", "a", "an", "The", "AN", "Theatre", "anna", "1984", "1,984", "U.S.A.", "rock'n'roll", "it’s", "–", "...", "", "\u00a0", "\n"],
    *[
        "café",
        "CAFÉ",
        "cafe\u0301",
        "Straße",
        "STRASSE",
        "İstanbul",
        "東京",
        "Москва",
        "ΟΔΟΣ",
        "½",
        "①",
        "🙂",
        "«non»",
        "naïve",
        "x-ray",
        "x ray",
    ],
]


def random_text(rng: random.Random) -> str:
    pieces = [rng.choice(PIECES) for _ in range(rng.randrange(6))]
    return rng.choice(["", " ", "  ", "¿"]) + rng.choice([" ", "  ", "\t", "-"]).join(pieces) + rng.choice(["", ".", " !"])


def test_scores_equal_torchmetrics_on_random_pairs_with_unicode() -> None:
    rng = random.Random(0)
    differing = 0
    for _ in range(1000):
        prediction = random_text(rng)
        answers = [random_text(rng) for _ in range(rng.randrange(1, 4))]
        if rng.random() < 0.3:
            answers.append(prediction.upper() + rng.choice(string.punctuation))
        squad = SQuAD()
        squad.update(
            {"prediction_text": prediction, "id": "0"}, {"answers": {"answer_start": [0] * len(answers), "text": answers}, "id": "0"}
        )
        expected = {name: float(value) / 100 for name, value in squad.compute().items()}
        assert exact_match(prediction, answers) == expected["exact_match"], (prediction, answers)
        assert f1(prediction, answers) == pytest.approx(expected["f1"], abs=1e-6), (prediction, answers)
        differing += expected["f1"] not in (0.0, 1.0)
    assert differing > 100  # the pairs are not trivial


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Beatles!", "beatles"),
        ("a theatre, an aunt", "theatre aunt"),
        ("U.S.", "us"),
        ("the", ""),
        ("Anna's\tcat\n", "annas cat"),
        ("x–the–y", "x– –y"),
    ],
)
def test_normalisation_drops_case_punctuation_articles_and_extra_space(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_f1_counts_repeated_words_once_per_match_and_takes_the_best_answer() -> None:
    assert f1("new new york", ["new york"]) == pytest.approx(2 * 2 / (3 + 2))
    assert f1("john smith", ["mary", "john"]) == pytest.approx(2 / 3)
    assert f1("mary", ["john"]) == 0.0


def test_a_single_string_is_one_answer_not_its_letters() -> None:
    assert exact_match("o", "oslo") == 0.0
    assert exact_match("Oslo.", "oslo") == 1.0


def test_no_accepted_answer_is_an_error_not_a_zero() -> None:
    with pytest.raises(ValueError, match="at least one accepted answer"):
        f1("x", [])


@given(st.text(), st.lists(st.text(), min_size=1, max_size=3))
def test_scores_lie_in_0_to_1_and_an_exact_match_has_full_f1(prediction: str, answers: list[str]) -> None:
    exact, partial = exact_match(prediction, answers), f1(prediction, answers)
    assert exact in (0.0, 1.0)
    assert exact <= partial <= 1.0


@given(st.text(), st.text())
def test_f1_is_symmetric(a: str, b: str) -> None:
    assert f1(a, [b]) == f1(b, [a])
