"""README's tables are those of the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import headline

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("study", "make"), [("pareto", headline.rivals), ("recipe", headline.recipe)])
def test_readme_has_the_figures_of_the_results(study, make):
    if not (ROOT / "results").exists():
        pytest.skip("a source distribution has no results")
    summary = json.loads((ROOT / "results" / study / "summary.json").read_text(encoding="utf-8"))
    assert make(summary) in (ROOT / "README.md").read_text(encoding="utf-8"), "python -m benchmarks.headline results"
