"""What sparse memory writes are compared with: other ways to teach a model, on the same batches of tokens."""

from memgraft.baselines.lora import LoraRun, train_lora

__all__ = ["LoraRun", "train_lora"]
