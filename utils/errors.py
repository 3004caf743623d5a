"""Errors that the user of the command line can mend: main.py prints them as one line, without a traceback."""


class UserError(Exception):
    """Something the user gave is wrong.  The message says what, where, and what to do."""


class SceneNotFoundError(UserError):
    """A scene's name, description or file does not exist."""


class SceneFormatError(UserError):
    """A scene's file is there but does not hold what its description says."""


class PairError(UserError):
    """Source and target scene do not fit together (bands, classes, size)."""


class ConfigError(UserError):
    """A setting has a value that cannot work."""


class CheckpointError(UserError):
    """A checkpoint is damaged or belongs to another configuration."""


class NonFiniteLossError(UserError):
    """A loss term became NaN or infinite during training."""


class DownloadError(UserError):
    """A public original cannot be fetched, or is not the file it was."""
