"""Cut a narrower student out of the teacher's matrices: the most active neurons, heads and channels.

    activations = measure_activations(teacher, batches)
    student, widths = cut_widths(copied, width, activations, kept)    # {"heads": (6, 9)}

Neurons are chosen for each layer, and so are heads, in whole groups that share a key-value head. In a T5 stack whose layers
share one table of relative positions, all layers keep the same heads, chosen by the sum of their shares. Hidden channels
are chosen once for the whole model, both stacks of a T5 included, because they share the embedding. The kept parts stay in
their order.

Correction of the scales that depend on the hidden size, d in the teacher and e in the student:

- A norm divides by the root mean square over channels, which differs over fewer channels. Its weight is multiplied by the
  root of the mean, over the kept channels, of the measured mean square of x_i / rms(x): where the residual stream equals
  the teacher's, its outputs then have the teacher's size on average. (Not for each token: no weight can do that.)
- T5 with a tied head multiplies hidden states by d^-0.5 before the head: the last norm is multiplied by (e / d)^0.5.
- Gemma multiplies its embedding by d^0.5: the embedding's rows are multiplied by (d / e)^0.5, and if they are the head's as
  well, the last norm by the inverse. Embedding and head stay tied.

The contribution of the removed parts is not compensated: training does that. The scales of the attention depend on the
channels of a head, which do not change. If all channels are kept nothing is multiplied, and a student with all of the
teacher's widths is bit-identical to the teacher.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.errors import TrainingError
from stillhouse.models.head import logit_factor
from stillhouse.recipe.student_init import WidthSettings
from stillhouse.student.start.activations import Activations
from stillhouse.student.start.axes import FAMILIES, Axis, Sizes, axes_of, sizes_of, with_sizes
from stillhouse.student.start.layers import untie_head
from stillhouse.student.start.stacks import Kept, weights_for_layers
from stillhouse.student.start.width_plan import student_sizes

_LAST_NORMS = ("model.norm", "decoder.final_layer_norm")  # norms whose outputs only the head reads
_EMBEDDINGS = ("embed_tokens", "shared")


def cut_widths(
    model: PreTrainedModel, width: WidthSettings, activations: Activations, kept: Sequence[Kept] = ()
) -> tuple[PreTrainedModel, dict[str, tuple[int, int]]]:
    """Return a model of the same class with the widths in `width`.

    Args:
        model: the teacher, or the result of `copy_layers`. It is not changed.
        width: the student's widths.
        activations: statistics measured on the whole teacher.
        kept: the teacher's layers that the model has; empty for all.

    Returns:
        The narrower model, and for each width that the recipe names the number kept and the teacher's number.

    Raises:
        RecipeError: the teacher is too narrow, or a width does not fit the others.
        TrainingError: the activations are those of another model.
    """
    whole, sizes = sizes_of(model.config), student_sizes(model.config, width)
    selection = WidthSelection(model, whole, sizes, _scores(model, activations, kept))
    student = type(model)(with_sizes(model.config, sizes))
    untie_head(student, model)
    weights = model.state_dict()
    cut = {name: selection.scaled(name, selection.cut(name, tensor)) for name, tensor in weights.items()}
    for name, parameter in student.named_parameters():
        parameter.data = parameter.data.to(weights[name].dtype)
    student.load_state_dict(cut)
    student.generation_config = copy.deepcopy(model.generation_config)
    student.train(model.training)
    counts = {
        "feed_forward": (sizes.neurons, whole.neurons),
        "heads": (sizes.heads, whole.heads),
        "hidden": (sizes.hidden, whole.hidden),
    }
    return student, {name: count for name, count in counts.items() if getattr(width, name) is not None}


def _scores(model: PreTrainedModel, activations: Activations, kept: Sequence[Kept]) -> dict[str, Tensor]:
    """Return the statistics under the names of the model's own modules."""
    scores = {name: torch.from_numpy(array.copy()) for name, array in activations.scores.items()}
    scores = weights_for_layers(scores, kept) if kept else scores
    required = {_owner(name) for name in model.state_dict() if _owner(name) is not None}
    if lacking := sorted(str(name) for name in required - scores.keys()):
        raise TrainingError(
            f"the activations were measured on another model: they lack {', '.join(lacking[:3])}",
            fix="remove their file, and they are measured again",
        )
    return scores


def _owner(name: str) -> str | None:
    """Return the module whose statistics decide what is kept of a parameter, hidden channels aside; for a norm itself."""
    axes = axes_of(name) or ()
    module = name.rpartition(".")[0]
    if axes == (Axis.HIDDEN,) and name.endswith(".weight"):
        return module
    cut_by_owner = {Axis.NEURONS, Axis.HEADS, Axis.GROUPS, Axis.PER_HEAD} & {*axes}
    return module.rpartition(".")[0] if cut_by_owner else None


@dataclass(frozen=True)
class WidthSelection:
    """The neurons, heads and channels of a model that are kept, and the factors for its weights."""

    model: PreTrainedModel
    whole: Sizes
    sizes: Sizes
    scores: Mapping[str, Tensor]  # by module, as in `Activations`

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """Return the kept part of a parameter."""
        for dim, axis in enumerate(axes_of(name) or ()):
            if self.sizes.length(axis) != self.whole.length(axis):
                tensor = tensor.index_select(dim, self._places(name, axis).to(tensor.device))
        return tensor

    def scaled(self, name: str, tensor: Tensor) -> Tensor:
        """Return a parameter multiplied by the factor for another hidden size; unchanged if the size is the teacher's."""
        module = name.rpartition(".")[0]
        factor = self._factor(module)
        if self.sizes.hidden == self.whole.hidden or factor == 1.0:
            return tensor
        offset = self._norm_offset if axes_of(name) == (Axis.HIDDEN,) else 0.0
        return ((tensor.float() + offset) * factor - offset).to(tensor.dtype)

    # ------------------------------------------------------------------------------------------------ what is kept

    @cached_property
    def hidden(self) -> Tensor:
        """The hidden channels with the largest norm outputs, summed over all norms: ascending."""
        total = torch.zeros(self.whole.hidden, dtype=torch.float64)
        for name, weight in self.model.state_dict().items():
            if axes_of(name) == (Axis.HIDDEN,) and name.endswith(".weight"):
                of_norm = self.scores[name.rpartition(".")[0]].double().sqrt()
                total += of_norm * (weight.double().cpu() + self._norm_offset).abs()
        return _most(total, self.sizes.hidden)

    @cached_property
    def groups(self) -> dict[str, Tensor]:
        """For each attention, the key-value heads whose heads have the largest outputs on average: ascending."""
        return {
            attention: _most(sum((self._group_shares(one) for one in together), torch.zeros(())), self.sizes.groups)
            for together in self._attentions()
            for attention in together
        }

    def _group_shares(self, attention: str) -> Tensor:
        """Return the score of each group, its heads' mean, as a share of the total: comparable between layers."""
        score: Tensor = self.scores[attention].double().unflatten(0, (self.whole.groups, -1)).mean(1)
        return score / score.sum().clamp(min=torch.finfo(torch.float64).tiny)

    def _attentions(self) -> Iterator[list[str]]:
        """Yield lists of attentions that must keep the same heads: those of a stack that share a table of positions."""
        owners = {name: _owner(name) for name in self.model.state_dict()}
        attentions = dict.fromkeys(
            str(owners[name]) for name in owners if Axis.HEADS in (axes_of(name) or ()) and owners[name]
        )
        tables = {owner for name, owner in owners.items() if Axis.PER_HEAD in (axes_of(name) or ())}
        for stack in ("encoder.", "decoder.", ""):
            own = [name for name in attentions if name.startswith(stack) and name.endswith(".SelfAttention")]
            shared = own if stack and tables & {*own} and not tables >= {*own} else []
            if shared:
                yield shared
            for name in shared:
                del attentions[name]
        yield from ([name] for name in attentions)

    def _places(self, name: str, axis: Axis) -> Tensor:
        """Return the kept indices along an axis of a parameter: ascending."""
        if axis is Axis.HIDDEN:
            return self.hidden
        owner = str(_owner(name))
        if axis is Axis.NEURONS:
            return _most(self.scores[owner], self.sizes.neurons)
        groups = self.groups[owner]
        if axis is Axis.GROUPS:
            return _spread(groups, self.whole.head_dim)
        heads = _spread(groups, self.whole.heads_of_a_group)
        return heads if axis is Axis.PER_HEAD else _spread(heads, self.whole.head_dim)

    # ------------------------------------------------------------------------------------------------------ scales

    @property
    def _norm_offset(self) -> float:
        return FAMILIES[self.model.config.model_type].norm_offset

    @cached_property
    def _tied(self) -> bool:
        return self.model.get_output_embeddings().weight is self.model.get_input_embeddings().weight

    @cached_property
    def _embedding_factor(self) -> float:
        scales = FAMILIES[self.model.config.model_type].scales_embedding
        return float((self.whole.hidden / self.sizes.hidden) ** 0.5) if scales else 1.0

    def _factor(self, module: str) -> float:
        """Return the factor for a module's weights."""
        part = module.rpartition(".")[2]
        if part in _EMBEDDINGS or (part == "lm_head" and self._tied):
            return self._embedding_factor
        if axes_of(f"{module}.weight") != (Axis.HIDDEN,):
            return 1.0
        factor = float(self.scores[module].double()[self.hidden].mean().sqrt())
        if module in _LAST_NORMS:
            student = with_sizes(self.model.config, self.sizes)
            factor *= logit_factor(self.model.config) / logit_factor(student)
            factor /= self._embedding_factor if self._tied else 1.0
        return factor


def _most(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` highest scores, ascending; the first ones of a tie."""
    return torch.sort(torch.argsort(scores, descending=True, stable=True)[:count]).values


def _spread(places: Tensor, each: int) -> Tensor:
    """Expand unit indices to the indices of their `each` consecutive entries: (n,) -> (n * each,)."""
    return (places.unsqueeze(1) * each + torch.arange(each)).flatten()
