"""Tables of the token probes: raw inputs, the same encoder untrained, pretrained, on the same tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from nufm.checkpoint import untrained_twin
from nufm.methods.linear_probe import EventChoice
from nufm.methods.token_probe import MAX_TOKENS, raw_token_features, token_features, token_tables
from nufm.methods.token_truth import TokenFeatures
from nufm.models.tokens import Tokenizer, Tokens

if TYPE_CHECKING:
    from torch import nn

    from nufm.data.datamodule import PointDataModule
    from nufm.data.event import PointBatch

ROWS = {
    "raw": "raw inputs (energy, neighbour counts)",
    "untrained": "same encoder, untrained",
    "pretrained": "same encoder, pretrained",
}


def token_probe_tables(
    encoder: nn.Module,
    data: PointDataModule,
    fit: EventChoice,
    score: EventChoice,
    probes: Sequence[str],
    seeds: Sequence[int] = (0, 1, 2),
    *,
    tokenizer: Tokenizer | None = None,
    max_tokens: int = MAX_TOKENS,
    shuffle: int | None = None,
    compare: Sequence[str] = ("raw", "untrained"),
) -> dict[str, dict]:
    """Scores of the encoder's features of tokens, and of those it is compared with, in every token probe.

    Args:
        encoder, data, fit, score, shuffle, compare: as for :func:`nufm.report.probe_tables`.
        probes: some of :data:`nufm.methods.token_probe.PROBES`.
        seeds: of the untrained encoders; the probes themselves draw nothing.
        tokenizer: makes the tokens; None = the encoder's own, balls of 5 voxels if it has none.
        max_tokens: see :func:`nufm.methods.token_probe.token_tables`.

    Returns:
        probe -> table, as ``token_markdown`` and ``print_token_table`` take it.

    Raises:
        ValueError: as :func:`nufm.methods.token_probe.token_tables`.
    """
    if tokenizer is None:
        tokenizer = getattr(encoder, "tokenizer", None) or Tokenizer.preset("5")
    rows: dict[str, list[TokenFeatures]] = {}
    if "raw" in compare:
        rows["raw"] = [raw_token_features]
    if "untrained" in compare:
        rows["untrained"] = [token_features(untrained_twin(encoder, seed), tokenizer) for seed in seeds]
    rows["pretrained"] = [token_features(encoder, tokenizer)]
    console, start = Console(stderr=True), time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("token probes: tokens", total=2 * max_tokens)

        def counted(batch: PointBatch, tokens: Tokens) -> torch.Tensor:
            progress.advance(task, len(tokens))
            return last(batch, tokens)

        last, rows["pretrained"] = rows["pretrained"][0], [counted]
        tables = token_tables(
            rows, tokenizer, data, fit, score, probes=probes, shuffle=shuffle, max_tokens=max_tokens,
            device=next(encoder.parameters()).device,
        )  # fmt: skip
    if not console.is_terminal:
        console.print(f"token probes: {time.perf_counter() - start:.0f} s")
    for table in tables.values():
        for row, found in table["scores"].items():
            found["label"] = ROWS[row]
    return tables


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _token_cells(table: dict) -> list[list[str]]:
    """Rows of a token table in per cent: label, then the metrics, the first of them with its deviation."""
    cells = []
    for row in table["scores"].values():
        values = [percent(row["mean"][name]) for name in table["metrics"]]
        deviation = row["std"][next(iter(table["metrics"]))]
        if deviation is not None:
            values[0] += f" ± {100 * deviation:.1f}"
        cells.append([row["label"], *values])
    if table["baseline"]:
        cells.append([table["baseline"]["label"], *(percent(table["baseline"][name]) for name in table["metrics"])])
    return cells


def _of_tokens(table: dict) -> str:
    """Of how many tokens a table is, what there is among them, and what is missing."""
    tokens, events = table["tokens"], table["events"]
    origin = ", simulated by nufm" if table.get("simulated") else ""
    counts = ", ".join(f"{n:,} {name}" for name, n in table["counts"].items())
    return " ".join(
        [
            f"Fitted on {tokens['train']:,} tokens of {events['train']} events, scored on {tokens['test']:,} of "
            f"{events['test']} others{origin}{f' ({counts})' if counts else ''}.",
            *(f"{note[0].upper()}{note[1:]}." for note in table["notes"]),
        ]
    )


def token_markdown(table: dict) -> str:
    """A table of :func:`token_probe_tables` as report.md shows it, in per cent, and what the numbers are."""
    lines = [["features", *table["metrics"].values()], ["---", *["---:"] * len(table["metrics"])]]
    shown = [*lines, *_token_cells(table)] if table["scores"] else []
    return "".join(f"| {' | '.join(cells)} |\n" for cells in shown) + f"\n{_of_tokens(table)}\n"


def print_token_table(table: dict, console: Console) -> None:
    if table["scores"]:
        shown = Table(title=table["task"] + (" (simulated by nufm)" if table.get("simulated") else ""))
        shown.add_column("features")
        for name in table["metrics"].values():
            shown.add_column(name, justify="right")
        for cells in _token_cells(table):
            shown.add_row(*cells)
        console.print(shown)
    for note in table["notes"]:
        console.print(f"{table['task']}: {note}.")
