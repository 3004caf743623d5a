"""Errors that the user of the command line can mend: main.py prints them as one line, without a traceback."""


class UserError(Exception):
    """Something the user gave is wrong.  The message says what, where, and what to do."""


class ConfigError(UserError):
    """A setting has a value that cannot work."""


class CheckpointError(UserError):
    """A checkpoint is damaged or belongs to another configuration."""


class RunFolderError(UserError):
    """A file of a run folder is damaged or missing, or another process works in the folder."""


class SystemRefusedError(UserError):
    """The system refused something: the disk is full, a file cannot be opened, memory is short."""


class NonFiniteLossError(UserError):
    """A loss term became NaN or infinite during training."""
