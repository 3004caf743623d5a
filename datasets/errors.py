"""Errors about scenes and their files; main.py prints them as one line."""

from model.errors import UserError


class SceneNotFoundError(UserError):
    """A scene's name, description or file does not exist."""


class SceneFormatError(UserError):
    """A scene's file is there but does not hold what its description says."""


class PairError(UserError):
    """Source and target scene do not fit together (bands, classes, size)."""


class DownloadError(UserError):
    """A public original cannot be fetched, or is not the file it was."""
