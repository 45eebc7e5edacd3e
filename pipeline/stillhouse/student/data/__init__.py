"""A student's training data: rows of a dataset, as batches.

examples.py            the rows of a dataset as training examples, by index
rows.py                the form of an example, and the protocol of its sources:
text_rows.py           rows of text, tokenised for the student
token_rows.py          rows whose token ids and soft labels are stored
token_ids.py           token ids as the student numbers them
vocabulary.py          whether teacher and student share token ids
completion_example.py  an example from a completion in memory
epoch_order.py         the order of the examples in an epoch
batches.py             examples as padded tensors
template_checks.py     whether a chat template renders the prompts
"""
