"""An outcome of the teacher as the record that is stored."""

from __future__ import annotations

from stillhouse.records import Completion, Prompt, Rejection, utc_now
from stillhouse.teachers.base import Answer, Outcome


def record_of(
    key: str,
    prompt: Prompt,
    sample: int,
    outcome: Outcome,
    *,
    teacher: str,
    attempts: int = 1,
    lost_usd: float = 0.0,
) -> Completion | Rejection:
    """Return an outcome as a completion, or as a rejection with the answer that came with it, if any.

    Args:
        key: the request's key.
        prompt, sample: of the request.
        outcome: what came of it.
        teacher: the model's name.
        attempts: attempts at this request.
        lost_usd: dollars billed for attempts without an answer.
    """
    answer = outcome if isinstance(outcome, Answer) else outcome.answer
    completion = None
    if answer is not None:
        completion = Completion(
            id=key,
            prompt=prompt,
            sample=sample,
            text=answer.text,
            finish_reason=answer.finish_reason,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            teacher=teacher,
            created_at=utc_now(),
            cost_usd=answer.cost_usd,
            trace=answer.trace,
            reasoning=answer.reasoning,
            token_logprobs=answer.token_logprobs,
        )
    if isinstance(outcome, Answer):
        assert completion is not None
        return completion
    return Rejection(
        id=key,
        prompt=prompt,
        sample=sample,
        stage="teacher",
        reason=outcome.reason,
        detail=outcome.detail,
        attempts=max(outcome.attempts, attempts),
        completion=completion,
        cost_usd=lost_usd or None,
    )
