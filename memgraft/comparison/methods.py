"""The ways to teach that are compared: the memory, its rivals, and the untouched base, each with its settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from memgraft.baselines import OSF, Full, LoRA, Retrieval, SHiRA
from memgraft.config import Config, MemoryConfig
from memgraft.teaching import Recipe


class Base(Config):
    """The untouched base model."""

    method: Literal["base"] = "base"


class Memory(Config):
    """Sparse memory writes."""

    method: Literal["memory"] = "memory"
    recipe: Recipe = Field(default_factory=Recipe, description="how it is taught; its seed is the run's")
    background: str = Field("self-written", description="text that usage is counted on, by name")
    slots: int = Field(2**16, gt=0, description="slots of each value table")
    threshold: float = Field(MemoryConfig.model_fields["threshold"].default, ge=0, description="reads no longer than this add nothing")

    @property
    def passes(self) -> int:
        """Times that every batch is seen."""
        return self.recipe.turns


Method = Annotated[Base | Memory | LoRA | Full | OSF | SHiRA | Retrieval, Field(discriminator="method")]
AnyMethod = Base | Memory | LoRA | Full | OSF | SHiRA | Retrieval
_METHODS: TypeAdapter[AnyMethod] = TypeAdapter(Method)


def settings(method: AnyMethod) -> dict[str, Any]:
    """A method as JSON, defaults included: a run made with other ones is another run."""
    return method.model_dump(mode="json")


def method_of(values: dict[str, Any]) -> AnyMethod:
    """The inverse of `settings`."""
    return _METHODS.validate_python(values)


def family(method: AnyMethod) -> str:
    """The name under which the settings of a method form one front."""
    if isinstance(method, Memory):
        plain = method.recipe.writer.name == "least-interference"
        if plain:
            return {"answers": "memory", "cues": "memory (cues)", "everywhere": "memory (no cues)"}[method.recipe.scope]
        return f"memory ({method.recipe.ranking}, {method.recipe.writer.name})"
    if isinstance(method, Base | Retrieval):
        return method.method
    return method.method + (" + replay" if method.replay else "")


def described(method: AnyMethod) -> str:
    """The settings that set a method apart, in a few words."""
    if isinstance(method, Memory):
        return ", ".join(_described_memory(method))
    if isinstance(method, Retrieval):
        plural = "" if method.passages == 1 else "s"
        return f"{method.passages} {'solved example' if method.form == 'example' else 'passage'}{plural}"
    if isinstance(method, Base):
        return ""
    optimizer = method.optimizer
    parts = [f"{optimizer.name} lr {optimizer.lr:g}", f"{method.passes} passes"]
    if isinstance(method, LoRA):
        parts.insert(0, f"r {method.rank}, α {method.alpha:g}" + ("" if method.targets == "all-linear" else ", attention"))
    if isinstance(method, SHiRA):
        parts.insert(0, f"r {method.rank}")
    if isinstance(method, OSF):
        parts.insert(0, f"{method.preserved:.0%} preserved")
    if method.replay:
        parts.append(f"{method.replay} documents a step")
    return ", ".join(parts)


def _described_memory(method: Memory) -> Iterator[str]:
    """Rows and passes, and what differs from the default recipe; of other writers all that the papers name."""
    recipe, writer, usual = method.recipe, method.recipe.writer, Recipe()
    own = writer.name == usual.writer.name
    if not own or recipe.ranking != usual.ranking or recipe.t != usual.t:
        yield f"{recipe.ranking}, t {recipe.t or 'all'}"
    if not own:
        yield f"{writer.name}, lr {writer.learning_rate:g}"
    elif writer.name == "least-interference" and usual.writer.name == "least-interference":
        if writer.learning_rate != usual.writer.learning_rate:
            yield f"lr {writer.learning_rate:g}"
        if (writer.background_weight, writer.covariance) != (usual.writer.background_weight, usual.writer.covariance):
            yield f"μ {writer.background_weight:g} {writer.covariance}"
        if writer.ridge != usual.writer.ridge:
            yield f"λ {writer.ridge:g}"
        if writer.context_weight != usual.writer.context_weight:
            yield f"γ {writer.context_weight:g}"
        if writer.max_step != usual.writer.max_step:
            yield f"steps of {writer.max_step:g}" if writer.max_step else "steps of any length"
    if recipe.scope != "answers" and (recipe.rows or own):
        yield f"{recipe.rows} rows a fact" if recipe.rows else "every row"
    if recipe.scope != "answers" and recipe.rows and recipe.settling != usual.settling:
        yield f"{recipe.settling} passes to settle"
    if method.background != "self-written":
        yield f"background {method.background}"
    yield f"{recipe.turns} passes"
