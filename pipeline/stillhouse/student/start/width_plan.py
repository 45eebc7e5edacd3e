"""The student's widths: `student.init.width` in numbers, or an error that lists the possible numbers.

    check_widths(config, width)              # from the teacher's config alone
    student_sizes(config, width)             # 384 hidden channels, 768 neurons, 6 heads in 2 groups of 64

A number is used as is, or refused. A share is rounded to the nearest possible width: heads come in whole groups that share
a key-value head, and if a config's class requires the heads to divide the hidden size (Llama, Gemma 2 and 3), the hidden
size is a multiple of the heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

from stillhouse.errors import RecipeError
from stillhouse.recipe.student_init import Width, WidthSettings
from stillhouse.student.start.axes import KEY, Sizes, refuse_unknown_parameters, sizes_of, with_sizes


def check_widths(config: PretrainedConfig, width: WidthSettings) -> None:
    """Refuse widths that cannot be cut out of the teacher, from its config alone.

    Raises:
        RecipeError: the teacher is of a family that cannot be cut, or it does not have these widths.
    """
    refuse_unknown_parameters(config)
    student_sizes(config, width)


def student_sizes(config: PretrainedConfig, width: WidthSettings) -> Sizes:
    """Return the student's widths.

    Args:
        config: the teacher's config.
        width: the widths that the recipe requests.

    Raises:
        RecipeError: the teacher is too narrow, or a width does not fit the others.
    """
    whole = sizes_of(config)
    for name, given, of in (
        ("feed_forward", width.feed_forward, whole.neurons),
        ("heads", width.heads, whole.heads),
        ("hidden", width.hidden, whole.hidden),
    ):
        if isinstance(given, int) and given > of:
            raise RecipeError(
                f"the teacher has only {of}",
                setting=f"{KEY}.{name}",
                value=given,
                fix=f"set it to a number from 1 to {of}, or to a share such as 0.5",
            )
    neurons = whole.neurons if width.feed_forward is None else _nearest(width.feed_forward, range(1, whole.neurons + 1))
    dividing = _heads_divide_hidden(config, whole)
    heads = _heads(width, whole, config.model_type if dividing else None)
    step = heads if dividing else 1
    hidden = whole.hidden
    if width.hidden is not None:
        hidden = _nearest(width.hidden, range(step, whole.hidden + 1, step))
        if isinstance(width.hidden, int) and hidden != width.hidden:
            raise RecipeError(
                f"the hidden size of a {config.model_type} must be a multiple of its number of heads, {heads}",
                setting=f"{KEY}.hidden",
                value=width.hidden,
                fix=f"set it to {_around(width.hidden, step, whole.hidden)}, or change the number of heads",
            )
    return replace(whole, neurons=neurons, heads=heads, groups=heads // whole.heads_of_a_group, hidden=hidden)


def _heads(width: WidthSettings, whole: Sizes, dividing: str | None) -> int:
    """Return the student's number of heads; `dividing` is the model's type if they must divide the hidden size."""
    if width.heads is None:
        return whole.heads
    groups = [*range(whole.heads_of_a_group, whole.heads + 1, whole.heads_of_a_group)]
    if isinstance(width.heads, int) and width.heads not in groups:
        shared = f"{whole.groups} key-value head{'s' if whole.groups > 1 else ''}"
        raise RecipeError(
            f"the teacher's {whole.heads} heads share {shared}",
            setting=f"{KEY}.heads",
            value=width.heads,
            fix=f"set it to {_listed(groups)}",
        )
    hidden = whole.hidden if width.hidden is None else width.hidden
    if dividing is None or isinstance(hidden, float):  # a share is rounded to a size that the heads divide
        return _nearest(width.heads, groups)
    fitting = [heads for heads in groups if hidden % heads == 0]
    if not fitting or (isinstance(width.heads, int) and width.heads not in fitting):
        heads = width.heads if isinstance(width.heads, int) else _nearest(width.heads, groups)
        fixes = [f"set heads to {_listed(fitting)}"] if fitting else []
        fixes.append(f"set hidden to {_around(hidden, heads, whole.hidden)}")
        raise RecipeError(
            f"the hidden size of a {dividing} ({hidden} here) must be a multiple of its number of heads",
            setting=f"{KEY}.heads",
            value=width.heads,
            fix=", or ".join(fixes),
        )
    return _nearest(width.heads, fitting)


def _nearest(given: Width, allowed: Sequence[int]) -> int:
    """Return the allowed width nearest to a number, or to a share of the largest; the larger one of a tie."""
    wanted = given * allowed[-1] if isinstance(given, float) else given
    return min(allowed, key=lambda one: (abs(one - wanted), -one))


def _heads_divide_hidden(config: PretrainedConfig, whole: Sizes) -> bool:
    """Whether the config's class refuses a hidden size that the heads do not divide."""
    if whole.heads == 1:
        return False
    try:
        with_sizes(config, replace(whole, hidden=whole.heads + 1))
    except (ValueError, StrictDataclassError):
        return True
    return False


def _around(given: int, step: int, most: int) -> str:
    """Return the multiples on both sides of a number that are in range."""
    below = given - given % step
    return _listed([one for one in (below, below + step) if 0 < one <= most])


def _listed(numbers: Sequence[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last
