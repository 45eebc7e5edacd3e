"""What is known of the rounds of an on-policy student: kept in its card, shown in the report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TextDistance:
    """A student's distance from its teacher on some rows: means over their tokens, in nats per token or shares 0..1."""

    tokens: int
    forward_kl: float  # KL(teacher || student)
    reverse_kl: float  # KL(student || teacher)
    entropy: float  # of the student, over its whole vocabulary
    overlap: float  # share of the teacher's k most likely tokens that are among the student's
    teacher_mass: float  # of the teacher on the tokens of the overlap
    student_mass: float  # of the student on them


@dataclass(frozen=True)
class Written:
    """The rollouts of a round; shares are 0..1 of them."""

    rollouts: int
    tokens: float  # mean length, end token included
    repeats: float  # repeat themselves
    cut: float  # reach the token limit
    empty: float  # have no text

    @property
    def broken(self) -> float:
        """The share that repeats itself or is empty."""
        return self.repeats + self.empty


@dataclass(frozen=True)
class RoundHealth:
    """The student that wrote a round's rollouts, before it learnt from them.

    A distance is None if the labels are not top-k, or if there is no such row.
    """

    written: Written
    teacher_text: TextDistance | None = None  # on held-out rows of the teacher's dataset
    own_text: TextDistance | None = None  # on the rollouts


@dataclass(frozen=True)
class RoundSeconds:
    """Where the time of a round went, in seconds."""

    writing: float
    scoring: float
    learning: float  # the optimizer steps
    rest: float  # loading and writing models, and measuring

    @property
    def total(self) -> float:
        return self.writing + self.scoring + self.learning + self.rest

    def __str__(self) -> str:
        parts = f"{self.writing:.0f} s writing, {self.scoring:.0f} s scoring, {self.learning:.0f} s learning"
        return f"{self.total:.0f} s: {parts}, {self.rest / self.total:.0%} the rest"


@dataclass(frozen=True)
class RoundFigures:
    """A finished round."""

    number: int  # from 1
    dataset: str  # the scored rollouts, name/v001
    health: RoundHealth
    held_out_kl: float | None  # of the student that the round made: forward KL, nats per token
    kept: bool  # whether that student was kept in the end
    seconds: RoundSeconds | None = None  # None: several runs made it

    def __str__(self) -> str:
        written, own = self.health.written, self.health.own_text
        parts = [f"round {self.number}"]
        if self.held_out_kl is not None:
            parts.append(f"held-out KL {self.held_out_kl:.2f} after it")
        if own is not None:
            parts.append(
                f"on the student's own text before it KL {own.forward_kl:.2f}, reverse KL {own.reverse_kl:.2f}"
            )
            parts.append(f"overlap {own.overlap:.0%}, entropy {own.entropy:.2f}")
        parts.append(
            f"{written.tokens:.0f} tokens, {written.repeats:.0%} repeat themselves, {written.cut:.0%} were cut off"
        )
        if self.seconds is not None:
            parts.append(str(self.seconds))
        return "; ".join(parts)
