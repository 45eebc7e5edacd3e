"""Train a student from a dataset.

train.py          trains a student of a recipe, from its start to its folder
untrained.py      writes the untrained student
arguments.py      `student.train` as the library's training arguments
objective.py      the loss: divergence and cross-entropy
forward.py        the student's forward pass with the loss as its output
trainer.py        the library's trainer with this loss
stopping.py       early stopping, and the end of a training that has diverged
packing.py        several rows in one sequence
lora.py           adapters instead of all weights
frozen.py         parts that are not trained
liger.py          Liger's fused kernels
sharded.py        FSDP on a CPU
reporting.py      metrics for TensorBoard and others
write_student.py  writes the finished student
"""
