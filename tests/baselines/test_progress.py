"""A rival's training that is killed goes on to the same bits, and its costs are those of all its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from memgraft.baselines import OSF, SGD, AdamW, Full, LoRA, Rival, SHiRA
from memgraft.baselines.progress import TrainingFile
from memgraft.comparison.workshop import Lesson, Workshop
from memgraft.errors import DataError
from tests.models import random_batch, random_tokens, tiny_model, tiny_tokenizer

BATCHES = [random_batch(7, 5, 9, 12, name=f"fact {seed}", seed=seed) for seed in range(4)]
BACKGROUND = random_tokens(10, 12, 8, seed=9)
RIVALS: dict[str, Rival] = {
    "lora": LoRA(rank=4, optimizer=AdamW(lr=1e-2), passes=3, replay=1),
    "full": Full(optimizer=AdamW(lr=1e-2), passes=3),
    "osf": OSF(optimizer=AdamW(lr=1e-2, weight_decay=0), passes=3),
    "shira": SHiRA(rank=4, optimizer=SGD(lr=1e-2), passes=3),
}
every_rival = pytest.mark.parametrize("rival", RIVALS.values(), ids=RIVALS)
Outcome = tuple[tuple[float, ...], dict[str, torch.Tensor]]


def model_for(rival: Rival) -> PreTrainedModel:
    """One with dropout, where the rival takes its layers."""
    return tiny_model("gpt2" if isinstance(rival, LoRA | Full) else "llama", dtype=torch.bfloat16)


def taught(rival: Rival, file: TrainingFile | None = None, stop_after: int | None = None) -> Outcome:
    def on_step(_: object, done: int, total: int) -> None:
        if done == stop_after:
            raise KeyboardInterrupt

    with rival.taught(model_for(rival), BATCHES, seed=3, background=BACKGROUND, on_step=on_step, file=file) as trained:
        return trained.losses, {name: weight.clone() for name, weight in trained.model.state_dict().items()}


@every_rival
def test_it_goes_on_to_the_same_bits(rival: Rival, tmp_path: Path) -> None:
    losses, weights = taught(rival)
    for stop_after in (2, 7):
        with pytest.raises(KeyboardInterrupt):
            taught(rival, TrainingFile(tmp_path / "new" / "run.pt", "key", every=0), stop_after)
    file = TrainingFile(tmp_path / "new" / "run.pt", "key")
    again, same = taught(rival, file)
    assert again == losses
    assert all(torch.equal(same[name], weights[name]) for name in weights)
    with rival.taught(model_for(rival), BATCHES, seed=3, background=BACKGROUND, file=file) as trained:
        assert trained.losses == losses, "after the last step it was not written, or not read"
        assert all(torch.equal(weight, weights[name]) for name, weight in trained.model.state_dict().items())
    file.remove()
    assert not list((tmp_path / "new").iterdir())


def test_another_key_starts_anew_and_other_files_are_named(tmp_path: Path) -> None:
    rival, path = RIVALS["lora"], tmp_path / "run.pt"
    losses, _ = taught(rival, TrainingFile(path, "one"))
    with pytest.warns(UserWarning, match=r"run\.pt: of another machine or revision"):
        assert taught(rival, TrainingFile(path, "two"))[0] == losses
    content = path.read_bytes()
    for write in (
        lambda: path.write_bytes(content[:100]),
        lambda: path.write_text("hello", encoding="utf-8"),
        lambda: torch.save([1], path),
        lambda: torch.save(torch.zeros(2), path),
        lambda: torch.save({}, path),
    ):
        write()
        with pytest.raises(DataError, match=r"run\.pt: not a training under way .*; delete it"):
            taught(rival, TrainingFile(path, "two"))


def test_a_file_that_can_t_be_written_is_told_and_the_training_goes_on(tmp_path: Path) -> None:
    (tmp_path / "full").write_text("a file where a folder should be", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"run\.pt: not written"):
        losses, _ = taught(RIVALS["lora"], TrainingFile(tmp_path / "full" / "run.pt", "key", every=0))
    assert losses == taught(RIVALS["lora"])[0]


def test_what_a_kill_left_half_written_is_taken_away(tmp_path: Path) -> None:
    for name in ("run.pt", ".run.pt.77.partial", "run2.pt", ".run2.pt.77.partial"):
        (tmp_path / name).touch()
    TrainingFile(tmp_path / "run.pt", "key").remove()
    assert {path.name for path in tmp_path.iterdir()} == {"run2.pt", ".run2.pt.77.partial"}


def test_a_process_killed_while_it_trains_goes_on(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from memgraft.baselines.progress import TrainingFile
from tests.baselines.test_progress import RIVALS, BATCHES, BACKGROUND, model_for

class SomeSteps(TrainingFile):
    def step(self, weights, optimizer, losses, total):
        if len(losses) <= 5:
            super().step(weights, optimizer, losses, total)

def kill(_, done, total):
    if done == 8:
        os.kill(os.getpid(), signal.SIGKILL)

with RIVALS["lora"].taught(
    model_for(RIVALS["lora"]), BATCHES, seed=3, background=BACKGROUND, on_step=kill,
    file=SomeSteps(Path({str(tmp_path / "run.pt")!r}), "key", every=0),
):
    pass
"""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    assert subprocess.run([sys.executable, "-c", script], cwd=root, env=environment, check=False).returncode == -signal.SIGKILL
    assert len(torch.load(tmp_path / "run.pt", weights_only=True)["losses"]) == 5
    losses, weights = taught(RIVALS["lora"])
    again, same = taught(RIVALS["lora"], TrainingFile(tmp_path / "run.pt", "key"))
    assert again == losses
    assert all(torch.equal(same[name], weights[name]) for name in weights)


def test_costs_are_those_of_all_processes(tmp_path: Path) -> None:
    workshop = Workshop(tiny_model(depth=3), tiny_tokenizer())
    lesson = Lesson((), BATCHES, 0)
    with workshop.taught(LoRA(rank=2, passes=2), lesson, file=TrainingFile(tmp_path / "run.pt", "key")) as first:
        kept = torch.load(tmp_path / "run.pt", weights_only=True)
        assert 0 < kept["seconds"] <= first.seconds
    torch.save({**kept, "seconds": 1000.0, "peak": 2**50}, tmp_path / "run.pt")
    with workshop.taught(LoRA(rank=2, passes=2), lesson, file=TrainingFile(tmp_path / "run.pt", "key")) as later:
        assert 1000 < later.seconds < 1100
        assert later.peak_bytes == 2**50
        assert replace(later, seconds=0, peak_bytes=0, model=first.model) == replace(first, seconds=0, peak_bytes=0)
