"""`python -m stillhouse` runs the command line; launchers such as torchrun start this module in every process.

The working folder is removed from the import path first, so that a user's file there shadows no library.
"""

from stillhouse.processes.environment import remove_working_folder_from_path
from stillhouse.processes.ranks import end_with_launcher

if __name__ == "__main__":
    remove_working_folder_from_path()
    end_with_launcher()

    from stillhouse.cli.main import main  # late: a user's torch.py may lie in the working folder

    main()
