"""Pictures of scores and of training (matplotlib)."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

DPI = 150
INK, FAINT, GREY = "#222222", "#e4e4e4", "#9a9a9a"
# Okabe and Ito, as in nufm.display.colours; what is pretrained has the strongest colour.
BARS = ("#b8b8b8", "#56b4e9", "#d55e00", "#009e73", "#cc79a7", "#0072b2")
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

# Panels of the training picture: title, words in the column names, whether the values are fractions of 1.
CURVES: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("loss", ("loss", "mask", "roll", "local"), False),
    ("Chamfer distance", ("chamfer", "chamfer_constant"), False),
    ("energy infilling (mean squared error)", ("energy",), False),
    ("is a hidden voxel hit", ("occupancy_cal3d", "occupancy_ahcal", "occupancy_constant_cal3d"), False),
    ("area under the ROC curve of that", ("occupancy_auc_cal3d",), True),
    ("charge of hidden voxels", ("charge_cal3d", "charge_ahcal", "charge_constant_cal3d"), False),
    ("what a visible hit is", ("ghost", "hierarchy", "category"), False),
    ("teacher entropy (nat)", ("teacher_entropy",), False),
    ("KL(teacher || student) (nat)", ("kl",), False),
    ("feature spread", ("feature_std",), True),
    ("prototypes in use", ("prototype_use",), True),
    ("gradient norm", ("gradient_norm",), False),
    ("learning rate", ("learning_rate",), False),
    ("macro-F1 of the online probe", ("macro_f1",), True),
)


def score_bars(report: Mapping, path: str | Path) -> Path:
    """Bars of a probe table: macro-F1 in per cent, then F1 of each class; a dot is one seed.

    Error bars are standard deviations over the seeds (n - 1), and absent for a single seed.

    Args:
        report: as ``report.json``: ``task``, ``classes``, ``simulated`` and
            ``scores``: row -> {``label``, ``per_seed``: [{``macro_f1``, ``f1``: [...]}]}.
        path: PNG to write.

    Raises:
        ValueError: a row without scores, or with another number of classes.
    """
    from matplotlib.figure import Figure

    classes, rows = list(report.get("classes", ())), list(report["scores"].items())
    groups = ["macro-F1", *classes]
    above = 0.5 + 0.26 * max(len(rows), 3)  # inches for the title and a line of the legend for each row
    height = 3.6 + above
    figure = Figure(figsize=(1.5 * len(groups) + 3.2, height), dpi=DPI, facecolor="white")
    ax = figure.add_axes((0.075, 0.5 / height, 0.905, 3.1 / height))
    width = 0.8 / max(len(rows), 1)
    for i, (key, row) in enumerate(rows):
        if not row["per_seed"]:
            raise ValueError(f"report: row '{key}' has no scores")
        table = np.array([[s["macro_f1"], *s.get("f1", ())] for s in row["per_seed"]], dtype=np.float64)
        if table.shape[1] != len(groups):
            raise ValueError(
                f"report: row '{key}' has {table.shape[1] - 1} class scores, expected {len(classes)}"
            )
        table *= 100
        x = np.arange(len(groups)) + (i - (len(rows) - 1) / 2) * width
        mean = table.mean(0)
        spread = table.std(0, ddof=1) if len(table) > 1 else None
        label = f"{row['label']}:  {mean[0]:.1f}" + (f" ± {spread[0]:.1f}" if spread is not None else "")
        ax.bar(x, mean, 0.92 * width, color=BARS[i % len(BARS)], label=label, zorder=2)
        if spread is not None:
            style = {"fmt": "none", "ecolor": INK, "elinewidth": 1.3, "capsize": 3, "zorder": 4}
            ax.errorbar(x, mean, spread, **style)
        offsets = np.linspace(-0.22, 0.22, len(table)) * width if len(table) > 1 else [0.0]
        for seed, offset in zip(table, offsets, strict=True):
            ax.scatter(x + offset, seed, s=9, color="white", edgecolors=INK, linewidths=0.6, zorder=3)
        for group, value in enumerate(mean):
            if np.isfinite(value):
                top = value + (spread[group] if spread is not None else 0) + 1.2
                ax.text(x[group], top, f"{value:.0f}", ha="center", va="bottom", fontsize=9, color=INK)
    ax.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    ax.set_xticks(range(len(groups)), groups, fontsize=12)
    ax.get_xticklabels()[0].set_fontweight("bold")
    ax.set_xlim(-0.5, len(groups) - 0.5)
    ax.set_ylim(0, 108)
    ax.set_yticks(range(0, 101, 20))
    ax.set_ylabel("F1 (%)", fontsize=12, color=INK)
    ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=1, fontsize=11, frameon=False)
    plain_axes(ax)
    note = "   (simulated by nufm)" if report.get("simulated") else ""
    figure.text(
        0.5, 1 - 0.27 / height, f"{report.get('task', 'probe')}{note}", ha="center", fontsize=13, fontweight="bold"
    )
    return save(figure, path)


def training_curves(metrics_csv: str | Path, path: str | Path, title: str = "") -> Path:
    """How a pretraining went, from its metrics.csv: a panel for each kind of quantity that was logged.

    A long series is drawn pale, with its moving average over it.

    Args:
        metrics_csv: as Lightning's CSVLogger writes it: a column ``step``, empty fields where nothing was
            logged.
        path: PNG to write.
        title: first line of the picture.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no ``step`` column, or a field that is not a number.
    """
    from matplotlib.figure import Figure

    series = read_metrics(metrics_csv)
    panels = [(name, found, unit) for name, words, unit in CURVES if (found := _columns(series, words))]
    columns = min(max(len(panels), 1), 3)
    rows = max(-(-len(panels) // columns), 1)
    figure = Figure(
        figsize=(4.6 * columns + 0.3, 3.1 * rows + 0.7), dpi=DPI, facecolor="white", layout="constrained"
    )
    figure.suptitle(title or "training", fontsize=14, fontweight="bold", color=INK)
    if not panels:
        figure.text(0.5, 0.45, "nothing was logged", ha="center", fontsize=16, color="#777777")
        return save(figure, path)
    for index, (name, found, unit) in enumerate(panels):
        ax = figure.add_subplot(rows, columns, index + 1)
        for colour, (column, (step, value)) in zip(LINES * 3, found.items(), strict=False):
            smooth = _moving_average(value, max(len(value) // 50, 1))
            if len(value) > 60:
                ax.plot(step, value, color=colour, alpha=0.25, linewidth=0.7)
            mark = "o" if len(value) < 40 else None
            ax.plot(
                step, smooth, color=colour, linewidth=1.8, marker=mark, markersize=3.5, label=_short(column)
            )
        ax.set_title(name, fontsize=12, color=INK)
        ax.set_xlabel("step", fontsize=10.5, color=INK)
        values = np.concatenate([v for _, v in found.values()])
        if not unit and values.min() > 0 and values.max() > 300 * np.median(values):
            ax.set_yscale("log")  # one wild step, often the first, must not flatten all others
        if unit:
            ax.set_ylim(0, max(1.0, max(float(np.nanmax(v)) for _, v in found.values())) * 1.03)
        if len(found) > 1:
            ax.legend(fontsize=9, frameon=False)
        plain_axes(ax)
    return save(figure, path)


def read_metrics(metrics_csv: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Logged quantities: name -> (steps, values), both float64 (n,); what was not a finite number is left
    out.

    Raises:
        FileNotFoundError, ValueError: as ``training_curves``.
    """
    metrics_csv = Path(metrics_csv)
    points: dict[str, list[tuple[float, float]]] = {}
    with metrics_csv.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if "step" not in (reader.fieldnames or ()):
            raise ValueError(
                f"{metrics_csv}: no column 'step', found {reader.fieldnames}; is it a metrics.csv?"
            )
        for row in reader:
            for name, text in row.items():
                if name in ("step", "epoch", None) or text in ("", None):
                    continue
                try:
                    step, value = float(row["step"]), float(text)
                except (TypeError, ValueError) as error:
                    where = f"{metrics_csv}, line {reader.line_num}, column '{name}'"
                    raise ValueError(f"{where}: {error}; the file is damaged") from error
                if math.isfinite(value):
                    points.setdefault(name, []).append((step, value))
    return {name: tuple(np.array(p).T) for name, p in points.items()}


def _columns(series: Mapping[str, tuple], words: Sequence[str]) -> dict[str, tuple]:
    """Series whose last name part is one of ``words`` or ends with ``_word``; epoch means are left to the
    steps."""
    found = {}
    for name, value in series.items():
        last = _last(name)
        compound = [
            w
            for w in words
            if last == w or (last.endswith("_" + w) and "_" not in last.removesuffix("_" + w))
        ]
        if compound and not (name.endswith("_epoch") and name.removesuffix("_epoch") + "_step" in series):
            found[name] = value
    return found


def _last(name: str) -> str:
    return name.split("/")[-1].removesuffix("_step").removesuffix("_epoch")


def _short(name: str) -> str:
    """Legend entry: ``train/mask_kl`` -> ``mask``; ``probe/macro_f1`` and ``train/loss`` as they are."""
    last = _last(name)
    for ending in ("_teacher_entropy", "_kl", "_prototype_use"):
        last = last.removesuffix(ending)
    if "_constant" in last:
        return "one prediction for all"
    return {"loss": "total"}.get(last, last) + (", val" if name.startswith("val/") else "")


def _moving_average(value: np.ndarray, width: int) -> np.ndarray:
    """Centred mean over ``width`` values, over fewer at the ends."""
    if width < 2:
        return value
    total = np.concatenate([[0.0], np.cumsum(value)])
    index = np.arange(len(value))
    low, high = np.maximum(index - width // 2, 0), np.minimum(index + width // 2 + 1, len(value))
    return (total[high] - total[low]) / (high - low)


def plain_axes(ax) -> None:
    """Horizontal lines only, no frame."""
    ax.grid(axis="y", color=FAINT, linewidth=0.7, zorder=0)
    ax.set_axisbelow(True)
    ax.tick_params(colors=INK)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def save(figure, path: str | Path) -> Path:
    """Write a figure; folders are made as needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return path
