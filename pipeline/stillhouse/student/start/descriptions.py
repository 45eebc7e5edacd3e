"""A description of a student's start in words, for its card.

    start_in_words(init, start=read_start(folder))
    # 16 of the teacher's 30 layers (0, 1, 2, 6, ...), those whose removal costs most (leave-one-out on 64 rows of
    # words/v001), with its embeddings, norms and head, and 8,824 of its 49,152 tokens

start.json records which parts of the teacher were kept; without it the settings say how many were requested.
"""

from __future__ import annotations

from stillhouse.dataset.card import settings_line
from stillhouse.formatting import escape_table_cell, without_local_folders
from stillhouse.recipe.student_init import Choose, InitSettings, Layers, StackLayers
from stillhouse.student.start.record import Method, StackStart, Start
from stillhouse.text import enumerated

REASONS: dict[Method, str] = {
    "leave-one-out": "those whose removal costs most (leave-one-out{rows})",
    "greedy": "chosen by greedy removal{rows}",
    "block-influence": "those that change their input most (block influence{rows})",
}
_ASKED: dict[Choose, str] = {
    "importance": "chosen by importance",
    "greedy": "chosen by greedy removal",
    "leave-one-out": "chosen by leave-one-out",
    "block-influence": "chosen by block influence",
    "even": "evenly spaced",
}
_WIDTHS = {"feed_forward": "feed-forward neurons", "heads": "attention heads", "hidden": "hidden channels"}


def start_in_words(init: InitSettings, *, encoder_decoder: bool = False, start: Start | None = None) -> str:
    """Describe what a student started from.

    Args:
        init: the settings of the start.
        encoder_decoder: whether the student has two stacks of layers.
        start: the record in start.json; None if the folder has none.
    """
    parts = _parts(start)
    if init.from_ is not None:
        layers = _both(init, start, encoder_decoder=encoder_decoder)
        return f"{layers}, with {enumerated(['its embeddings, norms and head', *parts])}"
    if init.model is not None:
        revision = f", revision {init.revision}" if init.revision else ""
        having = f", with {enumerated(parts)}" if parts else ""
        return f"the model `{escape_table_cell(without_local_folders(init.model))}`{revision}{having}"
    given = dict(init.config or {})
    kind = given.pop("model_type", None)
    shape = f"a {kind} of its own config" if kind else "the teacher's config, changed"
    return f"random weights, {shape}: {escape_table_cell(settings_line(given) or 'defaults')}"


def rows_in_words(rows: int, dataset: str | None) -> str:
    """Describe the rows measured on: " on 64 rows of words/v001"; empty if they are not known."""
    if not rows:
        return ""
    return f" on {rows:,} row{'s' if rows > 1 else ''}" + (f" of {escape_table_cell(dataset)}" if dataset else "")


def _both(init: InitSettings, start: Start | None, *, encoder_decoder: bool) -> str:
    """Describe which layers of all stacks were copied."""
    asked = init.layers
    made = {one.stack: one for one in start.stacks} if start is not None else {}
    words = []
    for stack in ("encoder", "decoder") if encoder_decoder else ("model",):
        of = getattr(asked, stack) if isinstance(asked, StackLayers) else asked
        one = made.get(stack)
        if one is None or start is None:
            words.append(_asked(of, stack, init.choose))
        else:
            words.append(_kept(one, of, rows_in_words(start.rows, start.dataset)))
    return ", and ".join(words)


def _asked(of: Layers | None, stack: str, choose: Choose) -> str:
    """Describe which layers of a stack the settings request."""
    layers = _layers(stack)
    if of is None:
        return f"all of the teacher's {layers}"
    if isinstance(of, int):
        return f"{of} of the teacher's {layers}, {_ASKED[choose]}"
    return f"the teacher's {layers} {_listed(of)}"


def _kept(one: StackStart, of: Layers | None, rows: str) -> str:
    """Describe which layers of a stack were kept, and why."""
    layers = f"{one.depth} {_layers(one.stack)}"
    if len(one.kept) == one.depth:
        return f"all of the teacher's {layers}"
    words = f"{len(one.kept)} of the teacher's {layers} ({_listed(one.kept)})"
    if one.method is not None:
        return f"{words}, {REASONS[one.method].format(rows=rows)}"
    return f"{words}, evenly spaced" if isinstance(of, int) else words


def _parts(start: Start | None) -> list[str]:
    """Describe the widths and the tokens that were kept, if not all were."""
    if start is None:
        return []
    counts = [(name, start.widths.get(key)) for key, name in _WIDTHS.items()]
    counts.append(("tokens", start.vocabulary))
    return [f"{of[0]:,} of its {of[1]:,} {name}" for name, of in counts if of is not None and of[0] < of[1]]


def _layers(stack: str) -> str:
    return "layers" if stack == "model" else f"{stack} layers"


def _listed(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers))
