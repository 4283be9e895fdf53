"""What every rival that trains has in common: its optimizer, its passes, its replay, and how it is taught."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from pydantic import Field
from transformers import PreTrainedModel

from memgraft.baselines.optimizers import Optimizer
from memgraft.baselines.progress import TrainingFile
from memgraft.baselines.replay import replay_documents
from memgraft.baselines.training import train
from memgraft.config import Config
from memgraft.encoding import TokenBatch
from memgraft.errors import TeachingError


@dataclass(frozen=True)
class Trained:
    """A taught model, ready to be measured."""

    model: PreTrainedModel  # in the base's dtype
    losses: tuple[float, ...]  # mean NLL of a batch's targets before each step, in the order of the steps
    bytes: int  # of the weights that were trained, in the dtype in which they are measured


class Rival(Config):
    """A way to teach by training. Subclasses say which weights are trained."""

    optimizer: Optimizer
    passes: int = Field(4, gt=0, description="times that every batch is seen")
    replay: int = Field(0, ge=0, description="background documents learned again in each step")

    @abstractmethod
    def prepared(self, base: PreTrainedModel, seed: int) -> AbstractContextManager[PreTrainedModel]:
        """Within, a model in which exactly the weights to train ask for gradients; afterwards the base is bit for bit as before."""

    def finished(self, model: PreTrainedModel) -> PreTrainedModel:
        """The trained model with what was learned in its weights, where it holds them apart and that is slow."""
        return model

    def so_far(self, model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
        """A model in the middle of being taught as it would be, were this the end: where that is in another dtype, a finished copy."""
        return model if model.dtype == dtype else _in(dtype, self.finished(copy.deepcopy(model)))

    @contextmanager
    def taught(
        self,
        base: PreTrainedModel,
        batches: Sequence[TokenBatch],
        *,
        seed: int = 0,
        background: Sequence[Sequence[int]] = (),
        in_order: bool = False,
        on_step: Callable[[PreTrainedModel, int, int], None] | None = None,
        file: TrainingFile | None = None,
    ) -> Iterator[Trained]:
        """Within, the taught model. Equal arguments give equal runs; the global random state is left as it was.

        Args:
            seed: of new weights and of the order of the batches.
            background: token ids of the documents that are replayed.
            in_order: a stream: each batch has all its passes before the next one comes.
            on_step: called after each step with the model in training (see `so_far`), the steps done and the steps in all.
            file: where a training that was stopped goes on.

        Raises:
            TeachingError: nothing to teach, no layer that can be trained so, or a loss that is not finite. DataError: an unreadable file.
                The base is as before, also after Ctrl-C.
        """
        replay = replay_documents(background, self.replay, seed) if self.replay else None
        with self.prepared(base, seed) as model:
            size = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
            if not size:
                raise TeachingError(f"{type(self).__name__} takes no layer of a {base.config.model_type} model: compare other methods")

            def stepped(done: int, total: int, loss: float) -> None:
                if on_step is not None:
                    on_step(model, done, total)

            # Mixed precision as is common: fp32 weights over a bf16 base compute in bf16.
            autocast = torch.bfloat16 if base.dtype == torch.bfloat16 and model.dtype == torch.float32 else None
            losses = train(
                model,
                batches,
                self.optimizer,
                passes=self.passes,
                seed=seed,
                in_order=in_order,
                replay=replay,
                autocast=autocast,
                on_step=stepped,
                file=file,
            )
            taught = self.finished(model)
            if taught.dtype != base.dtype:
                size = size * base.dtype.itemsize // taught.dtype.itemsize  # what was trained is kept in the base's dtype
                taught = _in(base.dtype, taught)
            yield Trained(taught, losses, size)


def _in(dtype: torch.dtype, model: PreTrainedModel) -> PreTrainedModel:
    torch.nn.Module.to(model, dtype)  # transformers wraps .to() in a decorator that loses its type
    return model
