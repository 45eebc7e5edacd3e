"""Which widths there can be: numbers and shares, and what is refused before any weights are loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CohereConfig, GPT2Config, LlamaConfig, MixtralConfig, PretrainedConfig, T5Config

from stillhouse.errors import RecipeError
from stillhouse.recipe.student_init import WidthSettings
from stillhouse.student.start import axes
from stillhouse.student.start.axes import sizes_of, with_sizes
from stillhouse.student.start.width_plan import check_widths, student_sizes
from tests.conftest import make_tiny_model
from tests.student.start.families import CONFIGS
from tests.student.starts import Make, refused, start

__all__ = ["start"]  # a fixture


def demo() -> PretrainedConfig:
    """The demo teacher's widths."""
    return LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3, num_hidden_layers=1
    )


def t5() -> PretrainedConfig:
    return T5Config(d_model=512, d_ff=2048, d_kv=64, num_heads=8, num_layers=1)


@pytest.mark.parametrize(
    ("config", "width", "expected"),  # hidden, neurons, heads, groups
    [
        (demo, {"feed_forward": 0.5}, (576, 768, 9, 3)),
        (demo, {"feed_forward": 1000, "heads": 6, "hidden": 384}, (384, 1000, 6, 2)),
        (demo, {"feed_forward": 0.00001}, (576, 1, 9, 3)),
        (demo, {"heads": 0.5}, (576, 1536, 6, 2)),  # 4.5 is as near to 3 as to 6
        (demo, {"heads": 0.1}, (576, 1536, 3, 1)),
        (demo, {"hidden": 0.89}, (513, 1536, 9, 3)),  # 512.64, and 9 divides 513
        (demo, {"heads": 6, "hidden": 0.89}, (510, 1536, 6, 2)),
        (demo, {"heads": 1.0, "hidden": 1.0, "feed_forward": 1.0}, (576, 1536, 9, 3)),
        (demo, {"heads": 9, "hidden": 576}, (576, 1536, 9, 3)),
        (t5, {"heads": 5, "hidden": 0.7, "feed_forward": 0.3}, (358, 614, 5, 5)),
        (t5, {"hidden": 301}, (301, 2048, 8, 8)),
    ],
)
def test_widths_in_numbers(
    config: Callable[[], PretrainedConfig], width: dict[str, Any], expected: tuple[int, ...]
) -> None:
    sizes = student_sizes(config(), WidthSettings(**width))
    assert (sizes.hidden, sizes.neurons, sizes.heads, sizes.groups, sizes.head_dim) == (*expected, 64)
    check_widths(config(), WidthSettings(**width))
    assert sizes_of(with_sizes(config(), sizes)) == sizes


@given(
    family=st.sampled_from([*CONFIGS]),
    shares=st.lists(st.floats(0.001, 1.0), min_size=3, max_size=3),
)
def test_of_every_share_there_is_a_model(family: str, shares: list[float]) -> None:
    config = CONFIGS[family]()
    width = WidthSettings(feed_forward=shares[0], heads=shares[1], hidden=shares[2])
    sizes, whole = student_sizes(config, width), sizes_of(config)
    assert sizes_of(with_sizes(config, sizes)) == sizes
    assert sizes.heads % whole.heads_of_a_group == 0
    assert 1 <= sizes.neurons <= whole.neurons and 1 <= sizes.heads <= whole.heads and 1 <= sizes.hidden <= whole.hidden


@pytest.mark.parametrize(
    ("config", "width", "said"),
    [
        (demo, {"feed_forward": 1537}, ["feed_forward is 1537", "only 1536", "a number from 1 to 1536"]),
        (demo, {"hidden": 577}, ["hidden is 577", "only 576"]),
        (demo, {"heads": 10}, ["heads is 10", "only 9"]),
        (demo, {"heads": 4}, ["heads is 4", "9 heads share 3 key-value heads", "Set it to 3, 6 or 9"]),
        (demo, {"hidden": 512}, ["hidden is 512", "a llama", "heads, 9", "Set it to 504 or 513"]),
        (demo, {"hidden": 575}, ["hidden is 575", "Set it to 567 or 576"]),
        (demo, {"hidden": 5}, ["hidden is 5", "Set it to 9"]),
        (demo, {"heads": 6, "hidden": 512}, ["heads is 6", "(512 here)", "Set hidden to 510 or 516"]),
        (demo, {"heads": 6, "hidden": 9}, ["heads is 6", "(9 here)", "Set heads to 3 or 9, or set hidden to 6 or 12"]),
        (demo, {"heads": 0.7, "hidden": 511}, ["heads is 0.7", "(511 here)", "Set hidden to 510 or 516"]),
        (t5, {"heads": 9}, ["heads is 9", "only 8"]),
    ],
)
def test_widths_that_there_cannot_be(
    config: Callable[[], PretrainedConfig], width: dict[str, Any], said: list[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        check_widths(config(), WidthSettings(**width))
    for part in ["student.init.width", *said]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            GPT2Config(n_layer=1),
            ["type gpt2 (its parameter transformer.wte.weight cannot be cut), and only the widths"],
        ),
        (MixtralConfig(num_hidden_layers=1), ["type mixtral", "mlp.gate.weight"]),
        (
            CohereConfig(num_hidden_layers=1),
            ["type cohere, and only the widths"],
        ),  # known names, and norms that subtract the mean
    ],
)
def test_other_families_are_refused_by_name(config: PretrainedConfig, said: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        check_widths(config, WidthSettings(hidden=0.5))
    for part in [*said, "llama", "umt5", "Remove student.init.width"]:
        assert part in str(caught.value)


def test_an_unknown_parameter_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(axes._AXES, "q_norm")  # type: ignore[arg-type]
    with pytest.raises(
        RecipeError, match=r"this qwen3 has the parameter model.layers.0.self_attn.q_norm.weight, which"
    ):
        check_widths(CONFIGS["qwen3"](), WidthSettings(hidden=0.5))


def test_a_parameter_of_an_unknown_shape_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(axes._AXES, "k_norm", (axes.Axis.HEADS,))  # type: ignore[index]
    with pytest.raises(RecipeError, match=r"model.layers.0.self_attn.k_norm.weight of shape \[8\]"):
        check_widths(CONFIGS["qwen3"](), WidthSettings(hidden=0.5))


def test_a_recipe_is_refused_before_weights_are_loaded(start: Make, tmp_path: Any) -> None:
    teacher = make_tiny_model(tmp_path / "teacher")
    (tmp_path / "teacher" / "model.safetensors").write_bytes(b"no weights")
    said = refused(start({"from": "teacher", "width": {"heads": 3}}, teacher))
    expected = "student.init.width.heads is 3: the teacher's 4 heads share 2 key-value heads. Set it to 2 or 4."
    assert said == expected
