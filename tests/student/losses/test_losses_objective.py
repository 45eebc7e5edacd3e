"""The whole objective: weights and temperature, a loss's options, and which labels it may be taken from."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import stillhouse.student.losses
from stillhouse.errors import RecipeError
from stillhouse.plugins import built_in_kinds
from stillhouse.recipe.student import LossSettings, StudentSettings
from stillhouse.student.losses.base import DenseLabels, SparseLabels
from stillhouse.student.training.objective import Labels, Objective, load_divergence, load_objective
from tests.student.losses.test_losses import FORMULAS, VOCABULARY, coarse, labels_of, logits, outcomes, tempered

KINDS = sorted(FORMULAS.keys() - {"minillm"})  # that one is of temperature 1 and stored labels: test_minillm.py

pytestmark = pytest.mark.numeric

TARGETS = torch.tensor([0, 3, 7])
NEAR_EQUALITY = {  # the gradient against that of the forward KL
    "forward-kl": 1.0,
    "reverse-kl": 1.0,
    "adaptive-kl": 1.0,
    "generalized-jsd": 0.25,
    "skewed-kl": 0.81,
    "skewed-reverse-kl": 0.81,
}


def student(mode: str = "white-box", **loss: object) -> StudentSettings:
    return StudentSettings.model_validate({"init": {"model": "x"}, "mode": mode, "loss": loss})


def gradient(objective: Objective, labels: SparseLabels, seed: int) -> torch.Tensor:
    learning = logits(seed, 1.0).requires_grad_()
    (found,) = torch.autograd.grad(objective(learning, TARGETS, labels), learning)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_objective_is_the_formula_of_its_docstring(kind: str) -> None:
    teacher, learning = logits(11), logits(12)
    labels = labels_of(teacher, 5)
    objective = load_objective(student(kind=kind, temperature=2.0, weight=0.7, cross_entropy_weight=0.3), "top-k")
    p, q = (tempered(coarse(z.softmax(-1), labels.token_ids), 2.0) for z in (teacher, learning))
    cross_entropy = -sum(math.log(float(learning.softmax(-1)[i, t])) for i, t in enumerate(TARGETS.tolist()))
    expected = 0.7 * 4.0 * float(FORMULAS[kind](p, q, 5).sum()) + 0.3 * cross_entropy
    assert float(objective(learning, TARGETS, labels)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("labels", ["top-k", "dense", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_held_out_row_is_judged_by_the_loss_and_by_plain_figures_at_temperature_1(kind: str, labels: str) -> None:
    teacher, learning = logits(11), logits(12)
    objective = load_objective(student(kind=kind, temperature=2.0, weight=0.7, cross_entropy_weight=0.3))
    top = labels_of(teacher, 5)
    p, q = (z.softmax(-1) for z in (teacher, learning))
    if labels == "top-k":
        p, q = (coarse(side, top.token_ids) for side in (p, q))
    given: Labels | None = {"top-k": top, "dense": DenseLabels(teacher), "none": None}[labels]
    cross_entropy = -sum(math.log(float(learning.softmax(-1)[i, t])) for i, t in enumerate(TARGETS.tolist()))
    kl = sum(
        a * math.log(a / b)
        for one, other in zip(p.tolist(), q.tolist(), strict=True)
        for a, b in zip(one, other, strict=True)
    )
    listed = p.shape[-1] - (labels == "top-k")
    loss = 0.7 * 4.0 * float(FORMULAS[kind](tempered(p, 2.0), tempered(q, 2.0), listed).sum()) + 0.3 * cross_entropy
    if given is None:
        objective, loss, kl = replace(objective, divergence=None), 0.3 * cross_entropy, math.nan
    found = objective.held_out_metrics(learning, TARGETS, given).tolist()
    assert found == pytest.approx([loss, kl, cross_entropy], rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("kind", KINDS)
def test_temperature_squared_keeps_the_size_of_the_gradient_of_all_but_total_variation(kind: str) -> None:
    labels = labels_of(logits(1, 1.0), VOCABULARY)
    hot, hotter = (
        gradient(load_objective(student(kind=kind, temperature=t, cross_entropy_weight=0.0)), labels, 2)
        for t in (200.0, 400.0)
    )
    torch.testing.assert_close(hotter, hot * (2.0 if kind == "total-variation" else 1.0), rtol=0.05, atol=1e-3)
    if kind in NEAR_EQUALITY:
        kl = gradient(load_objective(student(temperature=400.0, cross_entropy_weight=0.0)), labels, 2)
        torch.testing.assert_close(hotter, kl * NEAR_EQUALITY[kind], rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_zero_leaves_cross_entropy_alone(kind: str) -> None:
    objective = load_objective(student(kind=kind, temperature=3.0, weight=0.0))
    expected = torch.nn.functional.cross_entropy(logits(12), TARGETS, reduction="sum")
    assert float(objective(logits(12), TARGETS, labels_of(logits(11), 5))) == pytest.approx(float(expected))


NO_LABELS = {
    "none": None,
    "no position": SparseLabels(torch.empty(0, 0, dtype=torch.int64), torch.empty(0, 0), torch.empty(0)),
    "sparse": labels_of(logits(11), 5)[slice(0, 0)],
    "dense": DenseLabels(logits(11)[:0]),
}


@pytest.mark.parametrize("mode", ["white-box", "black-box"])
@pytest.mark.parametrize("labels", NO_LABELS)
def test_a_process_without_a_held_out_row_adds_nothing_to_what_the_others_measure(labels: str, mode: str) -> None:
    """Whatever labels come with no rows: 0 each, and no NaN that would be everybody's mean."""
    objective = load_objective(student(mode, temperature=2.0))
    nothing = objective.held_out_metrics(logits(12)[:0], TARGETS[:0], NO_LABELS[labels])
    assert nothing.tolist() == [0.0, 0.0, 0.0]
    own = objective.held_out_metrics(logits(12), TARGETS, labels_of(logits(11), 5))
    assert torch.equal(own + nothing, own)


def test_a_black_box_student_learns_by_cross_entropy_alone() -> None:
    objective = load_objective(student("black-box", weight=5.0, cross_entropy_weight=0.1), "sampled")
    expected = torch.nn.functional.cross_entropy(logits(12), TARGETS, reduction="sum")
    assert float(objective(logits(12), TARGETS, None)) == pytest.approx(float(expected))


def test_a_white_box_objective_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="needs soft labels"):
        load_objective(student())(logits(1), TARGETS, None)


@pytest.mark.parametrize(
    ("loss", "complaint"),
    [
        ({"kind": "skewed-kl", "alhpa": 0.2}, r"student\.loss\.alhpa: skewed-kl has no such setting\. .*'alpha'"),
        ({"kind": "generalized-jsd", "temprature": 2}, r"student\.loss\.temprature: .* Did you mean 'temperature'"),
        ({"kind": "forward-kl", "temprature": 2}, r"Did you mean 'temperature'"),
        ({"kind": "forward-kl", "beta": 0.5}, r"student\.loss\.beta: forward-kl has no such setting"),
        ({"kind": "skewed-kl", "alpha": 1}, r"student\.loss\.alpha is 1: it must be less than 1"),
        ({"kind": "skewed-reverse-kl", "alpha": 0}, r"student\.loss\.alpha is 0: it must be greater than 0"),
        ({"kind": "generalized-jsd", "beta": "half"}, r"student\.loss\.beta is 'half': it must be a valid number"),
        ({"kind": "adaptive-kl", "head_mass": float("nan")}, r"student\.loss\.head_mass is nan: it must be"),
        ({"kind": "skewed-lk"}, r"Did you mean 'skewed-kl'"),
    ],
)
@pytest.mark.parametrize("mode", ["white-box", "black-box"])
def test_a_wrong_option_is_named_with_the_nearest_right_one(loss: dict[str, object], complaint: str, mode: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        load_objective(student(mode, **loss))


def test_options_reach_the_divergence_and_stay_in_the_recipe() -> None:
    p, q = outcomes(logits(1), logits(2), 5)
    settings = LossSettings.model_validate({"kind": "skewed-kl", "alpha": 0.4})
    torch.testing.assert_close(load_divergence(settings)(p, q), FORMULAS["skewed-kl"](p.exp(), q.exp(), 5, alpha=0.4))
    assert LossSettings.model_validate(settings.model_dump()) == settings
    assert settings.model_dump()["alpha"] == 0.4


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_forward_kl_is_taken_from_draws(kind: str) -> None:
    assert load_objective(student(kind=kind), "top-k").divergence is not None
    assert load_objective(student(kind=kind), "dense").divergence is not None
    if kind == "forward-kl":
        assert load_objective(student(kind=kind), "sampled").divergence is not None
        return
    fix = rf"'{kind}': .* sampled labels.* Set label\.soft\.encoding to top-k, or student\.loss\.kind to forward-kl\.$"
    with pytest.raises(RecipeError, match=fix):
        load_objective(student(kind=kind), "sampled")


@pytest.mark.parametrize("kind", KINDS)
def test_draws_bias_every_gradient_but_that_of_the_forward_kl(kind: str) -> None:
    """Why the others are refused: the mean over many draws is not the gradient of the full distribution."""
    generator, draws = torch.Generator().manual_seed(0), 20_000
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    learning = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64).log()
    drawn = torch.multinomial(p, draws * 4, replacement=True, generator=generator).view(draws, 4)
    p_hat = torch.nn.functional.one_hot(drawn, 3).double().mean(1)  # (draws, 3)
    divergence = load_divergence(LossSettings(kind=kind))

    def mean_gradient(teacher: torch.Tensor) -> torch.Tensor:
        leaf = learning.clone().requires_grad_()
        student_side = leaf.log_softmax(-1).expand_as(teacher)
        return torch.autograd.grad(divergence(teacher.log(), student_side).mean(), leaf)[0]

    true = mean_gradient(p[None])
    bias = float((mean_gradient(p_hat) - true).norm() / true.norm())
    assert bias < 0.005 if kind == "forward-kl" else bias > 0.03


def test_a_loss_of_another_package_is_found_with_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme_losses.py").write_text(
        "from stillhouse.settings import Settings\n"
        "ENCODINGS = ('top-k',)\n"
        "class Options(Settings):\n"
        "    power: int = 2\n"
        "def distance(teacher, student, *, power):\n"
        "    return (teacher.exp() - student.exp()).abs().pow(power).sum(-1)\n"
    )
    (tmp_path / "acme_plain.py").write_text("def distance(teacher, student):\n    return (teacher - student).sum(-1)\n")
    folder = tmp_path / "acme-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[stillhouse.losses]\nacme = acme_losses:distance\nplain = acme_plain:distance\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("acme_losses", "acme_plain"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    p, q = outcomes(logits(1), logits(2), 5)
    found = load_divergence(LossSettings.model_validate({"kind": "acme", "power": 3}), "top-k")
    torch.testing.assert_close(found(p, q), (p.exp() - q.exp()).abs().pow(3).sum(-1))
    with pytest.raises(RecipeError, match=r"student\.loss\.powr: acme has no such setting\. Did you mean 'power'"):
        load_divergence(LossSettings.model_validate({"kind": "acme", "powr": 3}))
    with pytest.raises(RecipeError, match=r"'acme': .* sampled labels \(label\.soft\.encoding\)"):
        load_divergence(LossSettings.model_validate({"kind": "acme"}), "sampled")
    plain = load_divergence(LossSettings.model_validate({"kind": "plain"}), "sampled")  # says nothing: takes all
    torch.testing.assert_close(plain(p, q), (p - q).sum(-1))
    assert "acme" not in built_in_kinds(stillhouse.student.losses)
