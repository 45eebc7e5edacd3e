"""Every error that Stillhouse raises on purpose.

    StillhouseError
     ├─ UsageError                the recipe or the arguments are wrong; nothing was sent       (exit status 2)
     │   ├─ RecipeError           a key, a value, or two settings that contradict each other
     │   │   └─ RecipeFaults      several of these
     │   ├─ PromptError           a prompt file, a row of it, or a template
     │   └─ TemplateRefused       a model's chat template cannot render a conversation
     ├─ TeacherUnavailable        the teacher cannot be reached, or is not the one the recipe names
     │   └─ TeacherRefused        it rejects every request: a wrong key, no credit, an unknown setting
     ├─ BudgetSpent               the next request could exceed label.budget_usd; answers so far are kept
     ├─ JobsPending               batch jobs are still at the provider; run again to collect them
     ├─ StorageFailed             the disk is full or cannot be written; data written before is safe
     ├─ PrefectUnavailable        no Prefect server is configured, it does not answer, or it rejects a request
     ├─ WorkerLost                a worker or its machine was lost repeatedly; answers so far are kept
     ├─ WorkerFailed              a worker raised an error of its own code or of a plug-in; a retry would not help
     ├─ DatasetError
     │   ├─ DatasetMissing        no such dataset or version
     │   ├─ DatasetRefused        it exists, but does not fit: checksum, format version, tokenizer
     │   ├─ DatasetBusy           another run is writing this dataset
     │   └─ PushFailed            the hub rejects it, or cannot be reached
     ├─ ReportBusy                another run is writing this report
     └─ StudentError
         ├─ StudentBusy           another run is training this recipe's students, or fine-tuning this teacher
         ├─ StudentMissing        no finished student of this recipe
         └─ TrainingError         the student cannot be built or trained as requested

An error carries what a user needs as fields, and its message is composed of them:

    >>> error = RecipeError("there is no such kind", setting="student.loss.kind", value="forward", fix="use forward-kl")
    >>> print(error)
    student.loss.kind is 'forward': there is no such kind. Use forward-kl.
    >>> error.setting, error.exit_status
    ('student.loss.kind', 2)

Errors that are not in this tree are defects and keep their traceback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

_NOT_GIVEN: Any = object()
_FIELDS = ("problem", "setting", "value", "fix", "_has_value")
_LONGEST_VALUE = 200  # characters in a message

AnyError = TypeVar("AnyError", bound="StillhouseError")


class StillhouseError(Exception):
    """Base of the tree; `exit_status` is the command line's.

    Args:
        problem: what is wrong, without the setting and its value; a clause without a full stop.
        setting: path of the setting in the recipe, an option (`--only`) or an environment variable.
        value: what the setting is; omit it where it must not be shown.
        fix: what to do, as an imperative without a full stop, or a question ("did you mean 'temperature'?").
    """

    exit_status = 1

    def __init__(
        self, problem: str, *, setting: str | None = None, value: Any = _NOT_GIVEN, fix: str | None = None
    ) -> None:
        super().__init__(_message(problem, setting, value, fix))
        self.problem, self.setting, self.fix = problem, setting, fix
        self.value = None if value is _NOT_GIVEN else value
        self._has_value = value is not _NOT_GIVEN

    def replace(self: AnyError, **changes: Any) -> AnyError:
        """Return the same error with other fields, such as `setting`."""
        fields = {"problem": self.problem, "setting": self.setting, "fix": self.fix}
        fields |= {"value": self.value} if self._has_value else {}
        made = type(self)(**fields | changes)
        made.__dict__ |= {name: value for name, value in self.__dict__.items() if name not in _FIELDS}  # holder, faults
        return made

    def within(self: AnyError, place: str) -> AnyError:
        """Return the same error with a message that begins with a place: "sweep, 16 layers: ..."."""
        made = _restore(type(self), f"{place}: {self}", self.__dict__)
        assert isinstance(made, type(self))
        return made

    def as_dict(self) -> dict[str, Any]:
        """Return the error as JSON values: kind, message, problem, setting, value and fix."""
        value = self.value if isinstance(self.value, str | int | float | bool | None) else _shown(self.value)
        fields = {"problem": self.problem, "setting": self.setting, "value": value, "fix": self.fix}
        return {"kind": type(self).__name__, "message": str(self), **fields}

    def __reduce__(self) -> tuple[Callable[..., StillhouseError], tuple[Any, ...]]:
        return _restore, (type(self), str(self), self.__dict__)  # to and from other processes


def _restore(kind: type[StillhouseError], message: str, fields: dict[str, Any]) -> StillhouseError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    error.__dict__.update(fields)
    return error


def _message(problem: str, setting: str | None, value: Any, fix: str | None) -> str:
    where = f"{setting} is {_shown(value)}: " if value is not _NOT_GIVEN else f"{setting}: "
    end = "" if problem.endswith((".", "?")) else "."
    advice = f"{end} {fix[0].upper()}{fix[1:]}{'' if fix.endswith('?') else '.'}" if fix else ""
    return f"{where if setting else ''}{problem}{advice}"


def _shown(value: Any) -> str:
    """A value as a recipe has it: null, true, 'text', 3."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "..."


class UsageError(StillhouseError):
    """The recipe or the arguments are wrong; nothing was sent and nothing written."""

    exit_status = 2


class RecipeError(UsageError):
    """A setting is unknown or has a wrong value, or two settings contradict each other."""


class RecipeFaults(RecipeError):
    """Several faults of one recipe; `faults` are the errors."""

    def __init__(self, problem: str, *, faults: Sequence[StillhouseError] = (), **fields: Any) -> None:
        super().__init__(problem, **fields)
        self.faults = tuple(faults)

    @classmethod
    def of(cls, faults: Sequence[StillhouseError]) -> RecipeFaults:
        """Return one error with the messages of several."""
        lines = [f"  {line}" for error in faults for line in str(error).splitlines()]
        return cls("\n".join([f"the recipe has {len(faults)} faults:", *lines]), faults=faults)


class PromptError(UsageError):
    """A prompt file, a row of it, or a template cannot be used."""


class TemplateRefused(UsageError):
    """A model's chat template cannot render a conversation; if one row is at fault, only that row is skipped."""


class TeacherUnavailable(StillhouseError):
    """The teacher cannot be reached or found, or is not the one that the recipe names."""


class TeacherRefused(TeacherUnavailable):
    """The teacher rejects every request with this key, model and settings: a retry would not help."""


class BudgetSpent(StillhouseError):
    """The next request could cost more than what is left of `label.budget_usd`."""


class JobsPending(StillhouseError):
    """Batch jobs are still at the provider, and the caller did not want to wait."""


class StorageFailed(StillhouseError):
    """The disk is full, or a file cannot be written; data written before is safe."""


class PrefectUnavailable(StillhouseError):
    """No Prefect server is configured, it does not answer, or it rejects a request."""


class WorkerLost(StillhouseError):
    """A worker ended without reporting an error; its answers are kept."""


class WorkerFailed(StillhouseError):
    """A worker raised an error that is not in this tree; only its message is known."""


class DatasetError(StillhouseError):
    """Base of errors about a dataset on disk."""


class DatasetMissing(DatasetError):
    """The dataset or version does not exist."""


class DatasetRefused(DatasetError):
    """The dataset exists but does not fit: a checksum, its format version, its tokenizer."""


class Busy(StillhouseError):
    """Base of errors about a lock that another run holds; `holder` describes that run."""

    def __init__(self, problem: str, holder: str = "another run", **fields: Any) -> None:
        super().__init__(problem, **fields)
        self.holder = holder


class DatasetBusy(Busy, DatasetError):
    """Another run is writing this dataset."""


class PushFailed(DatasetError):
    """The hub rejects a dataset or cannot be reached; the repository is unchanged."""


class StudentError(StillhouseError):
    """Base of errors about a student."""


class StudentMissing(StudentError):
    """The recipe has no finished student."""


class StudentBusy(Busy, StudentError):
    """Another run is training this recipe's students, or fine-tuning this teacher."""


class ReportBusy(Busy):
    """Another run is writing this report."""


class TrainingError(StudentError):
    """The student cannot be built or trained as requested."""


def error_from(fields: dict[str, Any]) -> StillhouseError | None:
    """Return the error that another process reported as `StillhouseError.as_dict`; None if its kind is unknown."""
    found = globals().get(str(fields.get("kind")))
    if not isinstance(found, type) or not issubclass(found, StillhouseError):
        return None
    error = _restore(found, str(fields.get("message")), found("").__dict__)
    error.problem, error.setting, error.fix = fields.get("problem", ""), fields.get("setting"), fields.get("fix")
    error.value, error._has_value = fields.get("value"), fields.get("value") is not None
    return error
