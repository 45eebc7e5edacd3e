"""All faults of a recipe told at once, so that a user mends it in one go.

tell_all(partial(check_prompts, recipe), partial(check_student, recipe))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from stillhouse.errors import RecipeFaults, StillhouseError, TeacherUnavailable, UsageError

Check = Callable[[], object]


def tell_all(*checks: Check) -> None:
    """Make every check, and raise what they refused together.

    Raises:
        UsageError: one check refused; it is its own error.
        RecipeFaults: several did, with the message of each.
        TeacherUnavailable: a model is not there, and the recipe has no other fault.
    """
    raise_all(error for check in checks for error in faults_of(check))


def faults_of(check: Check) -> Sequence[StillhouseError]:
    """What a check refuses the recipe with: nothing, an error, or several."""
    try:
        check()
    except RecipeFaults as error:
        return error.faults or (error,)
    except (UsageError, TeacherUnavailable) as error:
        return (error,)
    return ()


def raise_all(found: Iterable[StillhouseError]) -> None:
    """Raise what was found: one error as it is, several as one, a model that is not there only where nothing else is wrong.

    Raises:
        UsageError, RecipeFaults, TeacherUnavailable: as `tell_all` does.
    """
    faults: dict[str, StillhouseError] = {}
    for error in found:  # two checks may meet the same fault, which is told once
        faults.setdefault(str(error), error)
    wrong = [error for error in faults.values() if isinstance(error, UsageError)]
    if len(wrong) > 1:
        raise RecipeFaults.of(wrong)
    if faults:
        raise wrong[0] if wrong else next(iter(faults.values()))
