"""Which layers are kept, for each way to choose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from stillhouse.recipe.student_init import InitSettings
from stillhouse.student.start.choice import LayerMeasurer, choose_layers
from stillhouse.student.start.importance import MeasuredTeacher, block_influence, leave_one_out
from stillhouse.student.start.record import StackStart
from stillhouse.student.start.stacks import Kept, evenly_spaced
from stillhouse.student.start.store import ImportanceStore
from tests.student.start.test_importance import batches_of, model_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return model_of("llama")  # 5 layers


@pytest.fixture(scope="module")
def t5() -> PreTrainedModel:
    return model_of("t5")  # 3 layers, and 4 of the decoder


def chosen(
    model: PreTrainedModel, folder: Path, layers: Any, choose: str = "importance"
) -> tuple[dict[str, tuple[int, ...]], dict[str, StackStart]]:
    """The layers that are kept of each stack, and the record of the choice."""
    init = InitSettings.model_validate({"from": "teacher", "layers": layers, "choose": choose})
    measurer = LayerMeasurer(lambda: MeasuredTeacher(model, batches_of(model)), ImportanceStore(folder))
    kept, records = choose_layers(init, model.config, measurer)
    assert {one.stack.name: one.layers for one in kept} == {one.stack: one.kept for one in records}
    return {one.stack.name: one.layers for one in kept}, {one.stack: one for one in records}


def best(scores: tuple[float, ...], count: int) -> tuple[int, ...]:
    return tuple(sorted(sorted(range(len(scores)), key=lambda layer: -scores[layer])[:count]))


@pytest.mark.parametrize("choose", ["leave-one-out", "block-influence"])
def test_the_layers_of_the_highest_figures_are_kept(choose: str, llama: PreTrainedModel, tmp_path: Path) -> None:
    measure = leave_one_out if choose == "leave-one-out" else block_influence
    scores = measure(MeasuredTeacher(llama, batches_of(llama)))["model"]
    for count in range(1, 6):
        kept, records = chosen(llama, tmp_path, count, choose)
        assert kept["model"] == best(scores, count)
        assert records["model"].method == choose
        assert records["model"].scores == pytest.approx(scores)


def test_greedy_choices_are_nested_in_whatever_order_they_are_asked_for(llama: PreTrainedModel, tmp_path: Path) -> None:
    kept = {count: chosen(llama, tmp_path / "downwards", count, "greedy")[0]["model"] for count in (5, 4, 3, 2, 1)}
    assert [len(kept[count]) for count in (5, 4, 3, 2, 1)] == [5, 4, 3, 2, 1]
    for count in (4, 3, 2, 1):
        assert set(kept[count]) < set(kept[count + 1])
    for count in (1, 2, 3, 4, 5):  # the first of them leaves out layers that the others keep
        assert chosen(llama, tmp_path / "upwards", count, "greedy")[0]["model"] == kept[count]


def test_a_greedy_choice_begins_with_the_layer_that_costs_least_alone(llama: PreTrainedModel, tmp_path: Path) -> None:
    kept, records = chosen(llama, tmp_path, 4, "greedy")
    scores = records["model"].scores
    assert kept["model"] == tuple(layer for layer in range(5) if layer != scores.index(min(scores)))


@pytest.mark.parametrize("choose", ["greedy", "leave-one-out", "block-influence", "importance"])
def test_the_choice_is_deterministic(choose: str, llama: PreTrainedModel, tmp_path: Path) -> None:
    first, again = (chosen(llama, tmp_path / one, 3, choose) for one in ("first", "again"))
    assert first == again
    assert (tmp_path / "first/layers.json").read_bytes() == (tmp_path / "again/layers.json").read_bytes()


def test_evenly_spaced_and_listed_layers_are_not_measured(llama: PreTrainedModel, tmp_path: Path) -> None:
    for layers, choose, kept in ((3, "even", (0, 2, 4)), ([1, 2], "importance", (1, 2))):
        found, records = chosen(llama, tmp_path, layers, choose)
        assert found == {"model": kept}
        assert records["model"] == StackStart(stack="model", depth=5, kept=kept)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("choose", ["greedy", "leave-one-out", "block-influence"])
def test_a_number_is_taken_of_both_stacks(choose: str, t5: PreTrainedModel, tmp_path: Path) -> None:
    kept, records = chosen(t5, tmp_path, 2, choose)
    assert {name: len(of) for name, of in kept.items()} == {"encoder": 2, "decoder": 2}
    assert {name: (one.depth, one.method, len(one.scores)) for name, one in records.items()} == {
        "encoder": (3, choose, 3),
        "decoder": (4, choose, 4),
    }


def test_of_a_stack_that_is_not_named_all_layers_stay(t5: PreTrainedModel, tmp_path: Path) -> None:
    kept, records = chosen(t5, tmp_path, {"encoder": 2}, "greedy")
    assert len(kept["encoder"]) == 2
    assert records["encoder"].method == "greedy"
    assert records["decoder"] == StackStart(stack="decoder", depth=4, kept=(0, 1, 2, 3))


def test_a_listed_stack_stays_as_it_is_beside_a_chosen_one(t5: PreTrainedModel, tmp_path: Path) -> None:
    kept, records = chosen(t5, tmp_path, {"encoder": [0, 2], "decoder": 3}, "leave-one-out")
    assert kept["encoder"] == (0, 2)
    assert records["encoder"] == StackStart(stack="encoder", depth=3, kept=(0, 2))
    assert kept["decoder"] == best(records["decoder"].scores, 3)


def test_importance_is_block_influence(llama: PreTrainedModel, tmp_path: Path) -> None:
    kept, records = chosen(llama, tmp_path, 3)
    assert records["model"].method == "block-influence"
    assert kept == chosen(llama, tmp_path / "named", 3, "block-influence")[0]


@given(depth=st.integers(2, 80), data=st.data())
def test_evenly_spaced_layers_are_as_many_as_asked_for(depth: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, depth))
    assert len(set(evenly_spaced(count, depth))) == count


def test_without_a_ruler_layers_are_evenly_spaced(llama: PreTrainedModel) -> None:
    init = InitSettings.model_validate({"from": "teacher", "layers": 2, "choose": "even"})
    kept, _ = choose_layers(init, llama.config, None)
    assert kept == [Kept(kept[0].stack, (0, 4))]
