"""Find answers stored under another name of their teacher, one from an earlier release or from other settings.

    names = FormerNames(plan.former, journal.noted)
    for former in names.of(version.manifest.recipe):        # the former names valid for answers to that recipe
        plan.claim(rows, under=former.terms)
    settle(journal, former, "words/v001")                   # recorded and logged when one is first used

A request's key names its teacher. When a release names teachers more precisely (by all bytes of a weight file instead of
samples of them; with the seed of random draws), an answer paid for under the old name is still an answer: it is reused and
gets the current key.

An old name is less specific than the new one, so several teachers may share it. Two things keep them apart. The settings
that it leaves out are looked up in the recipe that produced the answers. And the first teacher that reuses answers under an
old name claims that name, with a note in the journal: if the weights are edited afterwards, they are another teacher even
if their samples are the same. Whether the weights were edited before that cannot be detected, so a warning is logged.
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
_RECIPE = "recipe.yaml"  # in a version's folder, written when the version is started
_ASKED_WITH = "asked with"  # name of the journal's note: the recipe that produced its older answers
_NAME = "name "  # prefix of the journal's notes on which teacher claimed a former name

Noted = Callable[[str], str | None]


@dataclass(frozen=True)
class Former:
    """A former name of a teacher, as part of the terms that determine an answer."""

    terms: Terms
    asked_with: tuple[AskedWith, ...]
    name: str  # the teacher's former name
    today: str | None  # its current name; None for a model identified by name because its weights are not local

    def stands_in(self, recipe: Mapping[str, Any]) -> bool:
        """Whether this recipe has the settings that the former name leaves out."""
        return all(_agrees(recipe, one) for one in self.asked_with)


def former_names(teacher: Teacher, label: LabelSettings, base: Location) -> tuple[Former, ...]:
    """Return the former names of the teacher that labels the dataset in `base`."""
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
    """The former names that are valid in one dataset."""

    def __init__(self, former: Sequence[Former], noted: Noted) -> None:
        self._former = [
            one for one in former if one.today in (None, one.name) or noted(_NAME + one.name) in (None, one.today)
        ]

    def of(self, recipe: Mapping[str, Any]) -> list[Former]:
        """Return the former names that are valid for answers produced with this recipe."""
        return [one for one in self._former if one.stands_in(recipe)]


def settle(journal: Journal, former: Former, where: str) -> None:
    """Record which teacher claims a former name that was used, and log a warning the first time."""
    if former.today in (None, former.name) or journal.noted(_NAME + former.name) is not None:
        return
    journal.note(_NAME + former.name, former.today)
    _LOG.warning(
        "%s: its answers are kept under an earlier name of this teacher, and count as its own. That name said less of the "
        "weights: if they were edited after these answers were given, label into another dataset.name.",
        where,
    )


def tell_of_other_code(kind: str, newest: Manifest | None) -> None:
    """Warn if a plug-in teacher's code differs from the code that labelled the newest version.

    Its answers are kept: a teacher's code is not part of a request's key (plugins.py).
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
    """Return the recipe that produced the older answers in a dataset's journal; empty if it is not known."""
    known = noted(_ASKED_WITH)
    return _read_recipe(base) if known is None else dict(json.loads(known))


def rename_kept(
    journal: Journal, former: Sequence[Former], shards: Callable[[], Iterator[Renaming]], base: Location
) -> None:
    """Give answers in the journal that are stored under a former name their current key.

    Args:
        journal: the journal of the dataset, which the caller has locked.
        former: the teacher's former names.
        shards: returns the plan's requests shard by shard, each as a function from terms to {key under them: current key}.
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


Renaming = Callable[[Terms], Mapping[str, str]]  # terms -> {key under those terms: current key}


def _read_recipe(base: Location) -> Mapping[str, Any]:
    """Return the recipe of the version that was started but not finished, else of the newest finished version."""
    begun, finished = started_versions(base), versions(base)
    if begun and begun[-1] not in finished:
        file = base / version_label(begun[-1]) / _RECIPE
        said = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
        return said if isinstance(said, dict) else {}
    return open_dataset(base).manifest.recipe if finished else {}


# ---------------------------------------------------------------------------------------------------------------- pieces


def _name(identity: TeacherIdentity) -> str:
    """Return a teacher's name without the parts that a recipe sets (seed, options)."""
    return content_hash(replace(identity, seed=None, options_sha256=None).shaping())


def _agrees(recipe: Mapping[str, Any], setting: AskedWith) -> bool:
    """Whether a recipe has a setting at this value; also True if the recipe has no such section, as in a merged version."""
    *parents, last = setting.path.split(".")
    place: Any = recipe or None
    for parent in parents:
        place = place.get(parent) if isinstance(place, Mapping) else None
    return not isinstance(place, Mapping) or place.get(last, setting.default) == setting.value
