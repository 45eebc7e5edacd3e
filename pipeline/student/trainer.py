"""`transformers.Trainer` with a distillation objective, and what is watched while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from pipeline.causal import IGNORED, CausalModel
from pipeline.durable import fsync_files, write_atomically
from pipeline.progress import Progress
from pipeline.student.batches import Batch, collator
from pipeline.student.examples import Examples
from pipeline.student.forward import LiveTeacher, end_in_loss
from pipeline.student.objective import Objective
from pipeline.student.order import LengthGroups, Shuffled

WHOLE = "whole"  # marks a checkpoint whose every file is on the disk


class StudentTrainer(Trainer):
    """`transformers.Trainer` with the objective in the place of the model's own loss.

    The loss of an optimiser step is a mean over all its completion tokens, however they are spread over micro-batches,
    gradient accumulation and processes.
    """

    loss_is_scaled_for_ga = True  # `compute_loss` divides by the tokens of the whole step

    def __init__(
        self,
        causal: CausalModel,
        objective: Objective,
        arguments: TrainingArguments,
        train: Examples,
        validation: Examples,
        *,
        head_chunk: int = 512,
        teacher: LiveTeacher | None = None,
    ) -> None:
        """
        Args:
            causal: the student; from now on its model's `forward` ends in the loss (forward.py).
            objective: what is minimised.
            arguments: as the library has them.
            train, validation: rows; none to validate on is allowed.
            head_chunk: positions whose logits are held at once.
            teacher: where the labels come from, if not out of the rows.
        """
        super().__init__(
            model=causal.model,
            args=arguments,
            train_dataset=train,
            eval_dataset=validation if len(validation) else None,
            data_collator=collator(causal.pad_id),
        )
        end_in_loss(causal.model, objective, chunk=head_chunk, teacher=teacher)
        self.remove_callback(PrinterCallback)  # it prints dictionaries to standard output
        self._train_rows = train
        self._held_out = torch.zeros(4, dtype=torch.float64)  # sums of one evaluation: see `prediction_step`
        self.model_accepts_loss_kwargs = True  # makes the trainer count the tokens of a step

    def _get_train_sampler(self, train_dataset: Examples | None = None) -> Any:
        """The library's own samplers know nothing of row groups, nor of the epoch after a resume."""
        rows = train_dataset or self._train_rows
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        if self.args.train_sampling_strategy == "random":
            sampler = Shuffled(rows, seed)
        elif self.args.train_sampling_strategy == "group_by_length":
            sampler = LengthGroups(rows, self.args.train_batch_size * self.args.gradient_accumulation_steps, seed)
        else:
            return super()._get_train_sampler(train_dataset)
        self.add_callback(_TellEpoch(sampler))
        return sampler

    def _get_eval_sampler(self, eval_dataset: Examples) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_eval_sampler(eval_dataset)
        return LengthGroups(eval_dataset, self.args.eval_batch_size, seed=0)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """The objective's mean over the completion tokens of the optimiser step: scalar."""
        total = model(**inputs)
        if num_items_in_batch is None:
            loss = total / (inputs["labels"] != IGNORED).sum()
        else:  # gradients are averaged over processes, the count is of all of them
            processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            loss = total / num_items_in_batch * processes
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self, model: torch.nn.Module, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Add one held-out batch to the sums; the loss that it returns is a mean over its own completion tokens."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            sums = model(**inputs).double().cpu()  # (3,), as `Objective.measured`
        tokens = int((inputs["labels"] != IGNORED).sum())
        self._held_out += torch.tensor([*sums.tolist(), tokens], dtype=torch.float64)
        return (sums[0] / max(tokens, 1)).float().to(self.args.device), None, None

    def evaluation_loop(self, *arguments: Any, metric_key_prefix: str = "eval", **named: Any) -> EvalLoopOutput:
        """The library's loop, whose figures are means over all held-out completion tokens.

        `eval_loss` is the objective's, `eval_kl` the forward KL from the teacher's labels at temperature 1,
        `eval_cross_entropy` that of the completion; nats a token.
        """
        self._held_out.zero_()
        output = super().evaluation_loop(*arguments, metric_key_prefix=metric_key_prefix, **named)
        sums = self.accelerator.reduce(self._held_out.float().to(self.args.device)).double().cpu()
        means = (sums[:3] / sums[3]).tolist()
        for name, mean in zip(("loss", "kl", "cross_entropy"), means, strict=True):
            if mean == mean:  # a black-box student has no divergence
                output.metrics[f"{metric_key_prefix}_{name}"] = mean
        return output


class _TellEpoch(TrainerCallback):
    """Tells a sampler the epoch: of several processes that go on within one, accelerate tells only the outer samplers."""

    def __init__(self, sampler: Shuffled) -> None:
        self._sampler = sampler

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._sampler.set_epoch(int(state.epoch or 0))


class Watch(TrainerCallback):
    """Tells how far the training is, and marks checkpoints that are whole."""

    def __init__(self, progress: Progress, activity: str) -> None:
        self._progress = progress
        self._activity = activity

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._progress(self._activity, state.global_step, state.max_steps)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero:
            fsync_files(checkpoint)
            write_atomically(checkpoint / WHOLE, b"")
