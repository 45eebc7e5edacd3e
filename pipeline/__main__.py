"""`python -m pipeline` is `stillhouse`."""

from pipeline.cli import main

main()
