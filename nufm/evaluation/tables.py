"""The scores of an evaluation as Markdown tables: on the terminal, in report.md, in a README.

All scores are in per cent but where a unit is given; – is a score that is not defined (0 / 0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nufm.data.prediction import LEAST_TRANSVERSE, QUANTITIES


def percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown table: the first column to the left, numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def points_table(found: Mapping[str, Any]) -> str:
    """Precision, recall, F1 and IoU of voxels: each class, and the means."""
    points, names = found["points"], ("precision", "recall", "f1", "iou")
    rows = [
        [name, *(percent(points[score][c]) for score in names), f"{points['support'][c]:,}"]
        for c, name in enumerate(found["classes"])
    ]
    rows.append(["**macro**", *(f"**{percent(points[f'macro_{score}'])}**" for score in names), ""])
    if not all(points["support"]):
        rows.append(["**macro, classes present**", "", "", f"**{percent(points['macro_f1_present'])}**", "", ""])
    return table(["class", "precision", "recall", "F1", "IoU", "voxels"], rows)


def points_text(found: Mapping[str, Any]) -> str:
    points = found["points"]
    absent = [c for c, n in zip(found["classes"], points["support"], strict=True) if n == 0]
    text = f"Accuracy {percent(points['accuracy'])} %, over {sum(points['support']):,} voxels of known class"
    if points["unclassified"]:
        text += f", {points['unclassified']:,} of them left without a class (counted as wrong)"
    text += "."
    if absent:
        text += (
            f" Not in these events: {', '.join(absent)}. In the macro scores a class that was predicted but never "
            "occurs enters with 0; not in those over the classes present."
        )
    return text + "\n"


def calibration_text(found: Mapping[str, Any]) -> str:
    c = found["calibration"]
    text = (
        f"Of the voxels given a class: confidence {percent(c['mean_confidence'])} % on average, right "
        f"{percent(c['accuracy'])} %; expected "
        f"calibration error {percent(c['expected_error'], 2)} %, largest {percent(c['maximum_error'])} %"
    )
    if c["brier"] is not None:
        text += f"; Brier score {c['brier']:.3f}, negative log likelihood {c['nll']:.3f} nat"
    return text + ".\n"


def panoptic_tables(found: Mapping[str, Any]) -> str:
    """Panoptic quality with both matchings, quality and class of the instances by class, and clustering."""
    p, c = found["panoptic"], found["clusters"]
    quality = ("pq", "rq", "sq", "precision", "recall", "f1")
    rows = [
        [label, *(percent(p[f"{kind}_{score}"]) for score in quality)]
        for label, kind in (("class-aware", "aware"), ("class-agnostic (detection)", "agnostic"))
    ]
    by_class = [
        [
            name,
            f"{p['support'][k]:,}",
            *(percent(p[f"class_{score}"][k]) for score in ("pq", "rq", "sq", "precision", "recall", "f1")),
        ]
        for k, name in enumerate(found["classes"])
        if k != found["stuff"]
    ]
    by_class.append(
        ["**mean**", f"{sum(p['support']):,}", f"**{percent(p['mean_pq'])}**", "", "",
         *(f"**{percent(p[f'macro_{score}'])}**" for score in ("precision", "recall", "f1"))]
    )  # fmt: skip
    regrouped = [
        ["ARI, voxels of true instances", percent(c["ari"]), "what is left unassigned is lost"],
        ["ARI as published", percent(c["ari_published"]), "voxels with a predicted instance only"],
        ["AMI", percent(c["ami"]), "adjusted mutual information"],
        ["purity", percent(c["purity"]), "mean over predicted instances"],
        ["efficiency", percent(c["efficiency"]), "mean over true instances"],
        ["purity, over voxels", percent(c["purity_points"]), ""],
        ["efficiency, over voxels", percent(c["efficiency_points"]), ""],
        ["SBD", percent(c["sbd"]), "symmetric best Dice"],
        ["unassigned voxels", percent(c["unassigned_fraction"]), f"of {c['voxels']:,} voxels of true instances"],
    ]
    parts = [
        table(["matching (IoU ≥ 0.5)", "PQ", "RQ", "SQ", "precision", "recall", "F1"], rows),
        f"{p['true_instances']:,} true and {p['pred_instances']:,} predicted instances; the classes of the matched "
        f"pairs agree in {percent(p['class_accuracy'])} %. With the published evaluator's rule PQ is "
        f"{percent(p['published_pq'])}.\n",
        table(
            ["class", "true instances", "PQ", "RQ", "SQ", "class precision", "class recall", "class F1"], by_class
        ),
        "PQ, RQ, SQ: class-aware matching. Class precision, recall, F1: of the instances that class-agnostic matching "
        "found, the class being the mode over the voxels.\n",
        table(["regrouping, mean over events", "%", ""], regrouped),
    ]
    return "\n".join(parts)


def momentum_table(found: Mapping[str, Any]) -> str:
    rows = [
        [name, f"{m['particles']:,}", f"{100 * m['bias']:+.1f} %", f"{100 * m['resolution']:.1f} %"]
        for name, m in found["momentum"].items()
    ]
    return table(["momentum", "particles", "bias (median)", "resolution (68 % half width)"], rows)


# ---------------------------------------------------------------------- whole events

HEADS = {"visible": "Visible momentum", "jet": "Jet", "lepton": "Lepton", "missing_pt": "Missing p_T"}


def label_table(scores: Mapping[str, Any]) -> str:
    """One-vs-rest AUC, precision and recall of each class of a label, and the means."""
    names = ("auc", "precision", "recall")
    rows = [
        [name, *(percent(scores[score][c]) for score in names), f"{scores['support'][c]:,}"]
        for c, name in enumerate(scores["classes"])
    ]
    means = [f"**{percent(scores[f'macro_{score}'])}**" for score in names]
    rows.append(["**macro**", *means, f"{sum(scores['support']):,}"])
    return table(["class", "AUC, one against the rest", "precision", "recall", "events"], rows)


def matrix_table(scores: Mapping[str, Any]) -> str:
    """Efficiency and purity of every pair of a true and a predicted class."""
    names, (efficiency, purity) = scores["classes"], (scores["efficiency"], scores["purity"])
    rows = [
        [f"true {name}", *(f"{percent(e)} / {percent(p)}" for e, p in zip(efficiency[c], purity[c], strict=True))]
        for c, name in enumerate(names)
    ]
    text = (
        "Efficiency, of the events of a row, and purity, of the events of a column: efficiencies of a row and purities "
        "of a column add up to 100.\n"
    )
    return f"{table(['efficiency / purity', *names], rows)}\n{text}"


def cost_text(cost: Mapping[str, Any]) -> str:
    """Time and memory of one event."""
    if cost["memory_gb"] is not None:
        memory = f"; {_gigabytes(cost['memory_gb'])} ({cost['memory_is']})"
    else:
        memory = f"; memory {cost['memory_is']}" if cost["memory_is"] else ""
    threads = f", {cost['threads']} thread{'s' * (cost['threads'] != 1)}" if cost["threads"] else ""
    low, high = cost["ms_quartiles"]
    return (
        f"One event at a time on {cost['device']}{threads}: {cost['ms']:.3g} ms in the network (quartiles {low:.3g} "
        f"and {high:.3g}, {cost['repeats']} calls), {cost['ms_whole']:.3g} ms with its preparation{memory}. "
        f"{cost['parameters']:,} parameters, {_gigabytes(cost['weights_gb'])} of weights.\n"
    )


def temperature_text(temperature: Mapping[str, float]) -> str:
    """That probabilities were calibrated, label -> T; empty if none was."""
    of = ", ".join(f"{label}: T = {t:.3f}" for label, t in temperature.items())
    return f"Probabilities are calibrated with the temperature that the export keeps ({of})." if of else ""


def _gigabytes(value: float) -> str:
    return f"{value:.2f} GB" if value >= 1 else f"{1e3 * value:.3g} MB"


def label_text(scores: Mapping[str, Any]) -> str:
    c = scores["calibration"]
    return (
        f"The most probable class is right in {percent(scores['accuracy'])} % of the events (macro-F1 "
        f"{percent(scores['macro_f1'])} %), at a mean probability of {percent(c['mean_confidence'])} % (expected "
        f"calibration error {percent(c['expected_error'])} %).\n"
    )


def quantity_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Residuals of the size of a momentum, all events and each true flavour."""
    return table(
        ["true flavour", "events", "median", "IQR", "fractional median", "σ_MAD"],
        [
            [
                name, f"{r['count']:,}", *(rounded(r[k], 1, sign=k == "median") for k in ("median", "iqr")),
                rounded(r["fractional_median"], 3, sign=True), rounded(r["sigma_mad"], 3),
            ]
            for name, r in rows.items()
        ],
    )  # fmt: skip


def vertex_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    return table(
        ["true flavour", "events", "mean", "median", "68 %", "95 %", "IQR x", "IQR y", "IQR z"],
        [
            [
                name, f"{r['count']:,}", *(rounded(r[k], 0) for k in ("mean", "median", "q68", "q95")),
                *(rounded(r["axes"][a]["iqr"], 0) for a in "xyz"),
            ]
            for name, r in rows.items()
        ],
    )  # fmt: skip


def rounded(value: float | None, digits: int, sign: bool = False) -> str:
    return "–" if value is None else f"{value:{'+' if sign else ''},.{digits}f}"


def event_sections(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Heading and text of everything that was scored of whole events."""
    maps = found.get("inputs") == "images"
    parts = [
        (label.capitalize(), f"{label_table(s)}\n{label_text(s)}" + (f"\n{matrix_table(s)}" if maps else ""))
        for label, s in found["labels"].items()
    ]
    for name, rows in found["quantities"].items():
        what, unit = QUANTITIES[name]
        which = "; events that have one" if name == "lepton" else ""
        text = f"Size of the {what}, in {unit}{which}.\n\n{quantity_table(rows)}"
        if name == "missing_pt":
            text += (
                f"\nFractional median and σ_MAD are of the {rows['all']['fractional_count']:,} events with a true "
                f"value above {LEAST_TRANSVERSE} GeV/c: below is the Fermi motion of the nucleon that was hit, the "
                "only missing p_T of νµ CC and νe CC in which nothing decays into neutrinos.\n"
            )
        parts.append((HEADS[name], text))
    if found["quantities"]:
        note = (
            "Residuals are reconstructed minus true; σ_MAD = 1.4826 · median|r - median r|, r = residual / true, of "
            f"events with more than 0.1 GeV/c (missing p_T: {LEAST_TRANSVERSE} GeV/c).\n"
        )
        parts[-1] = (parts[-1][0], f"{parts[-1][1]}\n{note}")
    if "vertex" in found:
        text = "Distance from the true vertex, and spread of the residuals on each axis, in mm.\n"
        parts.append(("Vertex", f"{text}\n{vertex_table(found['vertex'])}"))
    if "cost" in found:
        parts.append(("Cost of an event", cost_text(found["cost"])))
    return parts


def sections(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Heading and text of everything that was scored."""
    if found["kind"] == "event":
        return event_sections(found)
    parts = []
    if "panoptic" in found:
        parts.append(("Instances", panoptic_tables(found)))
    if "momentum" in found:
        parts.append(("Momentum", momentum_table(found)))
    parts.append(("Voxels", f"{points_table(found)}\n{points_text(found)}"))
    parts.append(("Calibration", calibration_text(found)))
    return parts


def title(found: Mapping[str, Any]) -> str:
    origin = ", simulated by nufm" if found.get("simulated") else ""
    return f"{found['task']}: {found['events']:,} events{origin}"


def summary(found: Mapping[str, Any]) -> str:
    """All tables, for the terminal."""
    return "\n\n".join([f"# {title(found)}", *(f"## {head}\n\n{text}" for head, text in sections(found))])
