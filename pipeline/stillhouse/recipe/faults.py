"""Report all faults of a recipe at once, so that a user can fix them in one go.

run_checks(partial(check_prompts, recipe), partial(check_student, recipe))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from stillhouse.errors import RecipeFaults, StillhouseError, TeacherUnavailable, UsageError

Check = Callable[[], object]


def run_checks(*checks: Check) -> None:
    """Run every check, and raise their errors together.

    Raises:
        UsageError: exactly one fault was found; this is the check's error.
        RecipeFaults: several faults were found; it has the message of each.
        TeacherUnavailable: a model cannot be found, and the recipe has no other fault.
    """
    raise_all(error for check in checks for error in faults_of(check))


def faults_of(check: Check) -> Sequence[StillhouseError]:
    """Run a check and return the faults that it raises, if any."""
    try:
        check()
    except RecipeFaults as error:
        return error.faults or (error,)
    except (UsageError, TeacherUnavailable) as error:
        return (error,)
    return ()


def raise_all(found: Iterable[StillhouseError]) -> None:
    """Raise the errors of `found`: a single one unchanged, several as one; a missing model only if nothing else is wrong.

    Raises:
        UsageError: exactly one fault was found.
        RecipeFaults: several faults were found.
        TeacherUnavailable: a model cannot be found, and there is no other fault.
    """
    faults: dict[str, StillhouseError] = {}
    for error in found:  # several checks may find the same fault, which is reported once
        faults.setdefault(str(error), error)
    wrong = [error for error in faults.values() if isinstance(error, UsageError)]
    if len(wrong) > 1:
        raise RecipeFaults.of(wrong)
    if faults:
        raise wrong[0] if wrong else next(iter(faults.values()))
