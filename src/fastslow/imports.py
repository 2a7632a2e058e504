"""Objects that a configuration names."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from fastslow.errors import ConfigError


def import_object(path: str, key: str) -> Any:
    """What `module:name` stands for; `key` names the setting in the error.

    Modules beside the user, in the working directory, are found too, as `python -m` would.
    """
    module, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # importing runs the user's code
        raise ConfigError(
            f"{key} = {path!r}: {type(error).__name__}: {error}; expected module:name that can be imported"
        ) from None
