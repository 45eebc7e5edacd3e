"""A user's folder with files that are called like ours and like the libraries: none of them must ever be imported."""

from pathlib import Path

import pytest

_NAMES = ("pipeline", "flows", "datasets", "torch", "transformers", "accelerate", "pyarrow", "prompts/torch", "code")
_IMPORTED = "namesake-imported"


def add_namesakes(folder: Path) -> None:
    """Add files that end whoever imports them, well, and leave a mark."""
    mark = folder / _IMPORTED
    for name in _NAMES:
        file = folder / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        code = f"import os\nopen({str(mark)!r}, 'a').write({name!r} + ' ')\nos._exit(0)\n"
        file.write_text(code)


def refuse_imported_namesakes(folder: Path) -> None:
    """Fail where a process has imported one of them."""
    mark = folder / _IMPORTED
    if mark.exists():
        pytest.fail(f"imported in place of the library: {mark.read_text()}")
