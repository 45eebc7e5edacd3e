"""The session: every mutant that can be made, and of these a seeded sample; the others are marked as skipped.

Cosmic Ray knows many replacements for one place (each `+` has eleven). A place counts once for each family of operators,
and a random replacement stands for it: else the sample would be of the places that have most replacements.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from random import Random

from cosmic_ray.commands.init import init
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB
from cosmic_ray.work_item import MutationSpec, WorkerOutcome, WorkItem, WorkResult

from tests.mutants.left_out import is_left_out, left_out
from tests.mutants.rooms import ROOMS, ROOT

_OF_STARS = ("core/ReplaceBinaryOperator_Mul", "core/ReplaceBinaryOperator_Pow")


def fill(session: WorkDB, sample: int, seed: int) -> int:
    """Put the mutants into an empty session.

    Returns:
        How many places there are to choose from.
    """
    modules = [ROOT / module for room in ROOMS for module in room.modules()]
    init(modules, session, {})
    places: defaultdict[tuple[str, tuple[int, int], str], list[WorkItem]] = defaultdict(list)
    for item in session.work_items:
        one = mutation_of(item)
        places[str(one.module_path), one.start_pos, one.operator_name.partition("_")[0]].append(item)
    spans = {module: left_out(module.read_text("utf-8")) for module in modules}
    wanted = [
        sorted(items, key=lambda item: (mutation_of(item).operator_name, mutation_of(item).occurrence))
        for place, items in sorted(places.items())
        if not any(span.holds(place[1]) for span in spans[Path(place[0])])
    ]
    kept = [left for items in wanted if (left := [item for item in items if not _is_left_out(item)])]
    random = Random(seed)
    chosen = {random.choice(items).job_id for items in random.sample(kept, min(sample, len(kept)))}
    others = [item.job_id for item in session.work_items if item.job_id not in chosen]
    session.set_multiple_results(others, WorkResult(WorkerOutcome.SKIPPED))
    return len(kept)


def mutation_of(item: WorkItem) -> MutationSpec:
    """The one change that a mutant is."""
    (one,) = item.mutations
    return one


def _is_left_out(item: WorkItem) -> bool:
    one = mutation_of(item)
    source = one.module_path.read_text("utf-8")
    (line, start), (_, end) = one.start_pos, one.end_pos
    if is_left_out(one.operator_name, source.splitlines()[line - 1][start:end]):
        return True
    # the stars of a signature, a call or a dictionary are no multiplications: what becomes of them is no Python
    return one.operator_name.startswith(_OF_STARS) and not _is_python(source, one)


def _is_python(source: str, one: MutationSpec) -> bool:
    mutated = mutate_code(source, get_operator(one.operator_name)(), one.occurrence)
    try:
        compile(mutated, str(one.module_path), "exec")
    except SyntaxError:
        return False
    return True
