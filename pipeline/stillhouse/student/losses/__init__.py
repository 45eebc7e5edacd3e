"""Divergences between teacher and student: one file each, found by name (`skewed-kl` is skewed_kl.py).

A loss's module holds

    def divergence(teacher: Tensor, student: Tensor, *, <its options>) -> Tensor
        # (positions, outcomes) log-probabilities of both -> nats at each position, (positions,)
    class Options(Settings)     # the options, which stand beside `kind` in the recipe; without it there are none
    ENCODINGS                   # the soft labels that it can be taken from; without it, all

base.py says what the outcomes are, the docstring of `stillhouse.student.training.objective` what is exact for which labels.
An entry point `stillhouse.losses` of another package names the function; what else there is, is looked for in the
function's module.

An outcome may be -inf on either side or on both (a tail of no mass, a place without a token). One that is -inf on both
weighs nothing, and gradients are finite always.
"""
