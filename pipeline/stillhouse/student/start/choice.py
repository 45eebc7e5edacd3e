"""Choose which of the teacher's layers a student keeps, if a recipe gives only their number.

    choice = choose_layers(init, config, LayerMeasurer(measured, store))      # [Kept(model, (0, 1, 2, 6, ...))], and why

`student.init.choose` sets the method:

- importance: block influence. Before training, students made by greedy removal have the lower KL; after the same training,
  those made by block influence do, unless few layers are left (`make bench-start`, docs/benchmarks.md);
- block-influence, leave-one-out, greedy: see importance.py;
- even: evenly spaced, including the first and the last (as in DistilBERT; Shleifer and Rush, arXiv 2010.13002).

The choice is deterministic: the same teacher, rows and settings give the same layers.
"""

from __future__ import annotations

from collections.abc import Callable

from transformers import PretrainedConfig

from stillhouse.progress import Progress, silent
from stillhouse.recipe.student_init import Choose, InitSettings, StackLayers
from stillhouse.student.start.importance import MeasuredTeacher, Removal, Scores, block_influence, greedy, leave_one_out
from stillhouse.student.start.record import Method, StackStart
from stillhouse.student.start.stacks import Kept, Stack, kept_layers
from stillhouse.student.start.store import ImportanceStore, LayerMeasurements

IMPORTANCE: Method = "block-influence"  # its students are nearest after training, and it takes one forward pass


class LayerMeasurer:
    """Measures layers on demand, with a cache: what the store has is not measured again."""

    def __init__(
        self, measured: Callable[[], MeasuredTeacher], store: ImportanceStore, progress: Progress = silent
    ) -> None:
        self._measured = measured
        self._store = store
        self._progress = progress

    def leave_one_out(self) -> Scores:
        """Return the leave-one-out scores of all layers: see importance.py."""
        known = self._store.read().leave_one_out
        if known is None:
            known = leave_one_out(self._measured(), self._progress)
            self._store.add(leave_one_out=known)
        return known

    def block_influence(self) -> Scores:
        """Return the block influence of all layers: see importance.py."""
        known = self._store.read().block_influence
        if known is None:
            known = block_influence(self._measured(), self._progress)
            self._store.add(block_influence=known)
        return known

    def greedy(self, stack: Stack, remove: int) -> Removal:
        """Return at least `remove` layers of a stack in the order of their removal."""
        known = self._store.read().greedy.get(stack.name)
        if known is None:
            known = Removal(costs=self.leave_one_out()[stack.name])
        if len(known.order) >= remove:
            return known

        def keep(more: Removal) -> None:
            self._store.add(greedy=self._store.read().greedy | {stack.name: more})

        return greedy(self._measured(), stack.name, remove, known, self._progress, keep)

    @property
    def known(self) -> LayerMeasurements:
        return self._store.read()


def choose_layers(
    init: InitSettings, config: PretrainedConfig, measurer: LayerMeasurer | None
) -> tuple[list[Kept], tuple[StackStart, ...]]:
    """Return the layers to keep of each stack, and the record of the choice.

    Args:
        init: the settings of the start: number of layers, and how to choose them.
        config: the teacher's config.
        measurer: measures layers; None if the recipe lists them or spaces them evenly.
    """
    assert init.layers is not None
    kept = kept_layers(config, init.layers)
    if measurer is None or not init.measures_layers:
        return kept, tuple(StackStart(stack=one.stack.name, depth=one.stack.depth, kept=one.layers) for one in kept)
    counts = {one.stack.name: _count(init, one.stack.name) for one in kept}
    method = _method(init.choose)
    chosen, records = [], []
    for one in kept:
        count = counts[one.stack.name]
        layers, scores = (one.layers, ()) if count is None else _best(one.stack, count, method, measurer)
        chosen.append(Kept(one.stack, layers))
        records.append(
            StackStart(
                stack=one.stack.name,
                depth=one.stack.depth,
                kept=layers,
                method=None if count is None else method,
                scores=scores,
            )
        )
    return chosen, tuple(records)


def _count(init: InitSettings, stack: str) -> int | None:
    """Return the number of layers to choose from a stack; None if they are listed, or all are kept."""
    given = getattr(init.layers, stack) if isinstance(init.layers, StackLayers) else init.layers
    return given if isinstance(given, int) else None


def _method(choose: Choose) -> Method:
    """Return the method that measures layers."""
    return choose if choose in ("greedy", "leave-one-out", "block-influence") else IMPORTANCE


def _best(
    stack: Stack, count: int, method: Method, measurer: LayerMeasurer
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the layers to keep, and the score of every layer."""
    if method == "greedy":
        gone = measurer.greedy(stack, stack.depth - count).order[: stack.depth - count]
        return tuple(layer for layer in range(stack.depth) if layer not in gone), measurer.leave_one_out()[stack.name]
    scores = (measurer.leave_one_out() if method == "leave-one-out" else measurer.block_influence())[stack.name]
    best = sorted(range(stack.depth), key=lambda layer: (-scores[layer], layer))[:count]
    return tuple(sorted(best)), scores
