"""Scores as torchmetrics Metrics, exact over batch sizes and ranks: sums first, division last."""

from nufm.metrics.calibration import Calibration
from nufm.metrics.certainty import CertaintyAUC
from nufm.metrics.clustering import ClusterScores, cluster_scores
from nufm.metrics.confusion import ConfusionScores
from nufm.metrics.one_vs_rest import OneVsRest, roc_auc
from nufm.metrics.panoptic import PanopticScores
from nufm.metrics.residuals import Distances, Residuals

__all__ = [
    "Calibration",
    "CertaintyAUC",
    "ClusterScores",
    "ConfusionScores",
    "Distances",
    "OneVsRest",
    "PanopticScores",
    "Residuals",
    "cluster_scores",
    "roc_auc",
]
