"""Reports: one self-contained HTML page about a lesson. Needs the extra `report` (jinja2, matplotlib), imported on use."""

from memgraft.report.page import CommitFacts, KeyFigure, LessonPage, LossPass, OutcomePoint, ProbeRow, QuestionRow, loss_passes
from memgraft.report.render import lesson_html, render_lesson_page

__all__ = [
    "CommitFacts",
    "KeyFigure",
    "LessonPage",
    "LossPass",
    "OutcomePoint",
    "ProbeRow",
    "QuestionRow",
    "lesson_html",
    "loss_passes",
    "render_lesson_page",
]
