"""What torchao says at its import stays out of the terminal; what a user wants to hear does not."""

import subprocess
import sys

_QUIET = "from stillhouse.processes.quiet import quiet_libraries; quiet_libraries(); "
_LOAD = f"{_QUIET}import torchao; from transformers import PreTrainedModel"


def stderr_of(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr


def test_a_library_that_is_imported_on_the_way_says_nothing() -> None:
    assert stderr_of(_LOAD) == ""


def test_a_level_that_a_user_has_set_stays() -> None:
    said = stderr_of(f"import logging; logging.getLogger('torch.utils._pytree').setLevel('WARNING'); {_LOAD}")
    assert "KernelPreference" in said  # if torchao no longer says it, quiet.py can go
