"""Divergences between teacher and student: one file each, found by name (`skewed-kl` is skewed_kl.py).

A loss module defines

    def divergence(teacher: Tensor, student: Tensor, *, <its options>) -> Tensor
        # (positions, outcomes) log-probabilities of both -> nats at each position, (positions,)
    class Options(Settings)     # the options, written next to `kind` in the recipe; without it the loss has none
    ENCODINGS                   # the soft-label encodings that it accepts; without it, all

base.py defines the outcomes; the docstring of `stillhouse.student.training.objective` says what is exact for which labels.
An entry point `stillhouse.losses` of another package names the function; `Options` and `ENCODINGS` are read from the
module that defines it.

An outcome's log-probability may be -inf on either side or on both (a tail of no mass, an entry without a token). An outcome
that is -inf on both has no weight, and gradients are always finite.
"""
