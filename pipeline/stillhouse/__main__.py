"""`python -m stillhouse` is `stillhouse`, and what launchers start."""

from stillhouse.processes.environment import remove_working_folder_from_path
from stillhouse.processes.ranks import end_with_launcher

if __name__ == "__main__":
    remove_working_folder_from_path()
    end_with_launcher()

    from stillhouse.cli.main import main  # late: a user's torch.py may lie in the working folder

    main()
