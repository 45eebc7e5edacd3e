"""Benchmarks: figures that the docs give, measured again by one command each. pytest does not collect them.

make bench-label                                    # all of what labelling promises, into docs/benchmarks.md
python -m benchmarks.label throughput         # one part of it; also memory, kills

make bench-train                                    # the same for training
python -m benchmarks.train memory             # one part of it; also objectives, speed

label.py             the command behind `make bench-label`
label_throughput.py  completions a second: a bare loop, Stillhouse, curator, distilabel
label_memory.py      memory, time and bytes from a thousand prompts to a million
label_kills.py       fifty kill -9 in one run: what was lost, doubled, paid twice
shared.py            processes that are timed, the stand-in, the section of docs/benchmarks.md, the machine's name
server.py            the stand-in of tests/stand_in.py with a stop-watch
asking.py            what the four clients have in common
ask_bare.py, ask_stillhouse.py, ask_curator.py, ask_distilabel.py      one client each, in a process of its own
train.py             the command behind `make bench-train`
train_objectives.py  held-out KL from text, a renormalised top 12, 50 draws, the whole distribution
train_students.py    the students of it, in a process of their own
train_speed.py       tokens a second and memory, beside TRL's GKD
stepping.py          what the trainings of it have in common
step_rows.py, step_stillhouse.py, step_trl.py       what they start from, and one training each
train_memory.py      memory of the loss, in chunks and whole
train_loss.py        one loss, in a process of its own
curator.txt, distilabel.txt, trl.txt                the versions in the other projects' virtual environments
"""
