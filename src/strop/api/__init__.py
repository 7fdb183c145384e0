"""The commands as Python functions: what `cli` prints and what a notebook calls are the same objects.

This is the one place that wires recipe, data, model, training and evaluation together, a module for each part of a
run's life: `preparing` and `planning` before it, `training`, `evaluating`, `answering`, `exporting` and `reporting`
after it, and `diagnosing` whenever something seems wrong.
"""

from strop.api.answering import chat, chat_with_endpoint, held_out_question
from strop.api.diagnosing import Finding, doctor
from strop.api.evaluating import evaluate
from strop.api.exporting import export
from strop.api.planning import plan
from strop.api.preparing import DEFAULT_MODEL, Prepared, check, prepare, starter_recipe
from strop.api.reporting import report, watch
from strop.api.run import Run
from strop.api.serving import serve
from strop.api.training import train

__all__ = [
    "DEFAULT_MODEL",
    "Finding",
    "Prepared",
    "Run",
    "chat",
    "chat_with_endpoint",
    "check",
    "doctor",
    "evaluate",
    "export",
    "held_out_question",
    "plan",
    "prepare",
    "report",
    "serve",
    "starter_recipe",
    "train",
    "watch",
]
