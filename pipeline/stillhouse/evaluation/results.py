"""The nouns of a report: what was measured, with its uncertainty, and nothing about how it is drawn.

`measure.py` fills them, `report.py` draws them as Markdown, HTML and JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % confidence interval (percentile bootstrap over prompts)."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class FromTeacher:
    """One model's answers less its teacher's, on the same prompts, resampled together; shares are differences, -1..1."""

    repeats: Interval
    cut: Interval
    empty: Interval
    copied: Interval
    length_ratio: Interval | None  # of the summed characters; None where the teacher wrote next to nothing


@dataclass(frozen=True)
class AnswerQuality:
    """What one model's answers to the held-out prompts look like; shares are 0..1 of the prompts. See answer_quality.py."""

    repeats: Interval  # share of answers that repeat themselves
    cut: Interval  # share that ran into the token limit
    empty: Interval  # share without any text
    copied: Interval  # share that is word for word a training answer to another prompt
    tokens: Interval | None  # mean length, the end token included; None where labels were not counted
    from_teacher: FromTeacher | None = None  # None for the teacher


@dataclass(frozen=True)
class ModelRow:
    """One line of the comparison: one model on the held-out prompts.

    Quality is `None` where it has no meaning (the teacher's divergence from itself is 0, not None) or where the
    teacher gave no log-probabilities. A teacher that does not run here has only the scores of its labels.
    """

    role: str  # "teacher", "untrained student", "black-box student", "white-box student", "white-box student, int8"
    model: str  # a folder or a hub id
    parameters: int | None = None
    megabytes: float | None = None  # of the weights on disk, 10^6 bytes
    peak_memory_megabytes: float | None = None  # of the process that ran it (CPU) or of the device allocator (GPU)
    tokens_per_second: Interval | None = None  # generated tokens, one prompt at a time
    latency_p50_ms: float | None = None  # a whole answer, one prompt at a time
    latency_p95_ms: float | None = None
    kl_per_token: Interval | None = None  # KL(teacher || this model), nats a completion token
    agreement: Interval | None = None  # share of positions with the teacher's most likely token, 0..1
    perplexity: Interval | None = None  # on the teacher's text
    reference_score: Interval | None = None  # token F1 of the shown answers, 0..1; None where the recipe has metrics
    is_int8: bool = False  # the quantised copy of the model in the row before
    scores: dict[str, Interval] = field(default_factory=dict)  # by the names of `Report.metrics`
    answer_quality: AnswerQuality | None = None  # None in reports made before it was measured
    lost_mass: Interval | None = (
        None  # share of the teacher's mass on tokens that this model lacks, 0..1; None: has all
    )


@dataclass(frozen=True)
class MetricColumn:
    """A metric of the task, as it is shown."""

    name: str
    lower_is_better: bool
    percent: bool  # 0.5 is 50 %
    digits: int


@dataclass(frozen=True)
class Difference:
    """The student's scores less another model's, on the same prompts, resampled together."""

    role: str  # the other's
    scores: dict[str, Interval]  # by the names of `Report.metrics`


@dataclass(frozen=True)
class Answers:
    """One held-out prompt, with what each model wrote, in the order of `Report.models`."""

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
    """What each layer of one stack of the teacher is worth, and which of them the student was made of."""

    stack: str  # "encoder" or "decoder"; "model" for the one of a causal model
    method: str  # "leave-one-out", "greedy" (whose scores are those of leave-one-out), "block-influence"
    unit: str  # of the scores: "nats a token when left out", or "block influence"
    kept: tuple[int, ...]  # layers, from 0
    scores: tuple[float, ...]  # one a layer of the teacher
    rows: int = 0  # that were measured; 0: not known
    dataset: str | None = None  # name/v001, whose rows these are


@dataclass(frozen=True)
class Overlap:
    """How far the held-out prompts stand apart from the training prompts."""

    held_out: int
    training: int
    exact: tuple[str, ...]  # held-out prompts whose text is also a training prompt
    near: tuple[tuple[str, str, float], ...]  # (held-out, training, Jaccard similarity of word sets)
    threshold: float  # pairs at or above this similarity count as near


@dataclass(frozen=True)
class LabelSummary:
    """What labelling left behind, from the dataset's manifest."""

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
    """Everything that the report shows."""

    recipe: str
    created_at: str  # ISO 8601, UTC
    versions: dict[str, str]  # stillhouse, torch, transformers, python, and the machine
    labels: LabelSummary
    overlap: Overlap
    models: tuple[ModelRow, ...]
    answers: tuple[Answers, ...]
    curves: tuple[Curve, ...]
    recipe_yaml: str  # the resolved recipe
    notes: tuple[str, ...]  # what a reader must know to believe the figures
    key: str = ""  # names the dataset, the students and the settings that the figures stand for
    metrics: tuple[MetricColumn, ...] = ()  # of the task, the most important first
    differences: tuple[Difference, ...] = ()  # the student from each other model
    kept: dict[str, Interval] = field(
        default_factory=dict
    )  # score of the student / of the teacher, where higher is better
    starts: tuple[LayerImportance, ...] = ()  # of the student's layers, where they were chosen by what was measured

    @property
    def student(self) -> ModelRow:
        """The model that the recipe is about: the last one that is no quantised copy."""
        return [row for row in self.models if not row.is_int8][-1]
