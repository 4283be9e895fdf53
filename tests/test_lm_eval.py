"""A grafted model in lm-evaluation-harness, on a task of local files, without network."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from memgraft.errors import GraftError, MemgraftError
from memgraft.grafted import GraftedModel
from memgraft.models import load_model
from memgraft.probes import choose
from tests.models import fill, save_tiny_model, tiny_config, tiny_tokenizer

os.environ["HF_DATASETS_OFFLINE"] = "1"
lm_eval = pytest.importorskip("lm_eval")

ROWS = [
    {"question": "What is red?", "choices": ["a rose", "the sea"], "answer": 0},
    {"question": "What is wet?", "choices": ["sand", "rain"], "answer": 1},
    {"question": "What is old?", "choices": ["the moon", "the news"], "answer": 0},
]


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    folder = tmp_path / "tasks"
    folder.mkdir()
    task = {
        "task": "local_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "local_choice.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=False)


def likelihoods(model: Any, tasks: Any) -> list[list[float]]:
    result = lm_eval.simple_evaluate(model, tasks=["local_choice"], task_manager=tasks, bootstrap_iters=0, log_samples=True)
    assert 0 <= result["results"]["local_choice"]["acc,none"] <= 1
    samples = sorted(result["samples"]["local_choice"], key=lambda sample: sample["doc_id"])
    return [[float(response[0]) for response in sample["filtered_resps"]] for sample in samples]


def test_the_harness_sees_the_memory_and_agrees_with_our_own_likelihoods(tmp_path: Path, tasks: Any) -> None:
    from memgraft.lm_eval import harness_model

    base = load_model(save_tiny_model(tmp_path / "model")).model
    grafted = fill(GraftedModel(base, tiny_tokenizer(), tiny_config()))
    on = likelihoods(harness_model(grafted), tasks)
    with grafted.without_memory():
        off = likelihoods(harness_model(grafted), tasks)
    assert on != off
    prompts = [f"Question: {row['question']}\nAnswer:" for row in ROWS]
    choices = [[str(choice) for choice in row["choices"]] for row in ROWS]  # type: ignore[attr-defined]
    means = choose(base, grafted.tokenizer, prompts, choices)
    ours = [[-mean * (len(choice) + 1) for mean, choice in zip(row, texts, strict=True)] for row, texts in zip(means, choices, strict=True)]
    assert [value for row in on for value in row] == pytest.approx([value for row in ours for value in row], abs=1e-3)


def test_a_store_is_a_model_of_the_harness(tmp_path: Path, tasks: Any) -> None:
    import memgraft.lm_eval  # registers the model

    source = save_tiny_model(tmp_path / "model")
    grafted = memgraft.graft(str(source), slots=64, background=["Some text to calibrate on, as long as it needs to be."] * 8)
    grafted.save(tmp_path / "store")
    from lm_eval.api.registry import get_model

    made = get_model("memgraft")(store=str(tmp_path / "store"))
    assert len(likelihoods(made, tasks)) == len(ROWS)
    assert made.grafted.base.dtype == torch.float32
    assert get_model("memgraft")(store=str(tmp_path / "store"), dtype="bfloat16").grafted.base.dtype == torch.bfloat16
    for name, value in {"revision": "main", "load_in_8bit": True, "bas": "a typo"}.items():
        with pytest.raises(MemgraftError, match=f"{name}: not used, the base model is loaded already"):
            get_model("memgraft")(store=str(tmp_path / "store"), **{name: value})
        with pytest.raises(MemgraftError, match=f"{name}: not used, the base model is loaded already"):
            memgraft.lm_eval.harness_model(grafted, **{name: value})
    with pytest.raises(GraftError, match="sees "):
        get_model("memgraft")(store=str(tmp_path / "store"), device="cuda:99")
