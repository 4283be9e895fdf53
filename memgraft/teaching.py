"""The teaching loop: batches in, changed rows out.

One batch is one fact (its wordings) or one chunk of a document, and one optimizer step. All below the layer that is taught is
frozen and computed once (`memgraft.entering`); each step runs the layers above, takes the gradient at the read, and lets a writer change
rows: those of the anchors that were read, or of memory layers the slots that rank best against background usage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from memgraft.anchoring import find_anchors
from memgraft.attention import quick_attention
from memgraft.blocks import can_start_at
from memgraft.commits import Rows, sum_rows
from memgraft.config import ANSWERS, Config
from memgraft.covariance import BackgroundReads, background_reads
from memgraft.encoding import TokenBatch
from memgraft.entering import FrozenPrefix, all_entered, frozen, parts_of, round_key
from memgraft.errors import TeachingError
from memgraft.finding import Found, find_cues
from memgraft.grafted import GraftedModel
from memgraft.memory import Tables, ValueTable
from memgraft.progress import Keeper, Progress
from memgraft.pruning import difference, keep_largest, pruned_to, rounded
from memgraft.ranking import Ranking, choose, score
from memgraft.reads import Recorder, recording
from memgraft.usage import Usage, count_accesses
from memgraft.writers import LeastInterference, Moments, Writer, address_matrix, row_changes

EXPLODED = 3.0  # times the first loss, or that of guessing
AT_ANCHORS, IN_LAYERS = 6, 10  # passes, where a recipe leaves them open: of facts that are read at anchors, and of all else


class Recipe(Config):
    """Everything that shapes what a lesson writes, beside the data."""

    ranking: Ranking = Field("tfidf", description="rule that scores the slots that a batch reads")
    t: int | None = Field(1000, gt=0, description="slots per table that may change in a step; none: every slot with a positive score")
    writer: Writer = Field(default_factory=LeastInterference, description="rule that changes the chosen rows")
    passes: int | None = Field(
        None,
        gt=0,
        description=f"times that each batch is taught, at most; none: {AT_ANCHORS} for facts that are read at anchors, else {IN_LAYERS}",
    )
    rows: int | None = Field(
        84, gt=0, description="rows that a lesson of memory layers keeps per batch, on average; none: all. Anchors keep theirs"
    )
    settling: int = Field(4, ge=0, description="passes, the last ones, that change only the rows that are kept")
    pruning: int = Field(3, gt=0, description="steps, one a pass, in which the rows that may change fall to that number by the same factor")
    until_loss: float | None = Field(None, gt=0, description="skip a batch in later passes once its loss is at most this")
    row_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="what the changed rows are rounded to at the lesson's end; bfloat16 halves what rows take in its file"
    )
    loss: Literal["answer", "all"] = Field("answer", description="tokens that carry the loss; with all, facts have no cues")
    wordings: int = Field(4, gt=0, description="wordings a fact in each pass; every pass has its own")
    lower_case: float = Field(0.25, ge=0, le=1, description="share of a fact's questions that are asked in lower case")
    micro_batch_tokens: int = Field(8192, gt=0, description="padded tokens computed at once; more are accumulated")
    cache_bytes: int = Field(2**31, ge=0, description="memory for the frozen hidden states kept over passes")
    scope: Literal["answers", "cues", "everywhere"] = Field(
        "answers",
        description="where the lesson is read: after the cues of its facts, where each has some, and of what follows only where an answer "
        "to them begins or goes on; all after their cues; or everywhere",
    )
    seed: int = Field(0, description="order of batches, wordings and the random ranking")

    def resolved(self, at_anchors: bool) -> Recipe:
        """With a number of passes: its own, or what fits a lesson that is read at anchors or not."""
        usual = AT_ANCHORS if at_anchors and self.scope == "answers" else IN_LAYERS
        return self if self.passes is not None else self.model_copy(update={"passes": usual})

    @property
    def turns(self) -> int:
        """The number of passes; where it is left open, that of facts which are read at anchors."""
        return AT_ANCHORS if self.passes is None else self.passes


@dataclass
class Lesson:
    """What teaching did, before it is a commit."""

    changes: dict[str, Rows]  # table → what was added to its rows
    losses: list[list[float]]  # pass → loss of each batch, in data order; NaN where it was skipped
    batch_slots: dict[str, list[Tensor]] = field(default_factory=dict)  # table → for each batch, the slots it wrote
    cues: Found | None = None  # after which its rows are read; None: every text reads them


@dataclass(frozen=True)
class Step:
    """Progress: one batch taught."""

    name: str
    done: int
    total: int
    loss: float


def target_logits(model: GraftedModel, targets: Tensor, **inputs: Tensor) -> Tensor:
    """Logits (M, vocabulary) that predict the M tokens marked in targets (B, T), row by row.

    Only these positions go through the language-model head: with a large vocabulary it is the dearest layer.
    """
    predicting = F.pad(targets[:, 1:], (0, 1))  # position t-1 predicts the token at t

    def select(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][predicting][None], *args[1:])

    handle = model.base.get_output_embeddings().register_forward_pre_hook(select)
    try:
        logits: Tensor = model.base(**inputs, use_cache=False).logits
    finally:
        handle.remove()
    return logits[0]


def read_gradients(
    model: GraftedModel, batch: TokenBatch, key: int, recipe: Recipe, prefix: FrozenPrefix | None, scope: int | None = None
) -> tuple[float, Recorder]:
    """Mean loss over the batch's target tokens and the recorded reads with its gradient, micro-batches accumulated.

    Args:
        scope: number of the lesson whose reads are recorded; None: those of the rows that every text reads.
    """
    recorder = Recorder()
    total = int(batch.targets.sum())
    loss_sum = 0.0
    for number, (ids, mask, targets, writable) in enumerate(parts_of(batch, recipe.micro_batch_tokens, model.device)):
        with ExitStack() as stack:
            stack.enter_context(quick_attention(model.base, ids.shape[1]))
            if prefix is not None:
                stack.enter_context(prefix.starting(prefix.entered((key, number), ids, mask)))
            stack.enter_context(recording(model, recorder, writable, mask & ~writable, scope))
            logits = target_logits(model, targets, input_ids=ids, attention_mask=mask)
            loss = F.cross_entropy(logits.float(), ids[targets], reduction="sum") / total
            loss.backward()
        loss_sum += loss.item()
    return loss_sum, recorder


def write(
    model: GraftedModel,
    recorder: Recorder,
    recipe: Recipe,
    usage: Mapping[str, Usage],
    moments: dict[str, Moments],
    seed: int,
    kept: Mapping[str, Tensor] | None = None,
    reads: Mapping[str, BackgroundReads] | None = None,
    tables: Tables | None = None,
    loss: float | None = None,
) -> dict[str, Tensor]:
    """One optimizer step: choose slots per table, of those in `kept` where given, and change their rows. Returns the slots written.

    The rows are those of `tables`, or where there are none those that every text reads. Only the background reads the latter as well:
    its covariance is that of `reads`, or where there are none its diagonal, the load of each slot.

    A slot read only where no gradient arrives, such as at the last token of a sequence, is never chosen, whatever its score. Rows of
    anchors are chosen all: nothing else reads them, and what they may promise is bounded by `loss`, the batch's mean.
    """
    written = {}
    for name in tables or model.tables:
        address, gradient = recorder.of_table(model, name)
        if name == ANSWERS:
            assert tables is not None
            chosen = address.slots[(gradient != 0).any(-1)].unique()
            matrix = address_matrix(address, chosen)
            nothing = torch.zeros(len(chosen)).to(gradient.device)  # the background reads no anchor
            change = row_changes(recipe.writer, matrix, gradient, chosen, nothing, moments[name], loss=loss)
            written[name] = _change(tables.table(name), name, chosen, change).cpu()
            continue
        slots, counts = count_accesses(address.slots.cpu())
        scores = score(recipe.ranking, slots, counts, usage[name], model.config.slots, seed)
        influential = (gradient != 0).any(-1)  # (T,)
        scores[~torch.isin(slots, address.slots[influential].cpu().unique())] = 0
        if kept is not None:
            scores[~torch.isin(slots, kept[name])] = 0
        chosen = choose(slots, scores, recipe.t)
        covariance = torch.zeros(len(chosen)) if tables is not None else usage[name].load_of(chosen, model.config.slots)
        if reads and len(chosen):
            covariance = _raised(reads[name].covariance_of(chosen), covariance)
        on_device = chosen.to(gradient.device)
        matrix = address_matrix(address, on_device)
        context = address_matrix(recorder.context_of(name), on_device)
        change = row_changes(recipe.writer, matrix, gradient, chosen, covariance.to(gradient.device), moments[name], context)
        _change((tables or model.tables).table(name), name, on_device, change)
        written[name] = chosen
    return written


def _change(table: ValueTable, name: str, slots: Tensor, change: Tensor) -> Tensor:
    """Adds a change to the rows of these slots, and returns the slots. TeachingError where they would not be finite."""
    rows = table.allocate(slots)
    values = table.values[rows] + change
    if not bool(torch.isfinite(values).all()):
        raise TeachingError(f"rows of table {name} would not be finite; nothing was written; try a lower learning rate")
    table.values[rows] = values
    return slots


def _raised(covariance: Tensor, load: Tensor) -> Tensor:
    """The covariance with its diagonal at least the load, which counts earlier lessons as well."""
    covariance.diagonal().copy_(torch.maximum(covariance.diagonal(), load))
    return covariance


def teach(
    model: GraftedModel,
    batches: Sequence[TokenBatch],
    recipe: Recipe,
    usage: Mapping[str, Usage] | Sequence[Mapping[str, Usage]] | None = None,
    *,
    keeper: Keeper | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Lesson:
    """Teach batches, in an order shuffled by the seed in each pass, and return the row changes.

    Args:
        usage: per table, what the ranking and the writer take as used, for all batches or for each; the model's background usage by
            default. A lesson with cues takes the background's alone.
        keeper: saves the lesson's progress, and where it finds one goes on from there; the outcome has the same bits.

    On return the memory holds the taught rows, those of a lesson with cues in a scope of its own. If anything stops the lesson (Ctrl-C,
    a loss that is not finite), it holds what it held before.

    Raises:
        TeachingError: no batches, a loss or gradient that is not finite, or a lesson that would write no row.
    """
    if not batches:
        raise TeachingError("nothing to teach: the lesson has no batches")
    if not model.enabled:
        raise TeachingError("the memory is off, so that nothing can be written: teach outside `without_memory()`")
    if torch.is_inference_mode_enabled():
        raise TeachingError("torch's inference mode keeps no gradients: teach outside `torch.inference_mode()`")
    recipe = recipe.resolved(at_anchors=model.answers is not None)
    usage = model.usage if usage is None else usage
    usages = [usage] * len(batches) if isinstance(usage, Mapping) else list(usage)
    if recipe.ranking == "tfidf" and not any(used.batches for usage in usages for used in usage.values()):
        raise TeachingError(
            "the ranking tfidf would choose no slot: the memory's background usage is empty; graft with a background, or use the ranking tf"
        )
    before = model.state()
    try:
        with frozen(model), ExitStack() as stack:
            cues = None if recipe.scope == "everywhere" else find_cues(model, batches)
            scope = None if cues is None else model.add_scope(cues.cues)
            if scope is None:
                stack.enter_context(model.without_threshold())
            else:
                usages = [model.usage] * len(batches)  # the slots of earlier lessons are no matter: nobody else reads these rows
            writer = recipe.writer
            spares = isinstance(writer, LeastInterference) and writer.covariance == "full" and writer.background_weight > 0
            reads = background_reads(model) if spares and scope is None else {}
            # Once for all batches where none is long: to choose an implementation takes as long as to compute a layer.
            stack.enter_context(quick_attention(model.base, max(batch.input_ids.shape[1] for batch in batches)))
            with torch.enable_grad():
                lesson = _teach(model, batches, recipe, usages, reads, scope, keeper, on_step)
            return replace(lesson, cues=cues and Found(model.scope(len(model.scoped) - 1).cues.to(torch.device("cpu")), cues.tokens))
    except BaseException:
        model.assign(before)
        raise


def _teach(
    model: GraftedModel,
    batches: Sequence[TokenBatch],
    recipe: Recipe,
    usages: Sequence[Mapping[str, Usage]],
    reads: Mapping[str, BackgroundReads],
    scope: int | None,
    keeper: Keeper | None,
    on_step: Callable[[Step], None] | None,
) -> Lesson:
    generator = torch.Generator().manual_seed(recipe.seed)
    answers = model.answers if scope is not None and recipe.scope == "answers" else None
    layer = model.config.layers[0] if answers is None or model.config.answer_layer is None else model.config.answer_layer
    # What is kept of the rest would never be read again; the states of answers are read twice, to find their anchors and to teach.
    taught_again = answers is not None or any(len(batch.rounds) < recipe.turns for batch in batches)
    budget = recipe.cache_bytes if taught_again else 0
    prefix = FrozenPrefix(model, layer, budget) if can_start_at(model.base, model.blocks, layer) else None
    if answers is not None and scope is not None:
        states = prefix or FrozenPrefix(model, layer, 0)
        seen = all_entered(model, batches, states, recipe.turns, recipe.micro_batch_tokens)
        model.anchor(scope, replace(model.scope(scope).cues, anchors=find_anchors(answers, seen)))
        recipe = recipe.model_copy(update={"rows": None})  # every anchor keeps its row
    own = None if scope is None else model.scope(scope).tables
    tables = own or model.tables
    before = tables.rows()
    cues = None if scope is None else model.scope(scope).cues.to(torch.device("cpu"))
    progress = (keeper and keeper.found(cues)) or Progress.start(len(batches), list(tables), cues)
    if progress.rows is not None:
        tables.assign(progress.rows)
    settled_from = recipe.turns if recipe.rows is None else max(1, recipe.turns - recipe.settling)
    pruned_from = max(1, settled_from - recipe.pruning + 1)
    for turn in range(progress.turn, recipe.turns):
        kept, since = None, 0
        if recipe.rows is not None and turn >= pruned_from:
            since = min(turn, settled_from)  # what was taken back may have raised the losses of before
            if turn <= settled_from and not (progress.turn == turn and progress.place):
                keep_largest(tables, before, pruned_to(tables, before, recipe.rows * len(batches), settled_from - turn + 1))
            kept = {name: difference(rows, before[name]).slots for name, rows in tables.rows().items()}
        for index in progress.begin(turn, generator, len(batches)):
            progress.place += 1
            if recipe.until_loss is not None and progress.last_loss(index, since) <= recipe.until_loss:
                continue
            batch = batches[index].round(turn)
            key = round_key(index, turn, batches)
            loss, recorder = read_gradients(model, batch, key, recipe, prefix, scope)
            check_loss(loss, progress.first_loss, model.base.config.get_text_config().vocab_size, batch.name, turn)
            progress.add_loss(index, loss)
            seed = recipe.seed + index
            for name, slots in write(model, recorder, recipe, usages[index], progress.moments, seed, kept, reads, own, loss).items():
                progress.batch_slots[name][index] = torch.cat([progress.batch_slots[name][index], slots]).unique()
            if keeper:
                keeper.keep(progress, tables.rows)
            if on_step:
                on_step(Step(batch.name, turn * len(batches) + progress.place, recipe.turns * len(batches), loss))
        settles_later = turn < settled_from < recipe.turns
        highest = max(progress.last_loss(index, since) for index in range(len(batches)))
        if recipe.until_loss is not None and not settles_later and highest <= recipe.until_loss:
            break
    if recipe.rows is not None:
        keep_largest(tables, before, recipe.rows * len(batches))
    changes = {name: rounded(difference(rows, before[name]), recipe.row_dtype) for name, rows in tables.rows().items()}
    if not any(len(change) for change in changes.values()):
        raise TeachingError(
            "no row was written: no slot that the lesson reads has both a gradient and a positive score under the ranking "
            f"{recipe.ranking} (slots of earlier lessons count as used), or the steps are too small; use the ranking tf, "
            "a higher learning rate, or a memory with more slots"
        )
    if recipe.row_dtype != "float32":
        tables.assign({name: sum_rows([before[name], change], change.width) for name, change in changes.items()})
    written = {name: [slots[torch.isin(slots, changes[name].slots)] for slots in parts] for name, parts in progress.batch_slots.items()}
    return Lesson(changes, progress.losses, written)


def check_loss(loss: float, first: float | None, vocabulary: int, name: str, turn: int) -> None:
    """TeachingError for a loss that is not finite, or that exploded.

    Exploded is beyond three times the lesson's first loss and three times that of guessing, log(vocabulary), whichever is more.
    """
    limit = EXPLODED * max(math.log(vocabulary), first or 0.0)
    if not math.isfinite(loss) or (first is not None and loss > limit):
        what = f"exploded to {loss:.3g}" if math.isfinite(loss) else f"is {loss}"
        raise TeachingError(f"{name}: the loss {what} in pass {turn + 1}; nothing was written; try a lower learning rate")
