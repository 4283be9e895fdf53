"""README's tables are those of the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import headline

ROOT = Path(__file__).parents[1]


def test_readme_has_the_figures_of_the_results():
    if not (ROOT / "results").exists():
        pytest.skip("a source distribution has no results")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for made in headline.main(ROOT / "results").split("\n\n"):
        assert made in readme, "python -m benchmarks.headline results"


def test_the_memory_stands_among_its_rivals_in_every_summary():
    path = ROOT / "results" / "pareto" / "summary.json"
    if not path.exists():
        pytest.skip("a source distribution has no results")
    summary = json.loads(path.read_text(encoding="utf-8"))
    for split in ("test", "tuning"):
        assert "memory" in {setting["method"] for setting in summary[split]["settings"]}
        assert summary[split]["at_equal_learning"]["rivals"]
