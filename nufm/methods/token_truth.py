"""Tokens of labelled events: their features, and what is true of them.

Shape legend: T tokens, N points, C feature width, K classes, V creation points, Q pairs of tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nufm.data.datamodule import PointDataModule
from nufm.data.detector import load_detector
from nufm.data.event import MOTIF_NAMES, Event, PointBatch
from nufm.data.loader import BatchLoader
from nufm.data.tokens import coordinates_from
from nufm.data.transforms import NormalizeCoord
from nufm.models.tokens import Tokenizer, Tokens

TokenFeatures = Callable[[PointBatch, Tokens], Tensor]

SVM_CLASSES = 4  # of the motifs; low-energy deposits, the last, are no target
NEAR = 5.0  # radii: closer centres are a near pair
PAIRS = 128  # of each kind (one particle, two) from an event at most


@dataclass(frozen=True, eq=False)
class TokenTruth:
    """What is true of T tokens of labelled events.

    Attributes:
        event: int64 (T,) number of the event among those taken.
        centre: float64 (T, 3) centres in radii.
        present: bool (T, 4) classes among the points; a token of low-energy deposits alone has none.
        share: float64 (T, 5) share of the labelled points that is of each class; 0 without labelled points.
        particle: int64 (T,) particle that most points belong to; -1 where most belong to none.
        vertex: bool (T,) a particle was created inside the ball; None where the files do not say.
        n_events: how many events were taken; those after the last token of a full set are not among them.
        n_vertices: creation points of particles in them.
    """

    event: np.ndarray
    centre: np.ndarray
    present: np.ndarray
    share: np.ndarray
    particle: np.ndarray
    vertex: np.ndarray | None
    n_events: int
    n_vertices: int = 0

    def __len__(self) -> int:
        return len(self.event)


def token_classes(motif: Tensor, tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """``present`` (T, 4) and ``share`` (T, 5) of :class:`TokenTruth`.

    Args:
        motif: int64 (N,) class of each point, -1 = ignore.
        tokens: of the same batch.
    """
    label = motif[tokens.members]
    known = label >= 0
    cell = tokens.segments.index[known] * len(MOTIF_NAMES) + label[known]
    count = torch.bincount(cell, minlength=len(tokens) * len(MOTIF_NAMES)).view(len(tokens), len(MOTIF_NAMES)).double()
    share = count / count.sum(1, keepdim=True).clamp(min=1)
    return (count[:, :SVM_CLASSES] > 0).cpu().numpy(), share.cpu().numpy()


def dominant_particle(particle: Tensor, tokens: Tokens) -> np.ndarray:
    """int64 (T,) particle of most points of each token, the lowest id of several; "none" (-1) is one of them."""
    ids = particle[tokens.members].cpu().numpy() + 1
    token = tokens.segments.index.cpu().numpy()
    n = int(ids.max(initial=0)) + 1
    cells, counts = np.unique(token * n + ids, return_counts=True)
    order = np.lexsort((cells, -counts, cells // n))
    first = np.unique((cells // n)[order], return_index=True)[1]  # no token is empty
    return (cells % n)[order][first] - 1


def creation_points(event: Event, normalize: NormalizeCoord) -> np.ndarray | None:
    """float64 (V, 3) where the particles of an event were created, in model coordinates, each place once.

    None where the file does not say: there is no such field, or it holds nothing but zeros.
    """
    if event.vertex is None or event.particle is None:
        return None
    places = np.unique(event.vertex[event.particle >= 0], axis=0).astype(np.float64)
    if len(places) and not places.any():
        return None
    detector = load_detector(event.detector)
    # A position counts from a voxel's low corner, the coordinate of a voxel is that of its centre.
    voxel = places / detector.pitch_mm + detector.centre_voxel - 0.5
    return (voxel - normalize.centre) / normalize.scale


def _packed(events: Sequence[Event], grid_size: float, normalize: NormalizeCoord | None) -> tuple[PointBatch, list]:
    """A batch, and the creation points of each event, which a batch does not carry."""
    places = [creation_points(e, normalize) if normalize else None for e in events]
    return PointBatch.from_events(events, grid_size), places


@torch.no_grad()
def collect_tokens(
    rows: Mapping[str, Sequence[TokenFeatures]],
    tokenizer: Tokenizer,
    data: PointDataModule,
    split: str,
    events: Sequence[int],
    max_tokens: int,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, list[np.ndarray]], TokenTruth]:
    """Features and truth of the first ``max_tokens`` tokens of the events, in their order.

    Args:
        rows: name -> the features of that row, several if it has several seeds.
        tokenizer: makes the tokens, for all rows.
        data: where the events are.
        split, events: which of them.
        max_tokens: the events end where so many are found; the last one may be cut.
        device: where tokens and features are computed.

    Returns:
        Name -> float32 (T, C) for each of the features, and what is true of the tokens.

    Raises:
        ValueError: events without labels, without tokens, or a feature that is not finite.
    """
    normalize = _normalization(data)
    batches = [[(0, e) for e in events[i : i + data.batch_size]] for i in range(0, len(events), data.batch_size)]
    collate = functools.partial(_packed, grid_size=data.grid_size, normalize=normalize)
    found: dict[str, list[list[np.ndarray]]] = {name: [[] for _ in each] for name, each in rows.items()}
    truth: list[TokenTruth] = []
    n_tokens = n_events = 0
    for batch, places in BatchLoader(data.eval_dataset(split), batches, collate, data.num_workers):
        for label in ("motif", "particle"):
            if label not in batch.labels:
                raise ValueError(f"{batch.names[0]}: no '{label}' labels to probe; found {sorted(batch.labels)}")
        batch = batch.to(device)
        tokens = tokenizer(batch)
        room = max_tokens - n_tokens
        for name, each in rows.items():
            for features, kept in zip(each, found[name], strict=True):
                feat = features(batch, tokens)[:room].float().cpu()
                if not bool(torch.isfinite(feat).all()):
                    raise ValueError(
                        f"{batch.names[0]} …: features of '{name}' are NaN or infinite; has the training diverged?"
                    )
                kept.append(feat.numpy())
        truth.append(_truth(batch, places, tokens, tokenizer.radius, n_events, room))
        n_tokens, n_events = n_tokens + len(truth[-1]), n_events + truth[-1].n_events
        if n_tokens >= max_tokens:
            break
    if n_tokens == 0:
        raise ValueError(f"the {len(events)} events of '{split}' have no tokens to probe")
    known = all(t.vertex is not None for t in truth)
    arrays = ("event", "centre", "present", "share", "particle", *(["vertex"] if known else []))
    joined = {"vertex": None} | {name: np.concatenate([getattr(t, name) for t in truth]) for name in arrays}
    n_vertices = sum(t.n_vertices for t in truth) if known else 0
    everything = TokenTruth(**joined, n_events=n_events, n_vertices=n_vertices)
    return {name: [np.concatenate(kept) for kept in each] for name, each in found.items()}, everything


def _normalization(data: PointDataModule) -> NormalizeCoord | None:
    """How coordinates follow from the lattice; None where the transforms move points otherwise."""
    try:
        return coordinates_from(data.transforms)
    except ValueError:  # the tables say that it is left out, and why
        return None


def _truth(
    batch: PointBatch, places: Sequence[np.ndarray | None], tokens: Tokens, radius: float, first: int, room: int
) -> TokenTruth:
    """Of the first ``room`` tokens of a batch, and of its events up to the last of them.

    ``places`` are the creation points of its events, ``first`` is the number of its first event.
    """
    keep = slice(room)
    present, share = token_classes(batch.labels["motif"], tokens)
    event, centre = tokens.event.cpu().numpy()[keep], tokens.centre.double().cpu().numpy()[keep]
    n_events = int(event[-1]) + 1 if len(event) == room else batch.n_events
    places, inside = places[:n_events], None
    if all(p is not None for p in places):
        inside = np.zeros(len(event), dtype=bool)
        for b, place in enumerate(places):
            rows = np.flatnonzero(event == b)
            apart = np.linalg.norm(centre[rows, None] - place[None], axis=2)
            inside[rows] = (apart <= radius).any(1)
    return TokenTruth(
        event=event + first,
        centre=centre / radius,
        present=present[keep],
        share=share[keep],
        particle=dominant_particle(batch.labels["particle"], tokens)[keep],
        vertex=inside,
        n_events=n_events,
        n_vertices=sum(len(p) for p in places) if inside is not None else 0,
    )


def token_pairs(truth: TokenTruth, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of tokens of the same event, as many of one particle as of two, as many near as far where there are.

    Returns:
        Tokens int64 (Q, 2), bool (Q,) of the same particle, float64 (Q,) distance of the centres in radii.
    """
    pairs, same, apart = [], [], []
    for event in range(truth.n_events):
        rows = np.flatnonzero((truth.event == event) & (truth.particle >= 0))
        a, b = np.triu_indices(len(rows), 1)
        alike = truth.particle[rows[a]] == truth.particle[rows[b]]
        distance = np.linalg.norm(truth.centre[rows[a]] - truth.centre[rows[b]], axis=1)
        n = min(PAIRS, int(alike.sum()), int((~alike).sum()))
        rng = np.random.default_rng([seed, event])
        for kind in (alike, ~alike):
            near, far = (rng.permutation(np.flatnonzero(kind & side)) for side in (distance < NEAR, distance >= NEAR))
            n_near = min(len(near), max(n // 2, n - len(far)))
            chosen = np.concatenate([near[:n_near], far[: n - n_near]])
            pairs.append(np.stack([rows[a[chosen]], rows[b[chosen]]], axis=1))
            same.append(alike[chosen])
            apart.append(distance[chosen])
    return np.concatenate(pairs), np.concatenate(same), np.concatenate(apart)
