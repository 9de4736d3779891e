"""Scores of a trained model on labelled events, and the report that shows them."""

from nufm.evaluation.report import write_evaluation
from nufm.evaluation.scores import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate", "write_evaluation"]
