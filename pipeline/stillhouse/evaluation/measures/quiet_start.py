"""Imported first, and only, by the process that the measuring processes are forked from (processes.py)."""

from stillhouse.processes.quiet import quiet_libraries

quiet_libraries()
