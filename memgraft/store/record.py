"""A lesson's record: what was measured when it was learned. It lies outside the lesson's id, and may come from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memgraft.errors import StoreError
from memgraft.store.manifest import first_problem


class _Measured(BaseModel):
    # Strict, as JSON has types; what this version does not know is left to the one that wrote it.
    model_config = ConfigDict(frozen=True, strict=True, extra="allow")


class FactRecord(_Measured):
    """One taught fact, asked before and after the lesson."""

    learned: bool
    name: str = ""
    question: str = ""
    expected: str = ""
    before: str = Field("", description="the base model's answer")
    after: str = Field("", description="the taught model's answer")
    f1: float | None = None
    unseen_wording: bool = Field(False, description="the question is in a wording that was not taught")


class OverlapRecord(_Measured):
    """An earlier lesson that the same texts read."""

    lesson: str = Field(description="its id")
    shared_slots: int | None = Field(description="none where both have anchors, whose rows are their own")
    message: str = ""


class Record(_Measured):
    """All that memgraft itself writes into a record. None of it must be there."""

    batches: int | None = None
    rows: int | None = None
    rows_per_batch: float | None = None
    losses: list[list[float | None]] = Field([], description="pass → loss of each batch, none where it was skipped")
    tokens: int | None = None
    seconds: float | None = None
    batches_per_minute: float | None = None
    taught: dict[str, str | None] = Field({}, description="id of each fact → id of the one that it replaced")
    replaced: dict[str, list[str]] = Field({}, description="id of each fact → ids of those that the one it replaced had replaced by then")
    superseded_nothing: dict[str, str] = Field(
        {}, description="id of each fact → id that it was to replace, of which no active lesson had a fact"
    )
    overlaps: list[OverlapRecord] = []
    cues: list[list[str]] | None = Field(None, description="fact by fact the tokens after which it is read; none: every text reads it")
    ids: list[str | None] = Field([], description="of the facts that have cues, in their order")
    facts: list[FactRecord] = []
    learned: int | None = Field(None, description="how many of the facts")
    gate: list[dict[str, Any]] = Field([], description="what changed in each probe of the gate")


def check_record(record: Mapping[str, Any], where: str, way_out: str) -> None:
    """StoreError, which names the field, where one that is known is of another type."""
    try:
        Record.model_validate(record)
    except ValidationError as error:
        raise StoreError(f"{where}: record: {first_problem(error)}; {way_out}") from error
