"""Students made of the parts of their teacher that matter most: layers, widths and vocabulary.

importance.py   what each layer is worth, measured on rows of the dataset
choice.py       which layers are kept
store.py        what was measured, kept on disk for the next student
record.py       start.json: what a student was made of
words.py        what it was made of, in words for its card
"""
