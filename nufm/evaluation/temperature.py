"""Calibration of a classifier of pixel maps by one number, the temperature (Guo et al., ICML 2017, arXiv 1706.04599).

The probabilities softmax(z / T) of logits z have the order of those of T = 1: no decision and no accuracy changes, only
how sure the model says it is; T > 1 makes it less sure. T is fitted on validation events, by the mean negative log
likelihood, and judged on others. (The T = 5 of the first-token rule of arXiv 2509.08461, §2, multiplies where this one
divides, and is not fitted to anything.)

Shape legend: n events, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nufm.checkpoint import Pretrained
from nufm.data.images import ImageEvent
from nufm.evaluation.class_scores import classified_label, kept_temperature_of, scores_of, true_classes
from nufm.evaluation.event_scores import check_events, plain
from nufm.evaluation.scores import batches
from nufm.evaluation.tables import percent, table
from nufm.metrics import Calibration

LEAST, MOST = 0.01, 100.0  # of T: where every event is right, the likelihood only grows as T falls
RESAMPLES = 200  # bootstrap
BINS = 15


@dataclass(frozen=True)
class Fit:
    """A fitted temperature.

    Attributes:
        temperature: T.
        nll: mean negative log likelihood of the events of the fit with it, in nat.
        nll_before: with T = 1.
        events: with a known class, of the fit.
        bounded: T is at the end of the allowed range: the events do not fix it.
    """

    temperature: float
    nll: float
    nll_before: float
    events: int
    bounded: bool


def fit_temperature(logits: Tensor, target: Tensor) -> Fit:
    """The T that makes the mean of -log softmax(z / T)[true class] smallest, by LBFGS on log T.

    Args:
        logits: float (n, K), or log-probabilities, which differ from them by a constant of each event.
        target: int64 (n,) true classes, -1 unknown.

    Raises:
        ValueError: no event of known class, shapes that do not fit, or a logit that is not finite.
    """
    if logits.dim() != 2 or target.shape != logits.shape[:1]:
        raise ValueError(
            f"temperature: logits are {tuple(logits.shape)} for targets {tuple(target.shape)}, expected (n, K) and (n,)"
        )
    known = target >= 0
    z, truth = logits[known].detach().cpu().double(), target[known].cpu()
    if len(z) == 0:
        raise ValueError(
            f"temperature: none of the {len(target)} events has a known class; fit it on validation events with truth"
        )
    if not bool(z.isfinite().all()):
        raise ValueError(
            f"temperature: {int((~z.isfinite()).sum())} logits are not finite, expected numbers; look at the model"
        )
    z = z - z.max(1, keepdim=True).values

    def nll(log_t: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(z * torch.exp(-log_t), truth)

    low, high = math.log(LEAST), math.log(MOST)
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-12,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        # Beyond the bounds the loss is that of the bound and grows from there, so that the search comes back.
        inside = log_t.clamp(low, high)
        loss = nll(inside) + (log_t - inside).square()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        found = log_t.clamp(low, high)
        best, before = float(nll(found)), float(nll(torch.zeros_like(found)))
    temperature = float(found.exp())
    bounded = temperature < 1.01 * LEAST or temperature > 0.99 * MOST
    return Fit(temperature, best, before, len(z), bounded)


@torch.no_grad()
def event_logits(
    pretrained: Pretrained, events: Sequence[ImageEvent], batch_size: int = 16, progress: bool = True
) -> tuple[Tensor, Tensor]:
    """Logits float32 (n, K) of the model's first label, whatever temperature its export keeps, and int64 (n,) true
    classes, -1 unknown.

    Raises:
        ValueError: no events, no truth, or a model that does not classify pixel maps.
    """
    check_events(pretrained, events)
    label, model = classified_label(pretrained), pretrained.model
    device, logits, truth = next(model.parameters()).device, [], []
    for some in batches(events, batch_size, progress):
        logits.append(model(pretrained.batch(some).to(device))[label].float().cpu())
        truth.append(torch.from_numpy(true_classes(some, label)))
    return torch.cat(logits), torch.cat(truth)


def calibration_study(
    pretrained: Pretrained,
    fitted_on: Sequence[ImageEvent],
    judged_on: Sequence[ImageEvent],
    *,
    batch_size: int = 16,
    progress: bool = True,
) -> dict[str, Any]:
    """Calibration of a model as it is and with a fitted temperature.

    Args:
        pretrained: a classifier of pixel maps.
        fitted_on: events that the temperature is fitted on, such as validation events.
        judged_on: other events.
        batch_size: events at a time.
        progress: show a bar on the terminal.

    Returns:
        ``label``, ``classes``, ``events``, ``support``, ``fit`` (the fields of :class:`Fit`),
        ``temperature`` (label -> T that the export kept before the study, which neither side has), and ``before`` and
        ``after``: scores of the events that it is judged on, ``expected_error``, its bootstrap error
        ``expected_error_error``, ``maximum_error``, ``nll``, ``brier``, ``accuracy``, ``mean_confidence``,
        ``macro_auc`` and the bins of a reliability diagram; ``nll_change`` with its error (paired bootstrap).

    Raises:
        ValueError: events without a known class, or a model that does not classify pixel maps.
    """
    fit = fit_temperature(*event_logits(pretrained, fitted_on, batch_size, progress))
    logits, target = event_logits(pretrained, judged_on, batch_size, progress)
    known = target >= 0
    if not bool(known.any()):
        raise ValueError(
            f"{judged_on[0].name}: none of the {len(target)} events has a known class; use events with truth"
        )
    z, truth = logits[known].double(), target[known]
    label = classified_label(pretrained)
    sides = {"before": z.softmax(1), "after": (z / fit.temperature).softmax(1)}
    found = {side: _judged(p.float(), truth) for side, p in sides.items()}
    per_event = {side: -p.gather(1, truth[:, None])[:, 0].clamp(min=1e-12).log().numpy() for side, p in sides.items()}
    moved = per_event["after"] - per_event["before"]
    classes = list(pretrained.classes[label])
    return plain(
        {
            "label": label,
            "classes": classes,
            "events": len(truth),
            "support": torch.bincount(truth, minlength=len(classes)),
            "fit": vars(fit),
            "temperature": kept_temperature_of(pretrained),
            **found,
            "nll_change": float(moved.mean()),
            "nll_change_error": float(moved.std(ddof=1) / math.sqrt(len(moved))) if len(moved) > 1 else None,
        }
    )


def _judged(probability: Tensor, truth: Tensor) -> dict[str, Any]:
    p = probability.clamp(0, 1)
    sure, chosen = p.max(1)
    right = chosen == truth
    whole = _calibration(sure, right, p, truth)
    rng, n = np.random.default_rng(0), len(truth)
    drawn = []
    for _ in range(RESAMPLES):
        some = torch.from_numpy(rng.integers(0, n, n))
        drawn.append(float(_calibration(sure[some], right[some])["expected_error"]))
    scores = scores_of(p.numpy(), truth.numpy())
    return {
        **whole,
        "expected_error_error": float(np.std(drawn)),
        **{name: scores[name] for name in ("macro_auc", "accuracy_error")},
    }


def _calibration(sure: Tensor, right: Tensor, p: Tensor | None = None, truth: Tensor | None = None) -> dict[str, Any]:
    metric = Calibration(BINS)
    metric.update(sure, right, p, truth)
    return metric.compute()


def markdown(found: dict[str, Any]) -> str:
    """Before and after as a table, and where the temperature comes from."""
    rows = []
    for side, words in (("before", "T = 1"), ("after", f"T = {found['fit']['temperature']:.3f}")):
        s = found[side]
        rows.append(
            [
                words, f"{percent(s['expected_error'])} ± {percent(s['expected_error_error'])}",
                percent(s["maximum_error"]), f"{s['nll']:.3f}", f"{s['brier']:.3f}", percent(s["mean_confidence"]),
                percent(s["accuracy"]), percent(s["macro_auc"]),
            ]
        )  # fmt: skip
    head = ["", "ECE", "worst bin", "NLL", "Brier", "sure", "accuracy", "macro AUC"]
    fit, origin = found["fit"], ", simulated by nufm" if found.get("simulated") else ""
    text = (
        f"Temperature fitted on {fit['events']:,} validation events (NLL {fit['nll_before']:.3f} → {fit['nll']:.3f}), "
        f"judged on {found['events']:,} others{origin}. In per cent, NLL in nat; ECE, expected calibration error, with "
        f"{BINS} bins of confidence and a bootstrap over events; sure: mean confidence. "
    )
    if found["nll_change_error"] is not None:
        text += f"NLL changes by {found['nll_change']:+.4f} ± {found['nll_change_error']:.4f} (the same events). "
    text += "No decision changes, hence no accuracy; the AUC may, since it compares events. "
    for label, kept in (found.get("temperature") or {}).items():
        text += f"The export had T = {kept:.3f} for {label} before; both rows are of the logits without it. "
    if "kept_in" in found:
        text += "The temperature is kept in the export: what it predicts from now on is calibrated with it. "
    if fit["bounded"]:
        text += (
            f"The temperature is at the end of its range, {LEAST:g} … {MOST:g}: the validation events do not fix it. "
        )
    return f"{table(head, rows)}\n{text.strip()}\n"
