"""Mutation testing: `make mutants` changes one place of the code at a time, and sees whether a test fails.

    make mutants                     # 200 mutants of seed 0, and the table in docs/mutants.md
    make mutants SAMPLE=12 SEED=1    # fewer, others
    make mutants AGAIN=1             # ask anew about those that survived, after tests were added

Cosmic Ray makes the mutants and keeps the session, a SQLite file under .mutants/: a run that was stopped goes on where it
was, and `.venv-mutants/bin/cr-html SESSION` shows every change. This folder says which code is changed and which tests are
asked (rooms.py), which places are left out (left_out.py), adds one operator (operators.py), and runs several mutants at
once, each in a copy of the repository (run.py).
"""
