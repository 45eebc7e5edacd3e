"""Data classes of a report: the measured figures with their uncertainty, independent of how they are rendered.

The modules of measures/ fill them; report/report.py renders them as Markdown, HTML and JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from stillhouse.student.finished.rounds import RoundFigures


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % confidence interval (percentile bootstrap over prompts)."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class DifferenceFromTeacher:
    """A model's figures minus its teacher's, paired: same prompts, same resamples. Differences of shares are -1..1."""

    repeats: Interval
    cut: Interval
    empty: Interval
    copied: Interval
    length_ratio: Interval | None  # of the summed characters; None if the teacher wrote nothing in some resample


@dataclass(frozen=True)
class AnswerQuality:
    """Quality of one model's answers to the held-out prompts; shares are 0..1 of the prompts. See answer_quality.py."""

    repeats: Interval  # share of answers that repeat themselves
    cut: Interval  # share that reached the token limit
    empty: Interval  # share without any text
    copied: Interval  # share that is word for word a training answer to another prompt
    tokens: Interval | None  # mean length in tokens, end token included; None if the labels have no token counts
    from_teacher: DifferenceFromTeacher | None = None  # None for the teacher


@dataclass(frozen=True)
class ModelRow:
    """One row of the comparison table: one model on the held-out prompts.

    A quality figure is `None` if it is undefined (the teacher's divergence from itself is 0, not None) or if the teacher
    gave no log-probabilities. A teacher that does not run on this machine has only the scores of its labels.
    """

    role: str  # "teacher", "untrained student", "black-box student", "white-box student", "white-box student, int8"
    model: str  # a folder or a hub id
    parameters: int | None = None
    megabytes: float | None = None  # of the weights on disk, 10^6 bytes
    peak_memory_megabytes: float | None = None  # of the model's process (CPU) or of the device allocator (GPU)
    tokens_per_second: Interval | None = None  # generated tokens, batch size 1
    latency_p50_ms: float | None = None  # of a whole answer, batch size 1
    latency_p95_ms: float | None = None
    kl_per_token: Interval | None = None  # KL(teacher || this model), nats per completion token
    agreement: Interval | None = None  # share of positions with the same most likely token as the teacher, 0..1
    perplexity: Interval | None = None  # on the teacher's text
    reference_score: Interval | None = None  # token F1 of the answers shown, 0..1; None if the recipe has metrics
    is_int8: bool = False  # the quantised copy of the model in the row above
    scores: dict[str, Interval] = field(default_factory=dict)  # keyed by the names of `Report.metrics`
    answer_quality: AnswerQuality | None = None  # None in reports of older versions
    lost_mass: Interval | None = (
        None  # share of the teacher's mass on tokens missing from this model, 0..1; None: none missing
    )


@dataclass(frozen=True)
class MetricColumn:
    """A task metric and how to format it."""

    name: str
    lower_is_better: bool
    percent: bool  # show 0.5 as 50 %
    digits: int  # decimal places


@dataclass(frozen=True)
class Difference:
    """The student's scores minus another model's, paired: same prompts, same resamples."""

    role: str  # of the other model
    scores: dict[str, Interval]  # keyed by the names of `Report.metrics`


@dataclass(frozen=True)
class Answers:
    """One held-out prompt and each model's answer, in the order of `Report.models`."""

    prompt: str
    reference: str | None
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Curve:
    """One student's training curve."""

    role: str
    steps: tuple[int, ...]
    loss: tuple[float, ...]
    evaluation_steps: tuple[int, ...]
    evaluation_loss: tuple[float, ...]


@dataclass(frozen=True)
class LayerImportance:
    """Importance score of each layer of one stack of the teacher, and the layers that the student keeps."""

    stack: str  # "encoder" or "decoder"; "model" for the only stack of a causal model
    method: str  # "leave-one-out", "greedy" (its scores are the leave-one-out scores), "block-influence"
    unit: str  # of the scores: "nats per token if removed", or "block influence"
    kept: tuple[int, ...]  # layer numbers, from 0
    scores: tuple[float, ...]  # one per layer of the teacher
    rows: int = 0  # rows that importance was measured on; 0: unknown
    dataset: str | None = None  # name/v001, the dataset of these rows


@dataclass(frozen=True)
class Overlap:
    """Overlap of the held-out prompts with the training prompts."""

    held_out: int  # number of prompts
    training: int  # number of prompts
    exact: tuple[str, ...]  # held-out prompts whose text is also a training prompt
    near: tuple[tuple[str, str, float], ...]  # (held-out, training, Jaccard similarity of word sets)
    threshold: float  # similarity from which a pair is a near duplicate


@dataclass(frozen=True)
class LabelSummary:
    """Summary of the labelled dataset, from its manifest."""

    dataset: str  # name/version
    train_rows: int
    validation_rows: int
    rejected: dict[str, int]  # reason -> rows
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    soft: str | None  # "top-k, k = 32", or None for text only


@dataclass(frozen=True)
class Report:
    """All data that the report shows."""

    recipe: str
    created_at: str  # ISO 8601, UTC
    versions: dict[str, str]  # stillhouse, torch, transformers, python, and the machine
    labels: LabelSummary
    overlap: Overlap
    models: tuple[ModelRow, ...]
    answers: tuple[Answers, ...]
    curves: tuple[Curve, ...]
    recipe_yaml: str  # the resolved recipe
    notes: tuple[str, ...]  # how the figures were measured and how to read them
    key: str = ""  # hash of the dataset, students and settings behind the figures
    metrics: tuple[MetricColumn, ...] = ()  # of the task, the most important first
    differences: tuple[Difference, ...] = ()  # the student minus each other model
    kept: dict[str, Interval] = field(
        default_factory=dict
    )  # student's score / teacher's score, for metrics where higher is better
    starts: tuple[LayerImportance, ...] = ()  # importance of the teacher's layers, if the student's were chosen by it
    rounds: tuple[RoundFigures, ...] = ()  # of an on-policy student

    @property
    def student(self) -> ModelRow:
        """The recipe's student: the last model that is not a quantised copy."""
        return [row for row in self.models if not row.is_int8][-1]
