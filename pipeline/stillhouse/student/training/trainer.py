"""`transformers.Trainer` with a distillation objective, and the callbacks that run during training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from stillhouse.models.layout import IGNORED
from stillhouse.models.load import LanguageModel
from stillhouse.processes.ranks import wait_for_all
from stillhouse.progress import Progress
from stillhouse.storage.durable import fsync_files, write_atomically
from stillhouse.student.data.batches import Batch, collator
from stillhouse.student.data.epoch_order import LengthGroupedSampler, Order, ShardedBatchSampler, ShuffledSampler
from stillhouse.student.data.examples import Examples
from stillhouse.student.data.rows import Example
from stillhouse.student.training.along import StudentAndTeacher, TeacherAlong
from stillhouse.student.training.forward import LiveTeacher, replace_forward_with_loss
from stillhouse.student.training.objective import Objective
from stillhouse.student.training.reporting import keep_logs
from stillhouse.student.training.sharded import share_embedding_module

COMPLETE_MARKER = "whole"  # marks a checkpoint whose files have all been fsynced


class StudentTrainer(Trainer):
    """`transformers.Trainer` with the objective in place of the model's own loss.

    The loss of an optimizer step is a mean over all its completion tokens, however they are split into micro-batches,
    gradient accumulation steps and processes.
    """

    loss_is_scaled_for_ga = True  # `compute_loss` divides by the tokens of the whole step

    def __init__(
        self,
        lm: LanguageModel,
        objective: Objective,
        arguments: TrainingArguments,
        train: Examples,
        validation: Examples,
        *,
        head_chunk: int = 512,
        teacher: LiveTeacher | None = None,
        pack_to: int | None = None,
        adapted: torch.nn.Module | None = None,
        along: TeacherAlong | None = None,
    ) -> None:
        """
        Args:
            lm: the student; its model's `forward` is replaced with one that returns the loss (forward.py).
            objective: the loss to minimise.
            arguments: the library's training arguments.
            train, validation: rows; `validation` may be empty.
            head_chunk: maximum positions whose logits are in memory.
            teacher: live source of the labels; None: they are in the rows.
            pack_to: maximum tokens of a sequence that packs several rows; None: one row per sequence.
            adapted: the student wrapped in adapters, if only these are trained (lora.py).
            along: a teacher that learns in the same steps, in place of `teacher` and `adapted` (along.py).
        """
        if arguments.fsdp:
            share_embedding_module(lm.model)
        self._along = along
        self._has_teachers_rate = False
        both = None if along is None else StudentAndTeacher(lm.model, objective, along, chunk=head_chunk)
        super().__init__(
            model=both or adapted or lm.model,
            args=arguments,
            train_dataset=train,
            eval_dataset=validation if len(validation) else None,
            data_collator=collator(lm.pad_id, lm.start_id, pack_to=pack_to),
        )
        if both is None:
            replace_forward_with_loss(lm.model, objective, chunk=head_chunk, teacher=teacher)
        self.remove_callback(PrinterCallback)  # it prints dictionaries to standard output
        keep_logs(self.callback_handler.callbacks, Path(arguments.output_dir))
        self._train_rows, self._validation_rows = train, validation
        self._figures = ("loss", "kl", "cross_entropy", *(["teacher_cross_entropy"] if along else []))  # held-out rows'
        self._held_out = torch.zeros(len(self._figures) + 1, dtype=torch.float64)  # their sums: see `prediction_step`
        self.last_loss: Tensor | None = None  # of this process's last micro-batch: scalar
        self.model_accepts_loss_kwargs = True  # makes the trainer count the tokens of a step

    def get_train_dataloader(self) -> DataLoader[Example]:
        """Return this process's batches (ShardedBatchSampler).

        transformers' own loader would shuffle across row groups and repeat examples in an incomplete last batch.
        """
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        order: Order = range(len(self._train_rows))
        if self.args.train_sampling_strategy == "random":
            order = ShuffledSampler(self._train_rows, seed)
        elif self.args.train_sampling_strategy == "group_by_length":
            step = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
            order = LengthGroupedSampler(self._train_rows, step, seed)
        if isinstance(order, ShuffledSampler):
            self.add_callback(_EpochCallback(order))
        return self._loader(self._train_rows, order, self.args.train_batch_size, self.args.dataloader_drop_last)

    def get_eval_dataloader(self, eval_dataset: Examples | None = None) -> DataLoader[Example]:
        """Return this process's batches of held-out rows, each row once."""
        rows = eval_dataset or self._validation_rows
        grouped = self.args.train_sampling_strategy == "group_by_length"
        batch = self.args.eval_batch_size
        order: Order = LengthGroupedSampler(rows, batch * self.args.world_size, seed=0) if grouped else range(len(rows))
        return self._loader(rows, order, batch, drop_last=False)

    def _loader(self, rows: Examples, order: Order, batch_size: int, drop_last: bool) -> DataLoader[Example]:
        share = ShardedBatchSampler(
            order, batch_size, processes=self.args.world_size, rank=self.args.process_index, drop_last=drop_last
        )
        return DataLoader(
            rows,  # type: ignore[arg-type]  # a loader only needs access by index
            batch_sampler=share,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            in_order=self.args.dataloader_in_order,
        )

    def _run_epoch(self, **named: Any) -> None:
        """Skip the epoch if the last step is done: after resuming from it, the library would take one more step."""
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(**named)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the library's optimizer; a teacher that learns along has its own learning rate."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if self._along is not None and isinstance(self.model, StudentAndTeacher) and not self._has_teachers_rate:
            optimizer.param_groups = self.model.parameter_groups(optimizer.param_groups, self._along.learning_rate)
            self._has_teachers_rate = True
        return optimizer

    def training_step(self, *arguments: Any, **named: Any) -> Tensor:
        """Run the library's step and keep its loss on the device: reading the value in each step would wait for it."""
        self.last_loss = super().training_step(*arguments, **named)
        return self.last_loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Return the objective's mean over the completion tokens of the optimizer step: scalar."""
        total = model(**inputs)
        if num_items_in_batch is None:
            loss = total / _at_least_one((inputs["labels"] != IGNORED).sum())
        else:  # gradients are averaged over processes, the count is over all of them
            loss = total / _at_least_one(num_items_in_batch) * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self, model: torch.nn.Module, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, None, None]:
        """Add one held-out batch to the sums; the library itself would average over rows, not tokens."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            sums = model(**inputs).double().cpu()  # one of each figure, as `Objective.held_out_metrics`
        tokens = int((inputs["labels"] != IGNORED).sum())
        self._held_out += torch.tensor([*sums.tolist(), tokens], dtype=torch.float64)
        return None, None, None

    def evaluation_loop(self, *arguments: Any, metric_key_prefix: str = "eval", **named: Any) -> EvalLoopOutput:
        """Run the library's loop, with metrics that are means over all held-out completion tokens.

        `eval_loss` is the objective, `eval_kl` the forward KL from the teacher's labels at temperature 1,
        `eval_cross_entropy` that of the completion, `eval_teacher_cross_entropy` that of a teacher that learns along, all
        in nats per token. The random state of the training is preserved: otherwise a run resumed from a checkpoint written
        just before would draw other dropout masks.
        """
        self._held_out.zero_()
        with torch.random.fork_rng(devices=[]):
            output = super().evaluation_loop(*arguments, metric_key_prefix=metric_key_prefix, **named)
        sums = self._held_out
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums.to(self.args.device)).cpu()
        means = (sums[:-1] / sums[-1]).tolist()
        for name, mean in zip(self._figures, means, strict=True):
            if not math.isnan(mean):  # a black-box student has no divergence
                output.metrics[f"{metric_key_prefix}_{name}"] = mean
        return output

    def gather_weights(self) -> dict[str, Tensor]:
        """Gather the student's weights from all processes (FSDP); all processes must call it together."""
        if isinstance(self.model, StudentAndTeacher):  # never sharded
            both: dict[str, Tensor] = self.model.student.state_dict()
            return both
        weights: dict[str, Tensor] = self.accelerator.get_state_dict(self.model)
        return weights


def _at_least_one(tokens: Tensor | int) -> Tensor:
    """Return a token count as a divisor: the loss of no tokens is 0, and so is its mean."""
    return torch.as_tensor(tokens).clamp(min=1)


class _EpochCallback(TrainerCallback):
    """Sets a sampler's epoch; with several processes, accelerate sets it only on the outer sampler."""

    def __init__(self, sampler: ShuffledSampler) -> None:
        self._sampler = sampler

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._sampler.set_epoch(int(state.epoch or 0))


class ProgressCallback(TrainerCallback):
    """Reports the progress of the training, and marks complete checkpoints."""

    def __init__(self, progress: Progress, activity: str) -> None:
        self._progress = progress
        self._activity = activity

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self._progress(self._activity, state.global_step, state.max_steps)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        wait_for_all()  # each process writes its own file
        if state.is_world_process_zero:
            fsync_files(checkpoint)
            write_atomically(checkpoint / COMPLETE_MARKER, b"")
