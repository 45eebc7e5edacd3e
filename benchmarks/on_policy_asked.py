"""A `stillhouse` command that notes every request to a teacher in this process, before it is answered.

python -m benchmarks.on_policy_asked FILE distill recipe.yaml --no-flow
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from stillhouse.cli.main import main
from stillhouse.teachers.transformers import TransformersTeacher


def note_requests(file: str) -> None:
    real = TransformersTeacher.answer

    async def answer(self: TransformersTeacher, requests: Any) -> Any:
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.writelines(f"{request.key}\n" for request in requests)
        return await real(self, requests)

    TransformersTeacher.answer = answer  # type: ignore[method-assign]


if __name__ == "__main__":
    note_requests(sys.argv.pop(1))
    main()
