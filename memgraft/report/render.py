"""A lesson's page as one self-contained HTML file: no network, no scripts, plots inline, all text escaped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from memgraft import __version__
from memgraft.errors import MemgraftError
from memgraft.report.comparison import ComparisonPage
from memgraft.report.markdown import comparison_markdown
from memgraft.report.page import LessonPage

if TYPE_CHECKING:
    from jinja2 import Environment


def render_lesson_page(data: LessonPage, path: str | os.PathLike[str]) -> Path:
    """Write a lesson's page, to a temporary name first. Equal data writes equal bytes.

    Returns:
        The path written.

    Raises:
        MemgraftError: the `report` extra is missing, or the file can't be written.
    """
    return _write(lesson_html(data), Path(path))


def render_comparison(data: ComparisonPage, folder: str | os.PathLike[str]) -> Path:
    """Write a comparison as report.html with its twins report.md and report.json. Returns the path of the first. Raises as above."""
    target = Path(folder)
    page = _write(comparison_html(data), target / "report.html")
    _write(comparison_markdown(data), target / "report.md")
    _write(data.model_dump_json(indent=1) + "\n", target / "report.json")
    return page


def _write(text: str, target: Path) -> Path:
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(text.encode("utf-8", errors="replace"))  # a lone surrogate becomes a question mark
        partial.replace(target)
    except OSError as error:
        raise MemgraftError(f"{target}: can't write the report: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # below a file, where nothing was written
            partial.unlink(missing_ok=True)
    return target


def lesson_html(data: LessonPage) -> str:
    """A lesson's page as HTML. Raises MemgraftError if the `report` extra is missing."""
    with _extra():
        from markupsafe import Markup

        from memgraft.report.plots import loss_plot, outcome_plot

        template = _environment().get_template("lesson.html")
        plots = {
            "loss": Markup(loss_plot(data.passes)) if data.passes else None,
            "outcome": Markup(outcome_plot(data.points, data.nll_tolerance)) if data.points else None,
        }
    return template.render(page=data, plots=plots, version=__version__)


def comparison_html(data: ComparisonPage) -> str:
    """A comparison as HTML. Raises MemgraftError if the `report` extra is missing."""
    with _extra():
        from markupsafe import Markup

        from memgraft.report.plots import comparison_plot

        template = _environment().get_template("comparison.html")
        plot = Markup(comparison_plot(data.points, f"{data.measure} ({data.unit})", data.reach))
    return template.render(page=data, plot=plot, version=__version__)


def check_extra() -> None:
    """MemgraftError if the `report` extra is missing: to be asked before what takes hours."""
    with _extra():
        import jinja2  # noqa: F401
        import matplotlib as mpl  # noqa: F401


@contextmanager
def _extra() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MemgraftError(f"reports need {error.name}: pip install 'memgraft[report]'") from error


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("memgraft.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters.update(number=_number, signed=_signed, size=_size, duration=_duration, interval=_interval)
    return environment


def _number(value: float) -> str:
    """Four significant digits, thousands grouped, a true minus sign."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text.replace("-", "−")


def _signed(value: float) -> str:
    """Always with a sign, four decimals; what rounds to zero has none."""
    text = f"{value:+.4f}"
    return "0" if float(text) == 0 else text.replace("-", "−")


def _size(count: int) -> str:
    """Bytes in the unit that people read."""
    value = float(count)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def _duration(seconds: float) -> str:
    """Seconds, or minutes and seconds."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def _interval(value: float, low: float | None, high: float | None) -> str:
    """A value with its interval in brackets."""
    text = f"{value:.4f}" + ("" if low is None or high is None else f" [{low:.4f}, {high:.4f}]")
    return text.replace("-", "−")
