"""Every error samexport raises on purpose, and the exit code of each.

Messages are one line and say how to mend the problem. Exit codes: 0 done and verified; 1 a check failed;
2 the user's input cannot be used.
"""

from collections.abc import Iterator


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from or during, each once: such chains may run in a circle."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


class SamExportError(Exception):
    """Base of all errors that a user may see; the command line prints it without a traceback."""

    exit_code = 2


class ConfigError(SamExportError):
    """An option, name or value that cannot be used."""


class MissingDependency(ConfigError):
    """An optional package is not installed; the message names the command that installs it."""


class CheckpointError(ConfigError):
    """A weight file that is absent, damaged, unsafe, or does not fit the model."""


class BundleError(ConfigError):
    """A folder that is not a bundle, or a path where no bundle can be written."""


class FileError(ConfigError):
    """A file that cannot be read (absent, not a regular file, too large, not what it should be) or written."""


class ImageError(ConfigError):
    """A picture that cannot be read or is out of bounds."""


class AnnotationError(ConfigError):
    """An annotation file that is absent, damaged, not in COCO's or LVIS's format, or does not fit its pictures."""


class PromptError(ConfigError):
    """Points, boxes or masks that are not valid prompts."""


class ExportFailed(SamExportError):
    """A converter failed or produced something that cannot be used."""

    exit_code = 1


class RuntimeFailed(SamExportError):
    """A file that was opened does not run, is closed, or the process that ran it ended."""

    exit_code = 1


class ParityFailed(SamExportError):
    """A file does not compute what its reference computes; ``details`` has a line for each failed check."""

    exit_code = 1

    def __init__(self, message: str, details: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.details = details
