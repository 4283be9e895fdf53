"""What sparse memory writes are compared with: other ways to teach a model, on the same batches of tokens."""

from memgraft.baselines.full import Full
from memgraft.baselines.lora import LoRA
from memgraft.baselines.optimizers import SGD, AdamW
from memgraft.baselines.osf import OSF
from memgraft.baselines.retrieval import Retrieval
from memgraft.baselines.rival import Rival, Trained
from memgraft.baselines.shira import SHiRA

__all__ = ["OSF", "SGD", "AdamW", "Full", "LoRA", "Retrieval", "Rival", "SHiRA", "Trained"]
