"""Tables, targets and picture of benchmarks/ops.py, all made of the rows of one run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from measure import about_machine, exponent, short, state, table

FORWARD, BOTH = "forward", "forward + backward"
# The two cores on which the published encoder, through a patched CPU build, takes 0.20 s for the genuine event.
REFERENCE_FLOP_PER_S, REFERENCE_SECONDS = 184e9, 0.20
SECTIONS = ("encoder", "Panda stages", "UResNet levels", "FASERCal patches")


def measured(rows: Iterable[dict], **wanted: object) -> list[dict]:
    """The measured rows that agree with ``wanted``."""
    return [r for r in rows if "ms" in r and all(r[key] == value for key, value in wanted.items())]


def series(rows: list[dict]) -> dict[tuple[str, str, str], list[dict]]:
    """(case, pass, backend) -> rows of the growth series by rising N."""
    found: dict[tuple[str, str, str], list[dict]] = {}
    for row in sorted(measured(rows, section="growth"), key=lambda r: r["points"]):
        found.setdefault((row["case"], row["pass"], row["backend"]), []).append(row)
    return found


def exponents(rows: list[dict], cost: str) -> tuple[float | None, float | None]:
    """Exponent of ``cost`` over the whole series, and over its last decade; None for fewer than two sizes."""
    rows = [r for r in rows if r[cost] > 0]
    last = [r for r in rows if r["points"] * 10 >= rows[-1]["points"]]
    fits = [
        exponent([r["points"] for r in part], [r[cost] for r in part]) if len(part) > 1 else None
        for part in (rows, last)
    ]
    return fits[0], fits[1]


def targets(report: dict) -> list[list[str]]:
    """Rows (where, what, at least, found, state) of the targets that this script can measure."""
    rows, machine = report["rows"], report["machine"]
    on_gpu = machine["device"] != "CPU"
    encoder = {r["pass"]: r for r in measured(rows, section="encoder", backend="auto")}
    lines = []

    def add(where: str, what: str, limit: float, value: float | None, unit: str, at_most: bool = True) -> None:
        bound = f"{'≤' if at_most else '≥'} {short(limit)} {unit}".strip()
        found = "–" if value is None else f"{short(value)} {unit}".strip()
        lines.append([where, what, bound, found, state(value, limit, at_most)])

    on_cpu = {} if on_gpu else encoder
    seconds = {name: row["ms"] / 1e3 for name, row in on_cpu.items()}
    scaled = f"Panda's encoder, genuine event, forward (0.20 s at {REFERENCE_FLOP_PER_S / 1e9:.0f} GFLOP/s"
    limit = REFERENCE_SECONDS
    if FORWARD in on_cpu:
        rate = on_cpu[FORWARD]["matrix_flop_per_s"]
        scaled += f", scaled to the {rate / 1e9:.0f} measured beside it"
        limit *= REFERENCE_FLOP_PER_S / rate
    scaled += ")"
    add("CPU", scaled, limit, seconds.get(FORWARD), "s")
    ratio = seconds[BOTH] / seconds[FORWARD] if len(seconds) == 2 else None
    add("CPU", "the same, forward and backward over forward", 3.0, ratio, "")
    sizes = {r["size"] for r in measured(rows, section="growth")}
    whole = bool(sizes) and min(sizes) <= 1_000 and max(sizes) >= 1_000_000
    for cost, word in (("ms", "time"), ("peak_bytes", "memory")):
        fits = {key: exponents(part, cost)[0] for key, part in series(rows).items()}
        fits = {key: fit for key, fit in fits.items() if fit is not None}
        worst = max(fits, key=fits.get, default=None) if whole and not on_gpu else None
        largest = f"; largest: {worst[0]}, {worst[1]}" if worst else ""
        add("CPU", f"exponent of {word}, 1 k to 1 M voxels, every op{largest}", 1.1, fits[worst] if worst else None, "")
        if worst:
            late = {key: exponents(part, cost)[1] for key, part in series(rows).items()}
            steepest = max(late, key=late.get)
            lines[-1][3] += f" (over the last factor of ten: {short(late[steepest])}, {steepest[0]}, {steepest[1]})"

    convs = [r for r in measured(rows, section="Panda stages", op="sparse_conv") if r["pass"] == BOTH]
    ratios = [r["faster_than"]["spconv"] for r in convs if r["backend"] == "triton" and "spconv" in r["faster_than"]]
    half = on_gpu and machine["dtype"] in ("bfloat16", "float16")
    what = (
        "submanifold 3³, forward + backward, 48 events, against spconv in float16 (it has no bfloat16): "
        "the least of Panda's stages"
    )
    add("GPU", what, 1.5, min(ratios) if ratios and half else None, "×", at_most=False)
    rows_of = {r["backend"]: r for r in measured(rows, section="encoder") if r["pass"] == BOTH and on_gpu}
    both = "auto" in rows_of and "classic" in rows_of
    speed = rows_of["auto"]["faster_than"]["classic"] if both else None
    add("GPU", "Panda's encoder, forward + backward, against spconv + flash-attn", 1.3, speed, "×", at_most=False)
    memory = rows_of["auto"]["peak_bytes"] / rows_of["classic"]["peak_bytes"] if both else None
    add("GPU", "the same, peak memory over that of spconv + flash-attn", 1.0, memory, "")
    return lines


def markdown(report: dict) -> str:
    """The report as tables."""
    rows, machine = report["rows"], report["machine"]
    lines = [
        "# Ops",
        "",
        f"{about_machine(report)} {report['events'].capitalize()} (simulated by nufm). "
        "Made by `python benchmarks/ops.py`.",
        "",
        "Times: median (quartiles) of repeats that take turns between the backends; a single one where a call takes "
        "more than ten seconds. Memory: largest sum of torch's allocations during a call, above what was held before. "
        "Kernel maps, windows and pooling lists are there before the clock starts, except for the encoder; making "
        "them has rows of its own under *Growth*.",
        "",
        "## Targets",
        "",
        *table(("where", "what", "at least", "found", "state"), targets(report)),
    ]
    for section in SECTIONS:
        chosen = measured(rows, section=section)
        if chosen:
            lines += ["", f"## {section}", "", *table(HEAD, [cells(r, machine) for r in chosen])]
    grown = series(rows)
    if grown:
        lines += ["", "## Growth", "", "Exponent p of cost ~ N^p, over all sizes (over the last factor of ten).", ""]
        sizes = sorted({r["size"] for r in measured(rows, section="growth")})
        shown = [n for n in sizes if n in (1_000, 10_000, 100_000, 1_000_000)] or sizes
        head = ["op", "pass", "backend", *(f"ms at {n:,}" for n in shown), "exponent"]
        head += [f"MB at {sizes[-1]:,}", "exponent"]
        lines += table(head, [growth_cells(key, part, shown, sizes[-1]) for key, part in grown.items()])
    skipped: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        if "not_measured" in row:
            skipped.setdefault((row["backend"], row["not_measured"]), set()).add(row["op"])
    if skipped or report["errors"]:
        lines += ["", "## Not measured", ""]
        lines += [f"- a case that ended with {error}" for error in report["errors"]]
        lines += [f"- {backend} ({', '.join(sorted(ops))}): {why}" for (backend, why), ops in sorted(skipped.items())]
    return "\n".join(lines) + "\n"


HEAD = ("case", "N", "pass", "backend", "ms", "GFLOP/s (of matrix rate)", "GB/s (of copy)", "peak MB", "faster than")


def cells(row: dict, machine: dict) -> list[str]:
    low, high = row["ms_quartiles"]
    rate, traffic = row["flop_per_s"], row.get("bytes_per_s", 0.0)
    return [
        row["case"],
        f"{row['points']:,}",
        row["pass"],
        row["backend"],
        f"{short(row['ms'])} ({short(low)}–{short(high)})",
        f"{short(rate / 1e9)} ({rate / machine['flop_per_s']:.0%})" if rate else "–",
        f"{short(traffic / 1e9)} ({traffic / machine['bytes_per_s']:.0%})" if traffic else "–",
        short(row["peak_bytes"] / 1e6),
        ", ".join(f"{other} {short(ratio)}×" for other, ratio in row["faster_than"].items()) or "–",
    ]


def growth_cells(key: tuple[str, str, str], rows: list[dict], shown: list[int], largest: int) -> list[str]:
    at = {r["size"]: r for r in rows}

    def text(cost: str) -> str:
        whole, last = exponents(rows, cost)
        return "–" if whole is None else f"{whole:.2f}" + ("" if last is None else f" ({last:.2f})")

    return [
        *key,
        *(short(at[n]["ms"]) if n in at else "–" for n in shown),
        text("ms"),
        short(at[largest]["peak_bytes"] / 1e6) if largest in at else "–",
        text("peak_bytes"),
    ]


def draw(report: dict, path: Path) -> None:
    """Time and peak memory against N for every op, log–log, with lines of exponent 1."""
    grown = series(report["rows"])
    if not grown:
        return
    names = list(dict.fromkeys(case for case, _, _ in grown))
    backends = list(dict.fromkeys(backend for _, _, backend in grown))
    styles = dict(zip(backends, ("-", "--", ":", "-.", (0, (1, 4))), strict=False))
    colours = dict(zip(names, plt.colormaps["tab20"].colors, strict=False))
    figure, axes = plt.subplots(2, 2, figsize=(13, 10), sharex=True, constrained_layout=True)
    for column, (cost, factor, label) in enumerate((("ms", 1, "time (ms)"), ("peak_bytes", 1e-6, "peak memory (MB)"))):
        for line, name in enumerate((FORWARD, BOTH)):
            ax = axes[line, column]
            for (case, which, backend), rows in grown.items():
                points = [(r["points"], r[cost] * factor) for r in rows if r[cost] > 0]
                if which == name and points:
                    ax.plot(*zip(*points, strict=True), styles[backend], color=colours[case], marker="o", ms=3)
            ax.set(xscale="log", yscale="log", title=name, ylabel=label)
            low, high = ax.get_xlim()
            bottom, top = ax.get_ylim()
            scale = (bottom * top) ** 0.5 / (low * high) ** 0.5
            for shift in (1e-2, 1, 1e2):
                ax.plot([low, high], [shift * scale * low, shift * scale * high], color="0.85", lw=1, zorder=0)
            ax.set(xlim=(low, high), ylim=(bottom, top))
            if line:
                ax.set_xlabel("voxels (grey: exponent 1)")
    handles = [plt.Line2D([], [], color=colours[n], marker="o", ms=3, label=n) for n in names]
    handles += [plt.Line2D([], [], color="0.3", ls=styles[b], label=b) for b in backends]
    figure.legend(handles=handles, loc="outside right center", fontsize=8, frameon=False)
    figure.suptitle(f"{report['hardware']}, {report['machine']['dtype']}; events simulated by nufm")
    figure.savefig(path, dpi=90)
    plt.close(figure)
