"""`python -m pipeline` is `stillhouse`, and what launchers start."""

from pipeline.cli import main
from pipeline.ranks import end_with_launcher

end_with_launcher()
main()
