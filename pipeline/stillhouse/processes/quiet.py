"""Silence warnings of third-party libraries that users of Stillhouse cannot act on.

transformers and peft import torchao if it is installed, even if no model is quantised. torchao then warns about GPU
libraries that it cannot load, and torch about how torchao registers its enumerations. Both use named loggers, whose level
can be set before the libraries are imported: every command, flow and library call that may load a model does so first.
Errors are still logged.
"""

from __future__ import annotations

import logging

_LOGGERS = ("torchao", "torch.utils._pytree")


def quiet_libraries() -> None:
    """Set these loggers to log only errors, unless the user has set their level."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.ERROR)
