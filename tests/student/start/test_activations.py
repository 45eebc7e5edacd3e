"""What neurons, heads and channels do on rows, against the same figures computed row by row and part by part."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from stillhouse.student.start.activations import Activations, measure_activations
from stillhouse.student.start.axes import sizes_of
from tests.precision import in_float64
from tests.student.start.families import CONFIGS, arguments, make, some_rows

pytestmark = pytest.mark.numeric

SECOND = ("down_proj", "wo")
PROJECTION = ("o_proj", "o")


def brute_force(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """The same figures, one row at a time without padding, and one part at a time."""
    seen: dict[str, list[np.ndarray]] = defaultdict(list)
    modules: dict[str, Any] = dict(model.named_modules())
    wanted = {name for name in modules if name.endswith((*SECOND, *PROJECTION, "norm"))} - {
        name for name in modules if name.endswith(("q_norm", "k_norm"))
    }
    handles = [
        modules[name].register_forward_pre_hook(lambda _, given, name=name: seen[name].append(given[0][0].numpy()))
        for name in wanted
    ]
    with torch.no_grad():
        for batch in some_rows(model, sizes=(1, 1, 1, 1, 1)):
            model(**arguments(batch))
    for handle in handles:
        handle.remove()
    figures = {}
    for name, inputs in seen.items():
        rows = np.concatenate(inputs).astype(np.float64)  # (tokens, width)
        owner = name.rpartition(".")[0]
        if name.endswith(SECOND):
            figures[owner] = np.array([np.sqrt((activation**2).mean()) for activation in rows.T])
        elif name.endswith(PROJECTION):
            wide = sizes_of(model.config).head_dim
            outputs = [rows[:, first : first + wide] for first in range(0, rows.shape[1], wide)]
            figures[owner] = np.array([np.sqrt((np.linalg.norm(one, axis=1) ** 2).mean()) for one in outputs])
        else:
            figures[name] = ((rows / np.sqrt((rows**2).mean(1, keepdims=True))) ** 2).mean(0)
    return figures


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("sizes", [(5,), (2, 3), (1, 3, 1)])
@in_float64()
def test_figures_are_those_of_a_row_by_row_computation(family: str, sizes: tuple[int, ...]) -> None:
    model = make(family)
    measured = measure_activations(model, some_rows(model, sizes)).scores
    expected = brute_force(model)
    assert measured.keys() == expected.keys()
    for name, figures in expected.items():
        np.testing.assert_allclose(measured[name], figures, rtol=1e-9, err_msg=name)


def test_what_nothing_reads_counts_as_nothing() -> None:
    model = make("llama")
    layer = model.model.layers[1]
    layer.mlp.down_proj.weight.data[:, [3, 7]] = 0
    layer.self_attn.o_proj.weight.data[:, 16:24] = 0  # of the third head
    scores = measure_activations(model, some_rows(model)).scores
    assert np.flatnonzero(scores["model.layers.1.mlp"] == 0).tolist() == [3, 7]
    assert np.flatnonzero(scores["model.layers.1.self_attn"] == 0).tolist() == [2]


def test_the_same_rows_give_the_same_figures_again() -> None:
    model = make("llama")
    first, again = (measure_activations(model, some_rows(model)).scores for _ in range(2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert {figures.dtype for figures in first.values()} == {np.dtype(np.float32)}  # as they are kept


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = make("t5").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure_activations(model, some_rows(model))
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_they_are_kept_on_disk(tmp_path: Path) -> None:
    model = make("qwen3")
    measured = measure_activations(model, some_rows(model))
    measured.save(tmp_path / "activations.npz")
    loaded = Activations.load(tmp_path / "activations.npz")
    assert loaded.scores.keys() == measured.scores.keys()
    assert all(np.array_equal(loaded.scores[name], measured.scores[name]) for name in measured.scores)


@pytest.mark.parametrize("left", [0, 20, 2000])
def test_a_damaged_file_is_an_error(tmp_path: Path, left: int) -> None:
    model, file = make("llama"), tmp_path / "activations.npz"
    measure_activations(model, some_rows(model)).save(file)
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(ValueError, match="remove it"):
        Activations.load(file)


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Activations.load(tmp_path / "activations.npz")
