"""Errors that a user can act on. The command line prints their one line and exits with code 2."""


class FastSlowError(Exception):
    """Something outside the code is wrong; the message names the place, the value and what would do."""


class ConfigError(FastSlowError):
    """A configuration key or value is not acceptable."""


class RunError(FastSlowError):
    """A run directory or checkpoint is missing, damaged, in use or not what was expected."""


class ModelError(FastSlowError):
    """A model directory or tokenizer cannot be used."""


class TaskError(FastSlowError):
    """A task broke its promise: its scorer raised, or did not return a Score with a finite reward."""


class ReflectorError(FastSlowError):
    """The reflector is down or keeps answering nonsense; the run stopped at its last checkpoint."""
