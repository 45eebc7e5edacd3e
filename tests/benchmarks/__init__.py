"""Benchmarks: figures that the docs give, measured again by one command each. pytest does not collect them.

make bench-label                                    # all of what labelling promises, into docs/benchmarks.md
python -m tests.benchmarks.label throughput         # one part of it; also memory, kills

label.py             the command behind `make bench-label`
label_throughput.py  completions a second: a bare loop, Stillhouse, curator, distilabel
label_memory.py      memory, time and bytes from a thousand prompts to a million
label_kills.py       fifty kill -9 in one run: what was lost, doubled, paid twice
shared.py            processes that are timed, the stand-in, the section of docs/benchmarks.md, the machine's name
server.py            the stand-in of tests/stand_in.py with a stop-watch
asking.py            what the four clients have in common
ask_bare.py, ask_stillhouse.py, ask_curator.py, ask_distilabel.py      one client each, in a process of its own
curator.txt, distilabel.txt                         the versions in the other projects' virtual environments
"""
