"""Which events a batch holds, and the loader that yields the batches.

The order of a training epoch is a function of (seed, epoch) alone, and the random numbers of a sample a
function of (seed, epoch, event). Hence neither the number of workers nor of processes nor a restart changes
what is seen: a restart only has to know where it is.

Shape legend: n events, B events per global batch (over all W processes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from nufm.data.event import Event
from nufm.data.streams import StreamEvent
from nufm.data.transforms import Transform, compose
from nufm.data.views import MultiView, Views

Key = tuple[int, int]  # epoch, event


class EventDataset(Dataset):
    """Transformed events (point clouds or those of several sub-detectors), or views of point clouds.

    Args:
        events: a sequence of events, such as a reader.
        transforms: applied to every event.
        augment: applied after them.
        views: cuts the event into views; None = the event itself.
        seed: with the epoch and the event's index, fixes the random numbers of a sample.
        keep_origin: keep the coordinates before ``augment`` as the event's ``origin``.
    """

    def __init__(
        self,
        events: Sequence[Event] | Sequence[StreamEvent],
        transforms: Sequence[Transform],
        augment: Sequence[Transform] = (),
        views: MultiView | None = None,
        seed: int = 0,
        keep_origin: bool = False,
    ) -> None:
        self.events = events
        self.stages = [[*transforms], [*augment]] if keep_origin else [[*transforms, *augment]]
        self.views = views
        self.seed = seed

    def __len__(self) -> int:
        return len(self.events)

    def __getitem__(self, key: int | Key) -> Event | StreamEvent | Views:
        """Sample ``(epoch, event)``, or ``event`` in epoch 0.

        The epoch comes with the index because persistent workers hold a copy of this object from before the
        first epoch, which no later assignment reaches.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        rng = np.random.default_rng([self.seed, epoch, index])
        event = self.events[index].replace(seed=int(rng.integers(2**63 - 1)))
        for number, transforms in enumerate(self.stages):
            event = compose(transforms, event.replace(origin=event.coord) if number else event, rng)
        return event if self.views is None else self.views(event, rng)


class TrainBatches:
    """One process's share of the shuffled batches of an epoch; the last, incomplete global batch is dropped.

    Args:
        n_events: n.
        batch_size: B, over all processes.
        seed: with the epoch, fixes the order.
        rank, world: this process, and how many there are.

    Raises:
        ValueError: fewer events than a batch, or B does not divide among the processes.
    """

    def __init__(self, n_events: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        if batch_size < 1 or batch_size % world:
            raise ValueError(
                f"batch_size is {batch_size} events over {world} processes, expected a multiple of {world}"
            )
        if n_events < batch_size:
            raise ValueError(
                f"{n_events} training events are fewer than one batch of {batch_size}; lower batch_size, "
                "or use more events (max_events, min_points)"
            )
        self.n_events, self.batch_size, self.seed, self.rank, self.world = (
            n_events,
            batch_size,
            seed,
            rank,
            world,
        )
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        """Batches of a whole epoch, also when this one starts in its middle."""
        return self.n_events // self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; naming the present one keeps a resumed position."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def set_position(self, epoch: int, start: int) -> None:
        """Go to batch ``start`` of an epoch."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[list[Key]]:
        # The position is bound here, not when the first batch is asked for: workers fetch ahead.
        return self._batches(self.epoch, self.start)

    def _batches(self, epoch: int, start: int) -> Iterator[list[Key]]:
        # spawn_key, because SeedSequence pads with zeros: [seed, epoch] alone is the stream of event 0
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch], spawn_key=(1,)))
        order = rng.permutation(self.n_events)
        share = self.batch_size // self.world
        for batch in range(start, len(self)):
            first = batch * self.batch_size + self.rank * share
            yield [(epoch, int(event)) for event in order[first : first + share]]


class EvalBatches:
    """One process's share of the events in order: each event on exactly one process, none dropped.

    All processes get the same number of batches, none of them empty, so that they stay in step; a batch may
    hold one event more than B / W.

    Raises:
        ValueError: fewer events than processes.
    """

    def __init__(self, n_events: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        if n_events < world:
            raise ValueError(
                f"{n_events} events cannot be evaluated on {world} processes; use fewer processes"
            )
        events = np.arange(rank, n_events, world)
        n_batches = min(-(-n_events // max(batch_size, world)), n_events // world)
        self.batches = (
            [[(0, int(e)) for e in part] for part in np.array_split(events, n_batches)] if n_events else []
        )

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)


class BatchLoader:
    """Yields the batches that ``batches`` names.

    It wraps a torch DataLoader rather than being one, since Lightning rebuilds DataLoaders with a sampler of
    its own when several processes run. Lightning finds ``sampler.set_epoch``, and keeps ``state_dict`` in
    its checkpoints.
    """

    def __init__(
        self,
        dataset: EventDataset,
        batches: TrainBatches | EvalBatches,
        collate: Callable[[list], Any],
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = dataset
        self.sampler = self.batch_sampler = batches  # the two names Lightning looks for
        self.loader = DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            # A generator of its own: the DataLoader draws a base seed for its workers, which would otherwise
            # advance torch's global stream and make the weights depend on how often a loader was started.
            generator=torch.Generator().manual_seed(0),
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        # A generator, so that workers start when the first batch is asked for: Lightning calls iter() once
        # more, only to see whether it can.
        yield from self.loader

    @property
    def _iterator(self) -> Any:
        """The name under which Lightning looks for workers to stop when a run ends or fails. Left to the
        garbage collector, an iterator in a reference cycle waits five seconds for each of its workers."""
        return self.loader._iterator

    @_iterator.setter
    def _iterator(self, value: None) -> None:
        self.loader._iterator = value

    def state_dict(self) -> dict[str, int]:
        """What the order of the batches depends on. The position is not here: the Trainer's own progress
        counters
        know which batches were trained on, this loader only which were fetched."""
        batches = self.sampler
        if not isinstance(batches, TrainBatches):
            return {}
        return {"n_events": batches.n_events, "batch_size": batches.batch_size, "seed": batches.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Checks that the order is still the one of the checkpoint.

        Raises:
            ValueError: it is not, so that the remaining batches of the epoch cannot be told.
        """
        here = self.state_dict()
        changed = {k: (v, here.get(k)) for k, v in state.items() if here.get(k) != v}
        if changed:
            told = ", ".join(f"{name} was {then}, is {now}" for name, (then, now) in changed.items())
            raise ValueError(
                f"cannot resume: the order of the training events has changed ({told}); resume with the same "
                "data and batch size, or start a new run from the weights"
            )


def resume_position(trainer: Any, n_batches: int) -> tuple[int, int]:
    """Epoch and first batch that a Lightning trainer is about to train on.

    Lightning restores its loop counters before it asks for the loader, and asks the loader for its iterator
    before it tells it the epoch, so the loader has to start in the right place by itself. ``processed``
    counts a batch once the optimiser has used it; ``completed`` lags by one in checkpoints written at the
    end of a batch, ``ready`` leads by one in those written when a batch fails.

    Args:
        trainer: the Trainer.
        n_batches: batches of a whole epoch, before ``limit_train_batches``.
    """
    limit = trainer.limit_train_batches
    limit = min(n_batches, limit) if isinstance(limit, int) else int(n_batches * limit)
    epochs = trainer.fit_loop.epoch_progress.current
    batch = trainer.fit_loop.epoch_loop.batch_progress.current.processed
    if epochs.started == epochs.processed:  # between epochs
        return epochs.processed, 0
    return (epochs.processed, batch) if batch < limit else (epochs.processed + 1, 0)
