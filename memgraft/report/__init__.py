"""Reports: one self-contained HTML page about a lesson or a comparison. Needs the extra `report` (jinja2, matplotlib), imported on use."""

from memgraft.report.comparison import ComparisonPage, comparison_page
from memgraft.report.page import CommitFacts, KeyFigure, LessonPage, LossPass, OutcomePoint, ProbeRow, QuestionRow, loss_passes
from memgraft.report.render import check_extra, comparison_html, lesson_html, render_comparison, render_lesson_page

__all__ = [
    "CommitFacts",
    "ComparisonPage",
    "KeyFigure",
    "LessonPage",
    "LossPass",
    "OutcomePoint",
    "ProbeRow",
    "QuestionRow",
    "check_extra",
    "comparison_html",
    "comparison_page",
    "lesson_html",
    "loss_passes",
    "render_comparison",
    "render_lesson_page",
]
