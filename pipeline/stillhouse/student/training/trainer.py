"""`transformers.Trainer` with a distillation objective, and what is watched while it runs."""

from __future__ import annotations

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
from stillhouse.student.data.epoch_order import LengthGroups, Order, Shares, Shuffled
from stillhouse.student.data.examples import Examples
from stillhouse.student.data.rows import Example
from stillhouse.student.training.forward import LiveTeacher, end_in_loss
from stillhouse.student.training.objective import Objective
from stillhouse.student.training.reporting import keep_logs
from stillhouse.student.training.sharded import shard_on_cpu, with_one_embedding

WHOLE = "whole"  # marks a checkpoint whose every file is on the disk


class StudentTrainer(Trainer):
    """`transformers.Trainer` with the objective in the place of the model's own loss.

    The loss of an optimiser step is a mean over all its completion tokens, however they are spread over micro-batches,
    gradient accumulation and processes.
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
    ) -> None:
        """
        Args:
            lm: the student; from now on its model's `forward` ends in the loss (forward.py).
            objective: what is minimised.
            arguments: as the library has them.
            train, validation: rows; none to validate on is allowed.
            head_chunk: positions whose logits are held at once.
            teacher: where the labels come from, if not out of the rows.
            pack_to: tokens of a sequence that holds several rows; None: one row in each.
            adapted: the student with adapters around it, if only these are trained (lora.py).
        """
        if arguments.fsdp:
            with_one_embedding(lm.model)
        super().__init__(
            model=lm.model if adapted is None else adapted,
            args=arguments,
            train_dataset=train,
            eval_dataset=validation if len(validation) else None,
            data_collator=collator(lm.pad_id, lm.start_id, pack_to=pack_to),
        )
        end_in_loss(lm.model, objective, chunk=head_chunk, teacher=teacher)
        self.remove_callback(PrinterCallback)  # it prints dictionaries to standard output
        keep_logs(self.callback_handler.callbacks, Path(arguments.output_dir))
        self._train_rows, self._validation_rows = train, validation
        self._held_out = torch.zeros(4, dtype=torch.float64)  # sums of one evaluation: see `prediction_step`
        self.model_accepts_loss_kwargs = True  # makes the trainer count the tokens of a step

    def create_accelerator_and_postprocess(self) -> None:
        """Called by the library when it is set up."""
        super().create_accelerator_and_postprocess()
        self.is_fsdp_enabled: bool = shard_on_cpu(self.accelerator, self.args) or self.is_fsdp_enabled

    def get_train_dataloader(self) -> DataLoader[Example]:
        """This process's batches (`order.Shares`); the library's own know nothing of row groups, nor of uneven ends."""
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        order: Order = range(len(self._train_rows))
        if self.args.train_sampling_strategy == "random":
            order = Shuffled(self._train_rows, seed)
        elif self.args.train_sampling_strategy == "group_by_length":
            step = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
            order = LengthGroups(self._train_rows, step, seed)
        if isinstance(order, Shuffled):
            self.add_callback(_TellEpoch(order))
        return self._loader(self._train_rows, order, self.args.train_batch_size, self.args.dataloader_drop_last)

    def get_eval_dataloader(self, eval_dataset: Examples | None = None) -> DataLoader[Example]:
        """Likewise, of the held-out rows: each of them once."""
        rows = eval_dataset or self._validation_rows
        grouped = self.args.train_sampling_strategy == "group_by_length"
        batch = self.args.eval_batch_size
        order: Order = LengthGroups(rows, batch * self.args.world_size, seed=0) if grouped else range(len(rows))
        return self._loader(rows, order, batch, drop_last=False)

    def _loader(self, rows: Examples, order: Order, batch_size: int, drop_last: bool) -> DataLoader[Example]:
        share = Shares(
            order, batch_size, processes=self.args.world_size, rank=self.args.process_index, drop_last=drop_last
        )
        return DataLoader(
            rows,  # type: ignore[arg-type]  # by index is all that a loader asks for
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
        """The library would take a step too many after a checkpoint that was the last one."""
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(**named)

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
            loss = total / _at_least_one((inputs["labels"] != IGNORED).sum())
        else:  # gradients are averaged over processes, the count is of all of them
            loss = total / _at_least_one(num_items_in_batch) * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self, model: torch.nn.Module, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, None, None]:
        """Add one held-out batch to the sums; what the library would make of it is a mean over rows, not tokens."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            sums = model(**inputs).double().cpu()  # (3,), as `Objective.measured`
        tokens = int((inputs["labels"] != IGNORED).sum())
        self._held_out += torch.tensor([*sums.tolist(), tokens], dtype=torch.float64)
        return None, None, None

    def evaluation_loop(self, *arguments: Any, metric_key_prefix: str = "eval", **named: Any) -> EvalLoopOutput:
        """The library's loop, whose figures are means over all held-out completion tokens.

        `eval_loss` is the objective's, `eval_kl` the forward KL from the teacher's labels at temperature 1,
        `eval_cross_entropy` that of the completion; nats a token. No random number of the training is used up: what
        goes on from a checkpoint that was written just before would draw another dropout than an unbroken run.
        """
        self._held_out.zero_()
        with torch.random.fork_rng(devices=[]):
            output = super().evaluation_loop(*arguments, metric_key_prefix=metric_key_prefix, **named)
        sums = self._held_out
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums.to(self.args.device)).cpu()
        means = (sums[:3] / sums[3]).tolist()
        for name, mean in zip(("loss", "kl", "cross_entropy"), means, strict=True):
            if mean == mean:  # a black-box student has no divergence
                output.metrics[f"{metric_key_prefix}_{name}"] = mean
        return output

    def whole_weights(self) -> dict[str, Tensor]:
        """The student's weights, from every process's part of them (FSDP); all processes call it together."""
        weights: dict[str, Tensor] = self.accelerator.get_state_dict(self.model)
        return weights


def _at_least_one(tokens: Tensor | int) -> Tensor:
    """What a loss is divided by: the loss of no tokens is 0, and so is its mean."""
    return torch.as_tensor(tokens).clamp(min=1)


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
        if state.is_world_process_zero:
            self._progress(self._activity, state.global_step, state.max_steps)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        wait_for_all()  # each process writes a file of its own
        if state.is_world_process_zero:
            fsync_files(checkpoint)
            write_atomically(checkpoint / WHOLE, b"")
