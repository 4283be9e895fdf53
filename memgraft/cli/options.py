"""Arguments and options that several commands share, and how their texts are read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from memgraft.cli.console import remark
from memgraft.errors import MemgraftError, StoreError

if TYPE_CHECKING:
    from memgraft.grafted import GraftedModel
    from memgraft.store import MemoryStore

DtypeName = Literal["auto", "bfloat16", "float16", "float32"]

Store = Annotated[Path, typer.Argument(metavar="STORE", help="Memory store: the folder that `memgraft graft` made.", show_default=False)]
Lesson = Annotated[str, typer.Argument(metavar="ID", help="Id of a lesson, or its first characters; see `log`.", show_default=False)]
MOST_SEED = 2**63 - 1  # what torch takes
NONE = "none"  # what says on the command line that a setting has no value; one that is not given is the recipe's
POINT = "a tag, a lesson's id (right after it was learned), start or now"
RetaughtData = Annotated[
    list[Path],
    typer.Option("--data", metavar="FILE", help="With re-teach: data of a lesson whose data the store did not keep. May be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]
BaseModel = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="Where the base model is now, if not where it was.", show_default=False)
]
Dtype = Annotated[DtypeName | None, typer.Option("--dtype", help="Of the base model's weights.", show_default="as when the store was made")]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="Where the model runs: cpu, cuda, cuda:1, mps.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the base model.")]


def parse_count(text: str) -> int:
    """A whole number above 0, as digits or as a power: 65536, 65_536, 2^16. typer.BadParameter for anything else."""
    power = re.fullmatch(r"([0-9]{1,4})(?:\^|\*\*)([0-9]{1,2})", text)
    if power:
        count: int = int(power[1]) ** int(power[2])
    elif re.fullmatch(r"[0-9]+(_[0-9]+)*", text) and len(text) < 30:
        count = int(text)
    else:
        count = 0
    if not 0 < count < 2**62:
        raise typer.BadParameter(f"expected a whole number above 0 such as 65536 or 2^16, got {text!r}")
    return count


def parse_limit(text: str) -> str:
    """A count in digits, or none. typer.BadParameter for anything else."""
    if text == NONE:
        return text
    try:
        return str(parse_count(text))
    except typer.BadParameter as error:
        raise typer.BadParameter(f"expected a whole number above 0, or {NONE}, got {text!r}") from error


def parse_tolerance(text: str) -> float:
    """How much worse something may get, a finite number from 0. typer.BadParameter for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise typer.BadParameter(f"expected a number from 0, got {text!r}")
    return value


def parse_layers(text: str) -> tuple[int, ...] | None:
    """Layers such as 10 or 5,10; None for auto. typer.BadParameter for anything else."""
    if text == "auto":
        return None
    if not re.fullmatch(r"[0-9]{1,6}(,[0-9]{1,6})*", text):
        raise typer.BadParameter(f"expected auto or layers counted from 0 such as 10 or 5,10, got {text!r}", param_hint="'--layers'")
    return tuple(int(layer) for layer in text.split(","))


@contextmanager
def settings_of(what: str, kind: type[MemgraftError]) -> Iterator[None]:
    """Within, settings that a configuration refuses become an error of one line that begins with `what`."""
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        from memgraft.config import first_refusal

        raise kind(f"{what}: {first_refusal(error)}") from error


def load_grafted(store: Path, *, model: str | None, dtype: DtypeName | None, device: str, trust_remote_code: bool) -> GraftedModel:
    """The grafted model of a store, ready to run."""
    from memgraft.models import slow_in_16_bits
    from memgraft.persistence import load

    grafted = load(store, model=model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    if dtype is None and grafted.base.dtype.itemsize == 2 and slow_in_16_bits(grafted.base.device):
        remark(
            f"{store} was made in {str(grafted.base.dtype).removeprefix('torch.')}, in which this CPU is slow; --dtype float32 is faster"
        )
    return grafted


@contextmanager
def writing(grafted: GraftedModel, store: Path) -> Iterator[MemoryStore]:
    """Keeps other writers out of the store that a model was loaded from. StoreError where it has changed since."""
    own = grafted.history.store
    assert own is not None
    with own.lock():
        if not grafted.history.current():
            raise StoreError(f"{store}: another process changed the store just now; nothing was changed: try again")
        yield own
