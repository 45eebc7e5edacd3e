"""Answers that are kept under another name of their teacher: what an earlier release, or other settings, called it.

    names = FormerNames(plan.former, journal.noted)
    for former in names.of(version.manifest.recipe):        # those that may stand for this teacher there
        plan.claim(rows, under=former.terms)
    settle(journal, former, "words/v001")                   # noted and told, once one has been used

A request's key names its teacher. When a release names teachers better (by all bytes of a weight file, and not by samples
of them; with the seed of random draws), what was paid for under the old name is still an answer: it is taken over, and gets
the key of today.

An old name says less than the new one, so several teachers may have it. Two things keep them apart. The settings that it
leaves out are looked up in the recipe that the answers were asked with. And the first teacher that takes answers under an
old name keeps that name, by a note in the journal: weights that are edited afterwards are another teacher, whatever their
samples say. Whether they were edited before that, nobody can tell; so it is told.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from stillhouse.dataset.manifest import Manifest, version_label
from stillhouse.dataset.store import open_dataset, started_versions, versions
from stillhouse.labelling.journal import Journal
from stillhouse.plugins import TEACHERS, code_of
from stillhouse.recipe.label import LabelSettings
from stillhouse.records import TeacherIdentity, content_hash
from stillhouse.storage.location import Location
from stillhouse.teachers.base import AskedWith, FormerIdentity, Renamed, Teacher, Terms

_LOG = logging.getLogger(__name__)
_RECIPE = "recipe.yaml"  # in a version's folder, from its beginning
_ASKED_WITH = "asked with"  # the journal's note of the recipe that its older answers were asked with
_NAME = "name "  # and of who keeps a former name

Noted = Callable[[str], str | None]


@dataclass(frozen=True)
class Former:
    """One former name of a teacher, as part of what shapes a request."""

    terms: Terms
    asked_with: tuple[AskedWith, ...]
    name: str  # of the teacher, then
    today: str | None  # and now; None for a model whose weights are not here, which its name stands for

    def stands_in(self, recipe: Mapping[str, Any]) -> bool:
        """Whether answers that were asked with this recipe had the settings which the name leaves out."""
        return all(_agrees(recipe, one) for one in self.asked_with)


def former_names(teacher: Teacher, label: LabelSettings, base: Location) -> tuple[Former, ...]:
    """The former names of the teacher that labels the dataset in `base`."""
    if not isinstance(teacher, Renamed):
        return ()
    today = teacher.identity
    listed: dict[str, Former] = {}
    for one in teacher.former(lambda: [open_dataset(base, number).manifest.teacher for number in versions(base)]):
        former = _former(one, today, label)
        if former.terms.id != Terms.of(today, label).id:
            listed.setdefault(former.terms.id, former)
    return tuple(listed.values())


def _former(one: FormerIdentity, today: TeacherIdentity, label: LabelSettings) -> Former:
    return Former(
        terms=Terms.of(one.identity, label),
        asked_with=one.asked_with,
        name=_name(one.identity),
        today=_name(today) if today.content_sha256 else None,
    )


class FormerNames:
    """The former names that count in one dataset."""

    def __init__(self, former: Sequence[Former], noted: Noted) -> None:
        self._former = [
            one for one in former if one.today in (None, one.name) or noted(_NAME + one.name) in (None, one.today)
        ]

    def of(self, recipe: Mapping[str, Any]) -> list[Former]:
        """Those that count for answers which were asked with this recipe."""
        return [one for one in self._former if one.stands_in(recipe)]


def settle(journal: Journal, former: Former, where: str) -> None:
    """A former name has been used: note who keeps it, and tell of it once."""
    if former.today in (None, former.name) or journal.noted(_NAME + former.name) is not None:
        return
    journal.note(_NAME + former.name, former.today)
    _LOG.warning(
        "%s: its answers are kept under an earlier name of this teacher, and count as its own. That name said less of the "
        "weights: if they were edited after these answers were given, label into another dataset.name.",
        where,
    )


def tell_of_other_code(kind: str, newest: Manifest | None) -> None:
    """Say so where a teacher that does not come with Stillhouse has other code than labelled the newest version.

    Its answers are kept: its code is no part of a request's key (plugins.py).
    """
    code = code_of(TEACHERS, kind).get("code")
    if newest is None or newest.teacher_code is None or newest.teacher_code == code:
        return
    _LOG.warning(
        "teacher.kind is %r, whose code has changed since it labelled %s (%s then, %s now): its answers there are kept, "
        "since its identity is the same. If it answers otherwise now, have its TeacherIdentity say so (options_sha256), or "
        "label into another dataset.name.",
        kind,
        newest.label,
        _shown(newest.teacher_code),
        _shown(code or {}),
    )


def _shown(code: Mapping[str, str]) -> str:
    name = f"{code.get('distribution', 'no distribution')} {code.get('version', '')}".rstrip()
    return f"{name}, sha256 {code['sha256'][:8]}…" if "sha256" in code else name


# ----------------------------------------------------------------------------------------------------------- the journal


def asked_with(noted: Noted, base: Location) -> Mapping[str, Any]:
    """The recipe that the older answers in a dataset's journal were asked with; empty where nothing says."""
    known = noted(_ASKED_WITH)
    return _read_recipe(base) if known is None else dict(json.loads(known))


def rename_kept(
    journal: Journal, former: Sequence[Former], shards: Callable[[], Iterator[Renaming]], base: Location
) -> None:
    """Give answers in the journal that have a former name their key of today.

    Args:
        journal: of the dataset, which is held.
        former: the teacher's former names.
        shards: the requests of the plan, some at a time: the key of today and the key under some terms.
        base: the dataset's folder.
    """
    recipe = asked_with(journal.noted, base)
    journal.note(_ASKED_WITH, json.dumps(recipe, default=str))
    if not former or not journal.has_answers:
        return
    for one in FormerNames(former, journal.noted).of(recipe):
        renamed = sum(journal.rename(names(one.terms)) for names in shards())
        if renamed:
            settle(journal, one, f"the journal of {base}")


Renaming = Callable[[Terms], Mapping[str, str]]  # terms -> key under them: key of today


def _read_recipe(base: Location) -> Mapping[str, Any]:
    """The recipe of the version that was begun, or else of the newest one."""
    begun, finished = started_versions(base), versions(base)
    if begun and begun[-1] not in finished:
        file = base / version_label(begun[-1]) / _RECIPE
        said = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
        return said if isinstance(said, dict) else {}
    return open_dataset(base).manifest.recipe if finished else {}


# ---------------------------------------------------------------------------------------------------------------- pieces


def _name(identity: TeacherIdentity) -> str:
    """A teacher's name without what a recipe sets of it."""
    return content_hash(replace(identity, seed=None, options_sha256=None).shaping())


def _agrees(recipe: Mapping[str, Any], setting: AskedWith) -> bool:
    """Whether a recipe has a setting at this value; also where it does not say, as of a version that was merged."""
    *parents, last = setting.path.split(".")
    place: Any = recipe or None
    for parent in parents:
        place = place.get(parent) if isinstance(place, Mapping) else None
    return not isinstance(place, Mapping) or place.get(last, setting.default) == setting.value
