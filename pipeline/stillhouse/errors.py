"""Every error that Stillhouse raises on purpose.

    StillhouseError
     ├─ UsageError                the recipe or the arguments are wrong; nothing was sent       (exit status 2)
     │   ├─ RecipeError           a key, a value, or two settings that contradict each other
     │   │   └─ RecipeFaults      several of these
     │   ├─ PromptError           a prompt file, a row of it, or a template
     │   └─ TemplateRefused       a model's chat template cannot render a conversation
     ├─ TeacherUnavailable        the teacher is not there, or not the one the recipe names
     │   └─ TeacherRefused        it answers nobody so: a wrong key, no money, a setting that it does not know
     ├─ BudgetSpent               the next request could pass label.budget_usd; what was answered is kept
     ├─ StorageFailed             the disk is full or cannot be written; what was durable is kept
     ├─ PrefectUnavailable        no Prefect server is configured, it does not answer, or it refuses
     ├─ WorkerLost                a worker or its machine is gone, again and again; what was answered is kept
     ├─ WorkerFailed              a worker raised an error of its own code or of a plug-in; trying again would not help
     ├─ DatasetError
     │   ├─ DatasetMissing        no such dataset or version
     │   ├─ DatasetRefused        it is there, but does not fit: checksum, format version, tokenizer
     │   ├─ DatasetBusy           another run is writing this dataset
     │   └─ PushFailed            the hub refuses it, or cannot be reached
     ├─ ReportBusy                another run is measuring for this report
     └─ StudentError
         ├─ StudentBusy           another run is training this recipe's students, or fine-tuning this teacher
         ├─ StudentMissing        no finished student of this recipe
         └─ TrainingError         the student cannot be built or trained as asked

A message names the setting, its value and the mend. What is not in this tree is a defect of ours and keeps its
traceback.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


class StillhouseError(Exception):
    """Base of the tree; `exit_status` is what the command line ends with."""

    exit_status = 1


class UsageError(StillhouseError):
    """The recipe or the arguments are wrong; nothing was sent and nothing written."""

    exit_status = 2


class RecipeError(UsageError):
    """A key, a value, or two settings that contradict each other."""


class RecipeFaults(RecipeError):
    """Several faults of one recipe, told at once."""

    def __init__(self, message: str, faults: Sequence[StillhouseError] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults)

    @classmethod
    def of(cls, faults: Sequence[StillhouseError]) -> RecipeFaults:
        """One error with the messages of several."""
        lines = [f"  {line}" for error in faults for line in str(error).splitlines()]
        return cls("\n".join([f"the recipe has {len(faults)} faults:", *lines]), faults)


class PromptError(UsageError):
    """A prompt file, a row of it, or a template cannot be used."""


class TemplateRefused(UsageError):
    """A model's chat template cannot render a conversation; where one row is at fault, that row alone is left out."""


class TeacherUnavailable(StillhouseError):
    """The teacher is not there, or is not the one that the recipe names."""


class TeacherRefused(TeacherUnavailable):
    """It answers nobody with this key, model and settings: trying again would change nothing."""


class BudgetSpent(StillhouseError):
    """The next request could cost more than is left of `label.budget_usd`."""


class StorageFailed(StillhouseError):
    """The disk is full, or a file cannot be written; what was durable before is kept."""


class PrefectUnavailable(StillhouseError):
    """No Prefect server is configured, it does not answer, or it refuses what it is given."""


class WorkerLost(StillhouseError):
    """What labelled a part of a dataset ended without a word; what it had answered is kept."""


class WorkerFailed(StillhouseError):
    """What labelled a part of a dataset raised an error that is not in this tree, of which only the words came back."""


class DatasetError(StillhouseError):
    """Base of what can be wrong with a dataset on disk."""


class DatasetMissing(DatasetError):
    """There is no such dataset or version."""


class DatasetRefused(DatasetError):
    """The dataset is there but does not fit: a checksum, its format version, its tokenizer."""


class Busy(StillhouseError):
    """Base of what is wrong where another run holds for writing what this one would write."""

    def __init__(self, message: str, holder: str = "another run") -> None:
        super().__init__(message)
        self.holder = holder  # which run, in a few words


class DatasetBusy(Busy, DatasetError):
    """Another run holds this dataset for writing."""


class PushFailed(DatasetError):
    """The hub refuses a dataset, or cannot be reached; what it held before is as it was."""


class StudentError(StillhouseError):
    """Base of what can be wrong with a student."""


class StudentMissing(StudentError):
    """There is no finished student of this recipe."""


class StudentBusy(Busy, StudentError):
    """Another run is training this recipe's students, or fine-tuning this teacher."""


class ReportBusy(Busy):
    """Another run is measuring for this report."""


class TrainingError(StudentError):
    """The student cannot be built or trained as asked."""


def error_named(kind: str, message: str) -> StillhouseError | None:
    """The error of this tree of that name; None where there is none."""
    found = globals().get(kind)
    return found(message) if isinstance(found, type) and issubclass(found, StillhouseError) else None


def error_told(text: str) -> StillhouseError | None:
    """The error of this tree that a text tells of, as Python writes it ("BudgetSpent: ..."); None where it tells of none.

    For what was raised in another process, of which only words came back.
    """
    for found in re.finditer(r"\b(\w+): ", text):
        if (error := error_named(found[1], text[found.end() :])) is not None:
            return error
    return None
