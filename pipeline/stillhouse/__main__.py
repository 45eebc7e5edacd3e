"""`python -m pipeline` is `stillhouse`, and what launchers start."""

from stillhouse.cli.main import main
from stillhouse.processes.ranks import end_with_launcher

end_with_launcher()
main()
