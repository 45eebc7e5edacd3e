"""The order of a training's examples, determined by the seed and the number of the epoch alone.

A resumed training therefore sees the same batches, and so does a training with another number of processes and the same
effective batch. The row groups are shuffled, and then the examples within windows of row groups (`Examples.windows`): each
row group is decoded once an epoch however large the dataset is, and a dataset that fits into one window is fully shuffled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stillhouse.student.data.examples import Examples

_BATCHES = 50  # maximum number of batches sorted by length together


class ShuffledSampler:
    """Examples in random order: a sampler for `torch.utils.data.DataLoader`."""

    def __init__(self, examples: Examples, seed: int) -> None:
        self._examples = examples
        self._seed = seed % (1 << 64)
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the trainer calls this before each one."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._examples)

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of this epoch; one window of them is in memory at a time."""
        yield from self._shuffled(np.random.default_rng([self._seed, self._epoch]))

    def _shuffled(self, random: np.random.Generator) -> Iterator[int]:
        for window in self._examples.windows(random):
            yield from random.permutation(window).tolist()


class LengthGroupedSampler(ShuffledSampler):
    """Examples grouped by similar length, to reduce padding: `train_sampling_strategy: group_by_length`.

    Works as `transformers.trainer_pt_utils.get_length_grouped_indices`, one window at a time: sorts several batches' worth
    of random rows by length. The longest row comes first, so that running out of memory shows at once.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int) -> None:
        super().__init__(examples, seed)
        self._batch_size = batch_size

    def _shuffled(self, random: np.random.Generator) -> Iterator[int]:
        lengths = self._examples.lengths
        longest = int(lengths.argmax()) if len(lengths) else None
        for number, window in enumerate(self._examples.windows(random, begin_with=longest)):
            parts = self._sorted(random.permutation(window))
            if number == 0 and longest is not None:
                of = next(part for part in parts if longest in part)
                of[of == longest], parts[0][0] = parts[0][0], longest
            for part in parts:
                yield from part.tolist()

    def _sorted(self, indices: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        """Split indices into parts of several batches, each sorted with the longest rows first."""
        batches = min(max(len(indices) // (4 * self._batch_size), 1), _BATCHES)
        cuts = range(batches * self._batch_size, len(indices), batches * self._batch_size)
        lengths = self._examples.lengths
        return [part[np.argsort(-lengths[part], kind="stable")] for part in np.split(indices, list(cuts))]


class Order(Sized, Iterable[int], Protocol):
    """Indices of examples, in order."""


class ShardedBatchSampler:
    """Batches for one of several processes: a batch sampler for `torch.utils.data.DataLoader`.

    Splits every `batch_size * processes` examples in order as evenly as possible. An epoch's last examples may be fewer
    than the processes: some processes then get none, and no example is used twice, which would double its weight
    (accelerate's own sampler fills up with examples from the beginning).
    """

    def __init__(self, order: Order, batch_size: int, *, processes: int = 1, rank: int = 0, drop_last: bool = False):
        self._order = order
        self._together = batch_size * processes
        self._processes = processes
        self._rank = rank
        self._drop_last = drop_last

    def __len__(self) -> int:
        full_batches, remainder = divmod(len(self._order), self._together)
        return full_batches + (remainder > 0 and not self._drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this process's part of each batch, which may be empty."""
        indices = iter(self._order)
        while together := list(islice(indices, self._together)):
            if len(together) < self._together and self._drop_last:
                return
            per_process, remainder = divmod(len(together), self._processes)
            begin = per_process * self._rank + min(self._rank, remainder)
            yield together[begin : begin + per_process + (self._rank < remainder)]
