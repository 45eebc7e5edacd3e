"""MiniLLM's gradient against a sum over every completion of a tiny vocabulary."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.errors import RecipeError
from stillhouse.recipe.student import LossSettings, StudentSettings
from stillhouse.student.losses import minillm
from stillhouse.student.losses.base import SparseLabels, WrittenTokens
from stillhouse.student.training.objective import load_objective

pytestmark = pytest.mark.usefixtures("float64")

TOKENS, LENGTH = 3, 3
Prefix = tuple[int, ...]
Table = dict[Prefix, Tensor]  # log-probabilities of the next token after each prefix: (TOKENS,)
PREFIXES = [prefix for length in range(LENGTH) for prefix in itertools.product(range(TOKENS), repeat=length)]


def tables(seed: int) -> tuple[Tensor, Table, Table]:
    """Weights of a student that has a row of logits for each prefix, that student, and a teacher."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(len(PREFIXES), TOKENS, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = 2 * torch.randn(len(PREFIXES), TOKENS, generator=generator, dtype=torch.float64)
    return weights, table(weights), table(teacher)


def table(logits: Tensor) -> Table:
    return dict(zip(PREFIXES, logits.log_softmax(dim=-1), strict=True))


def completions() -> Iterator[Prefix]:
    yield from itertools.product(range(TOKENS), repeat=LENGTH)


def logprobs(model: Table, completion: Prefix) -> Tensor:
    """Log-probabilities of the tokens of a completion: (LENGTH,)."""
    return torch.stack([model[completion[:t]][completion[t]] for t in range(LENGTH)])


def mixed(student: Table, teacher: Table, share: float) -> Table:
    return {
        prefix: (share * teacher[prefix].exp() + (1 - share) * student[prefix].exp()).log().detach()
        for prefix in PREFIXES
    }


def gradient_of_loss(seed: int, share: float, *, length_normalised: bool, clip: float = 0.2) -> Tensor:
    """The mean gradient of the loss of one completion, over all completions that the mixture may write."""
    weights, student, teacher = tables(seed)
    wrote = mixed(student, teacher, share)
    objective = load_objective(
        student_settings(kind="minillm", length_normalised=length_normalised, clip=clip, cross_entropy_weight=0)
    )
    total = torch.zeros((), dtype=torch.float64)
    for completion in completions():
        under_student, under_teacher = (logprobs(model, completion).detach() for model in (student, teacher))
        advantages = minillm.advantages(
            under_teacher.numpy(), under_student.numpy(), teacher_share=share, length_normalised=length_normalised
        )
        labels = SparseLabels(
            token_ids=torch.arange(TOKENS).repeat(LENGTH, 1),
            logprobs=torch.stack([teacher[completion[:t]] for t in range(LENGTH)]),
            tail_logprob=torch.full((LENGTH,), -torch.inf, dtype=torch.float64),
            written=WrittenTokens(under_student, torch.from_numpy(advantages)),
        )
        logits = torch.stack([student[completion[:t]] for t in range(LENGTH)])
        probability = logprobs(wrote, completion).sum().exp()
        total = total + probability * objective(logits, torch.tensor(completion), labels)
    (gradient,) = torch.autograd.grad(total, weights)
    return gradient


def gradient_of_paper(seed: int, share: float, *, length_normalised: bool) -> Tensor:
    """Equation 8 of arXiv 2306.08543, with the weight of each token left out of the exact part."""
    weights, student, teacher = tables(seed)
    wrote = mixed(student, teacher, share)
    total = torch.zeros((), dtype=torch.float64)
    for completion in completions():
        q, p, mixture = (logprobs(model, completion) for model in (student, teacher, wrote))
        rewards = (p - q).detach()
        surrogate = torch.zeros((), dtype=torch.float64)
        for t in range(LENGTH):
            at = completion[:t]
            single = (student[at].exp() * (teacher[at] - student[at])).sum()
            following = [rewards[later] for later in range(t + 1, LENGTH)]
            reward = sum(following, start=torch.zeros((), dtype=torch.float64))
            if length_normalised and following:
                reward = reward / len(following)
            weight = (q[t] - mixture[t]).exp().detach()
            surrogate = surrogate - single - weight * reward * q[t]
        total = total + mixture.sum().exp() * surrogate
    (gradient,) = torch.autograd.grad(total, weights)
    return gradient


def gradient_of_kl(seed: int) -> Tensor:
    """Of KL(student || teacher) between the distributions over whole completions."""
    weights, student, teacher = tables(seed)
    total = torch.zeros((), dtype=torch.float64)
    for completion in completions():
        q, p = (logprobs(model, completion).sum() for model in (student, teacher))
        total = total + q.exp() * (q - p)
    (gradient,) = torch.autograd.grad(total, weights)
    return gradient


def student_settings(**loss: object) -> StudentSettings:
    return StudentSettings.model_validate(
        {"init": {"from": "teacher", "layers": 2}, "data": [{"dataset": "words-rollouts"}], "loss": loss}
    )


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_its_mean_gradient_is_that_of_the_kl_between_completions(seed: int) -> None:
    found = gradient_of_loss(seed, 0.0, length_normalised=False)
    torch.testing.assert_close(found, gradient_of_kl(seed), rtol=1e-9, atol=1e-12)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.2, 0.7]), st.booleans())
def test_its_mean_gradient_is_that_of_the_paper(seed: int, share: float, length_normalised: bool) -> None:
    found = gradient_of_loss(seed, share, length_normalised=length_normalised)
    expected = gradient_of_paper(seed, share, length_normalised=length_normalised)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=6), st.data(), st.booleans())
def test_the_advantages_are_those_of_a_loop(teacher: list[float], data: st.DataObject, mean: bool) -> None:
    student = data.draw(st.lists(st.floats(-20, 0), min_size=len(teacher), max_size=len(teacher)))
    share = data.draw(st.sampled_from([0.0, 0.3]))
    found = minillm.advantages(np.array(teacher), np.array(student), teacher_share=share, length_normalised=mean)
    for t, advantage in enumerate(found):
        later = [teacher[place] - student[place] for place in range(t + 1, len(teacher))]
        reward = sum(later) / (len(later) if mean and later else 1)
        weight = math.exp(student[t]) / (share * math.exp(teacher[t]) + (1 - share) * math.exp(student[t]))
        assert advantage == pytest.approx(weight * reward, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("advantage", "ratio", "moves"), [(1.0, 1.5, False), (1.0, 0.5, True), (-1.0, 0.5, False)])
def test_a_token_that_has_moved_far_enough_moves_no_further(advantage: float, ratio: float, moves: bool) -> None:
    logits = torch.tensor([[0.3, -0.2, 0.1]], dtype=torch.float64, requires_grad=True)
    then = logits.detach().log_softmax(dim=-1)[:, 1] - math.log(ratio)
    written = WrittenTokens(then, torch.tensor([advantage], dtype=torch.float64))
    loss = minillm.long_part(logits, torch.tensor([1]), written, clip=0.2)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert bool(gradient.abs().sum() > 0) is moves
    bound = min(max(ratio, 0.8), 1.2)
    torch.testing.assert_close(loss, -torch.tensor([min(ratio * advantage, bound * advantage)], dtype=torch.float64))


def test_rewards_need_temperature_1() -> None:
    with pytest.raises(RecipeError, match=r"student\.loss\.temperature is 2\.0: minillm .* temperature 1"):
        load_objective(student_settings(kind="minillm", temperature=2.0))
    with pytest.raises(RecipeError, match=r"student\.loss\.clp: .* Did you mean 'clip'"):
        load_objective(student_settings(kind="minillm", clp=1))
    assert LossSettings(kind="minillm").options == {}
