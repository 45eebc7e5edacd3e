"""The loss of a student and a teacher that learn in the same steps, against the dense formulas."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from stillhouse.models.layout import completion_logits, make_token_batch
from stillhouse.models.load import LanguageModel, load_language_model
from stillhouse.student.data.batches import collator
from stillhouse.student.data.rows import Example
from stillhouse.student.losses import reverse_kl
from stillhouse.student.training.along import StudentAndTeacher, TeacherAlong, teachers_log
from stillhouse.student.training.objective import Objective
from tests.conftest import make_tiny_model
from tests.encoder_decoders import tiny_t5

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]

PROMPTS, COMPLETIONS = [[5, 6, 7], [8, 9]], [[10, 11], [12, 13, 14, 1]]
TEMPERATURE, WEIGHT, CROSS_ENTROPY, HEARD = 2.0, 0.7, 0.3, 0.4


@pytest.fixture(scope="module", params=["causal", "encoder-decoder"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LanguageModel, LanguageModel]:
    """A student and a teacher in float64, with weights of their own."""
    folder = tmp_path_factory.mktemp("pair")
    make: Any = make_tiny_model if request.param == "causal" else partial(tiny_t5, dropout_rate=0.0)
    student, teacher = (
        load_language_model(make(folder / name, layers=n)) for name, n in (("student", 1), ("teacher", 2))
    )
    for lm in (student, teacher):
        lm.model.double()
    return student, teacher


def both_of(pair: tuple[LanguageModel, LanguageModel], heard: float = HEARD, chunk: int = 2) -> StudentAndTeacher:
    student, teacher = pair
    objective = Objective(reverse_kl.divergence, TEMPERATURE, WEIGHT, CROSS_ENTROPY)
    return StudentAndTeacher(student.model, objective, TeacherAlong(teacher.model, heard, None), chunk=chunk)


def batch_of(lm: LanguageModel) -> dict[str, torch.Tensor]:
    rows = [
        Example(np.array(prompt, dtype=np.int32), np.array(completion, dtype=np.int32), None)
        for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    return collator(lm.pad_id, lm.start_id)(rows)


def dense(pair: tuple[LanguageModel, LanguageModel], heard: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The student's loss and the teacher's, from whole logits."""
    student = pair[0]
    batch = make_token_batch(PROMPTS, COMPLETIONS, student.pad_id, student.start_id)
    s, t = (completion_logits(lm.model, batch) for lm in pair)
    targets = batch.targets
    q, p = (logits.div(TEMPERATURE).log_softmax(-1) for logits in (s, t.detach()))
    of_student = WEIGHT * TEMPERATURE**2 * (q.exp() * (q - p)).sum() + CROSS_ENTROPY * F.cross_entropy(
        s, targets, reduction="sum"
    )
    q, p = s.detach().log_softmax(-1), t.log_softmax(-1)
    of_teacher = F.cross_entropy(t, targets, reduction="sum") + heard * (q.exp() * (q - p)).sum()
    return of_student, of_teacher


@pytest.mark.parametrize("heard", [0.0, HEARD])
@pytest.mark.parametrize("chunk", [2, 512])
def test_the_loss_is_the_sum_of_both_and_no_gradient_crosses(
    pair: tuple[LanguageModel, LanguageModel], heard: float, chunk: int
) -> None:
    both = both_of(pair, heard, chunk).train()
    both.zero_grad()
    loss = both(**batch_of(pair[0]))
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in both.named_parameters() if weight.grad is not None}
    both.zero_grad()
    expected = dense(pair, heard)
    total = expected[0] + expected[1]
    total.backward()
    assert loss.item() == pytest.approx(total.item(), rel=1e-9)
    assert found.keys() == {name for name, _ in both.named_parameters()}
    for name, weight in both.named_parameters():
        assert weight.grad is not None
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-7, atol=1e-10)


def test_held_out_figures_have_the_teachers_cross_entropy(pair: tuple[LanguageModel, LanguageModel]) -> None:
    student = pair[0]
    both = both_of(pair).eval()
    with torch.no_grad():
        found = both(**batch_of(student))
        batch = make_token_batch(PROMPTS, COMPLETIONS, student.pad_id, student.start_id)
        s, t = (completion_logits(lm.model, batch) for lm in pair)
    kl = (t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum()
    own = F.cross_entropy(t, batch.targets, reduction="sum")
    assert found[1:].tolist() == pytest.approx(
        [float(kl), float(F.cross_entropy(s, batch.targets, reduction="sum")), float(own)], rel=1e-6
    )
    log = teachers_log([{"step": 1, "loss": 9.0}, {"step": 1, "eval_loss": 5.0, "eval_teacher_cross_entropy": 2.0}])
    assert log == [{"step": 1, "loss": 9.0}, {"step": 1, "eval_loss": 2.0, "eval_cross_entropy": 2.0}]


def test_a_checkpoint_holds_each_weight_once_and_both_come_back(
    pair: tuple[LanguageModel, LanguageModel], tmp_path: Path
) -> None:
    both = both_of(pair)
    file = tmp_path / "model.safetensors"
    save_file(both.state_dict(), file)
    expected = {name: weight.clone() for name, weight in both.named_parameters()}
    with torch.no_grad():
        for weight in both.parameters():
            weight.zero_()
    both.load_state_dict(load_file(file))
    assert expected
    assert all(torch.equal(expected[name], weight) for name, weight in both.named_parameters())


def test_the_teacher_has_a_learning_rate_of_its_own(pair: tuple[LanguageModel, LanguageModel]) -> None:
    both = both_of(pair)
    named = dict(both.named_parameters())
    half = len(named) // 2
    groups = [
        {"params": [*named.values()][:half], "lr": 1.0, "weight_decay": 0.1},
        {"params": [*named.values()][half:], "lr": 1.0, "weight_decay": 0.0},
    ]
    teachers = {id(one) for one in both.teacher.parameters()}
    parted = both.parameter_groups(groups, 0.5)
    assert sum(len(group["params"]) for group in parted) == len(named)
    for group in parted:
        for one in group["params"]:
            assert group["lr"] == (0.5 if id(one) in teachers else 1.0)
            assert group["weight_decay"] == (0.1 if any(one is other for other in groups[0]["params"]) else 0.0)
    assert {group["lr"] for group in both.parameter_groups(groups, None)} == {1.0}
