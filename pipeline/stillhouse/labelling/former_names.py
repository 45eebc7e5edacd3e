"""Find answers whose keys contain an earlier identity of the same teacher.

    names = FormerNames(plan.former, journal.get_note)
    for former in names.valid_for(version.manifest.recipe):        # the earlier identities valid for answers to that recipe
        plan.match_rows(rows, stored_with=former.answer_settings)
    claim_former_name(journal, former, "words/v001")        # recorded and logged when one is first used

A request's key contains a hash of the teacher's identity. A newer release may compute that identity from more data: all
bytes of a weight file instead of samples, or the seed of random draws. Answers under the earlier identity stay valid; they
are reused and get the current key.

An earlier identity is less specific, so two teachers may share it. It is accepted only if

1. the recipe that produced the answers has the settings that the identity leaves out, and
2. no other teacher has claimed it: the first teacher that reuses answers under it records this in the journal.

An edit of the weights before that cannot be detected, so a warning is logged.
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
from stillhouse.plugins import TEACHERS, plugin_code_key
from stillhouse.recipe.label import LabelSettings
from stillhouse.recipe.recipe import Recipe
from stillhouse.records import RECIPE_FILE, TeacherIdentity, content_hash
from stillhouse.storage.location import Location
from stillhouse.teachers.base import AnswerSettings, FormerIdentity, OmittedSetting, Renamed, Teacher

_LOG = logging.getLogger(__name__)
_OLD_RECIPE_NOTE = "asked with"  # the same of a journal that version 0.1 wrote, for all answers in it
_RECIPE_NOTE = "recipe of "  # prefix of the journal's notes on the recipes that asked, before the answer settings' id
_CLAIM = "name "  # prefix of the journal's notes on which teacher claimed a former name

GetNote = Callable[[str], str | None]


@dataclass(frozen=True)
class Former:
    """A former name of a teacher, as part of the settings that determine an answer."""

    answer_settings: AnswerSettings
    omitted_settings: tuple[OmittedSetting, ...]
    name: str  # the teacher's former name
    current: str | None  # its current name; None for a model identified by name because its weights are not local

    def applies_to(self, recipe: Mapping[str, Any]) -> bool:
        """Whether the recipe sets everything that the earlier identity does not record to the values that it implies."""
        return all(_agrees(recipe, one) for one in self.omitted_settings)


def former_names(teacher: Teacher, label: LabelSettings, base: Location) -> tuple[Former, ...]:
    """Return the former names of the teacher that labels the dataset in `base`."""
    if not isinstance(teacher, Renamed):
        return ()
    current = teacher.identity
    listed: dict[str, Former] = {}
    for one in teacher.former(lambda: [open_dataset(base, number).manifest.teacher for number in versions(base)]):
        former = _former(one, current, label)
        if former.answer_settings.id != AnswerSettings.from_label(current, label).id:
            listed.setdefault(former.answer_settings.id, former)
    return tuple(listed.values())


def _former(one: FormerIdentity, current: TeacherIdentity, label: LabelSettings) -> Former:
    return Former(
        answer_settings=AnswerSettings.from_label(one.identity, label),
        omitted_settings=one.omitted_settings,
        name=_name(one.identity),
        current=_name(current) if current.content_sha256 else None,
    )


class FormerNames:
    """The former names that are valid in one dataset."""

    def __init__(self, former: Sequence[Former], get_note: GetNote) -> None:
        self._get_note = get_note
        self._former = [
            one
            for one in former
            if one.current in (None, one.name) or get_note(_CLAIM + one.name) in (None, one.current)
        ]

    def valid_for(self, recipe: Mapping[str, Any]) -> list[Former]:
        """Return the former names that are valid for answers produced with this recipe."""
        return [one for one in self._former if one.applies_to(recipe)]

    def valid_for_journal(self, base: Location) -> list[Former]:
        """Return the former names that are valid for answers in the journal of the dataset in `base`."""
        return [one for one in self._former if one.applies_to(self._recipe_behind(one.answer_settings, base))]

    def _recipe_behind(self, answer_settings: AnswerSettings, base: Location) -> Mapping[str, Any]:
        """Return the recipe that asked with these settings; for a journal of 0.1, the recipe of its unfinished run."""
        known = self._get_note(_RECIPE_NOTE + answer_settings.id) or self._get_note(_OLD_RECIPE_NOTE)
        return _read_recipe(base) if known is None else dict(json.loads(known))


def claim_former_name(journal: Journal, former: Former, source: str) -> None:
    """Record which teacher claims a former name that was used, and log a warning the first time."""
    if former.current in (None, former.name) or journal.get_note(_CLAIM + former.name) is not None:
        return
    journal.set_note(_CLAIM + former.name, former.current)
    _LOG.warning(
        "%s: the answers are stored under an earlier name of this teacher and are reused. That name identified the weights "
        "less precisely: if the weights were edited after these answers were given, set another dataset.name.",
        source,
    )


def warn_if_plugin_code_changed(kind: str, newest: Manifest | None) -> None:
    """Warn if a plug-in teacher's code differs from the code that labelled the newest version.

    Its answers are kept: a teacher's code is not part of a request's key (plugins.py).
    """
    code = plugin_code_key(TEACHERS, kind).get("code")
    if newest is None or newest.teacher_code is None or newest.teacher_code == code:
        return
    _LOG.warning(
        "teacher.kind is %r: the code of this plug-in has changed since it labelled %s (%s then, %s now). Its answers are "
        "reused, because its identity is the same. If it now answers differently, change its TeacherIdentity "
        "(options_sha256), or set another dataset.name.",
        kind,
        newest.label,
        _describe(newest.teacher_code),
        _describe(code or {}),
    )


def _describe(code: Mapping[str, str]) -> str:
    name = f"{code.get('distribution', 'no distribution')} {code.get('version', '')}".rstrip()
    return f"{name}, sha256 {code['sha256'][:8]}…" if "sha256" in code else name


# ----------------------------------------------------------------------------------------------------------- the journal


def record_recipe(journal: Journal, answer_settings: AnswerSettings, recipe: Recipe) -> None:
    """Record the recipe of a run that is about to ask; of several with the same answer settings, the first one counts."""
    name = _RECIPE_NOTE + answer_settings.id
    if journal.get_note(name) is None or not journal.has_answers:
        journal.set_note(name, recipe.model_dump_json(by_alias=True))


def rename_journaled_answers(
    journal: Journal, former: Sequence[Former], shards: Callable[[], Iterator[Renaming]], base: Location
) -> None:
    """Give answers in the journal that are stored under a former name their current key.

    Args:
        journal: the journal of the dataset, which the caller has locked.
        former: the teacher's former names.
        shards: returns the plan's requests shard by shard, each as a function from answer settings to {key with them:
            current key}.
        base: the dataset's folder.
    """
    if not journal.has_answers:
        return
    if journal.get_note(_OLD_RECIPE_NOTE) is None:  # now, since this run's recipe takes its place
        journal.set_note(_OLD_RECIPE_NOTE, json.dumps(_read_recipe(base), default=str))
    for one in FormerNames(former, journal.get_note).valid_for_journal(base):
        renamed = sum(journal.rename(names(one.answer_settings)) for names in shards())
        if renamed:
            claim_former_name(journal, one, f"the journal of {base}")


Renaming = Callable[[AnswerSettings], Mapping[str, str]]  # answer settings -> {key with those settings: current key}


def _read_recipe(base: Location) -> Mapping[str, Any]:
    """Return the recipe of the version that was started but not finished, else of the newest finished version."""
    started, finished = started_versions(base), versions(base)
    if started and started[-1] not in finished:
        file = base / version_label(started[-1]) / RECIPE_FILE
        read = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
        return read if isinstance(read, dict) else {}
    return open_dataset(base).manifest.recipe if finished else {}


# ---------------------------------------------------------------------------------------------------------------- pieces


def _name(identity: TeacherIdentity) -> str:
    """Return a teacher's name without the parts that a recipe sets (seed, options)."""
    return content_hash(replace(identity, seed=None, options_sha256=None).shaping())


def _agrees(recipe: Mapping[str, Any], setting: OmittedSetting) -> bool:
    """Whether a recipe has a setting at this value; also True if the recipe has no such section, as in a merged version."""
    *parents, last = setting.path.split(".")
    section: Any = recipe or None
    for parent in parents:
        section = section.get(parent) if isinstance(section, Mapping) else None
    return not isinstance(section, Mapping) or section.get(last, setting.default) == setting.value
