"""Benchmarks: one command each to reproduce the figures in the docs. pytest does not collect them.

make bench-label                                    # all benchmarks of labelling, into docs/benchmarks.md
python -m benchmarks.label throughput         # one part of it; also layers, memory, kills, growing

make bench-train                                    # the same for training
python -m benchmarks.train memory             # one part of it; also objectives, speed

label.py             the command behind `make bench-label`
label_throughput.py  completions per second: a bare loop, Stillhouse, curator, distilabel
label_memory.py      memory, time and bytes from a thousand prompts to a million
label_kills.py       fifty kill -9 in one run: answers lost, duplicated, paid for twice
shared.py            timed processes, the stand-in server, the section of docs/benchmarks.md, the machine's name
server.py            the stand-in server of tests/stand_in.py with a timer
asking.py            code shared by the four clients
ask_bare.py, ask_stillhouse.py, ask_curator.py, ask_distilabel.py      one client each, in a separate process
train.py             the command behind `make bench-train`
train_objectives.py  held-out KL from text, a renormalised top 12, 50 draws, the full distribution
train_students.py    the students of train_objectives.py, in a separate process
train_speed.py       tokens per second and memory, compared with TRL's GKD
stepping.py          code shared by the trainings of train_speed.py
step_rows.py, step_stillhouse.py, step_trl.py       their inputs, and one training each
train_memory.py      memory of the loss, in chunks and in one piece
train_loss.py        one loss, in a separate process
curator.txt, distilabel.txt, trl.txt                package versions of the other projects' virtual environments
"""
