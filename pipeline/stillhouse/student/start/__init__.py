"""The untrained student: made of parts of its teacher, a copy of another model, or a config with random weights.

start_config.py  describes the student from configs alone, to refuse what cannot work
initialise.py    creates the student
parts.py         builds it from the most important parts of the teacher:
stacks.py        the stacks of layers of a model
layers.py        copies whole layers
importance.py    measures the importance of each layer on rows of the dataset
choice.py        chooses the layers to keep
store.py         caches the measurements on disk for the next student
activations.py   measures how active neurons, heads and channels are
axes.py          which axis of which matrix belongs to which of these
width_plan.py    the widths of the student in numbers
widths.py        cuts the teacher's matrices to these widths
used_tokens.py   the tokens that the dataset uses
tokenizer.py     a tokenizer of these tokens alone
vocabulary.py    the embedding and head rows of these tokens
fresh_config.py  the config of a student with random weights
kinds.py         reads configs, and checks that they are a student's
rows.py          the rows of the dataset on which importance is measured
record.py        start.json: the parts that a student was made of
descriptions.py  the same in words, for the student's card
"""
