"""Students made of the most important parts of their teacher: layers, widths and vocabulary.

importance.py    measures the importance of each layer on rows of the dataset
choice.py        chooses the layers to keep
store.py         caches the measurements on disk for the next student
record.py        start.json: the parts that a student was made of
descriptions.py  the same in words, for the student's card
"""
