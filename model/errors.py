"""Errors that the user of the command line can mend: main.py prints them as one line, without a traceback."""


class UserError(Exception):
    """Something the user gave is wrong.  The message says what, where, and what to do."""


class ConfigError(UserError):
    """A setting has a value that cannot work."""


class CheckpointError(UserError):
    """A checkpoint is damaged or belongs to another configuration."""


class NonFiniteLossError(UserError):
    """A loss term became NaN or infinite during training."""
