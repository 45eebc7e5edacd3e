"""Find, load and run language models: every logit that becomes a label, a loss or a figure is computed here.

find.py         the files of a model that a recipe names, local or from the hub
files.py        what these files say about the model, without loading it
checks.py       refuses models that cannot be loaded, or only with code that is not trusted
weights.py      the sha256 of the weights
load.py         a model with its tokenizer; text to tokens and back
layout.py       prompts and completions as tensors, and which logits predict which tokens
head.py         the model split into hidden states and head
generate.py     its answers
sampling.py     tokens drawn from its logits
soft_labels.py  its soft labels
"""
