"""Scores as torchmetrics Metrics, exact over batch sizes and ranks: sums first, division last."""

from nufm.metrics.calibration import Calibration
from nufm.metrics.clustering import ClusterScores, cluster_scores
from nufm.metrics.confusion import ConfusionScores
from nufm.metrics.panoptic import PanopticScores

__all__ = ["Calibration", "ClusterScores", "ConfusionScores", "PanopticScores", "cluster_scores"]
