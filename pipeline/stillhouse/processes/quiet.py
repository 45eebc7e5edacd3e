"""What third-party libraries print to everybody, and no user of Stillhouse can act upon, stays out of the terminal.

torchao, where it is installed, is imported by transformers and peft whether a model is quantised or not. It then warns of
libraries for GPUs that it cannot load, and torch of how torchao registers its enumerations. Both are loggers of a name, so
their level can be set before the libraries are imported, and without importing them: every command, flow and library call
that may load a model does so first. Errors still come through.
"""

from __future__ import annotations

import logging

_LOGGERS = ("torchao", "torch.utils._pytree")


def quiet_libraries() -> None:
    """Have these loggers say nothing below an error; a level that a user has set stays."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.ERROR)
