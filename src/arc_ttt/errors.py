"""The tree of errors.

ArcError
 + InputError                 found before work starts; one clear line, exit 2 from the command line
 |   - SettingsError          a setting is unknown, of the wrong type, or contradicts another
 |   - TaskFileError          a task file cannot be read at all
 |   - TaskFormatError        one task of a file breaks a rule; costs only that task
 |   - ModelError             a model folder cannot be used
 + TaskError                  one task; the run goes on with the others
 |   - SequenceTooLong        a prompt does not fit the model or the cache
 |   - TrainingDiverged       loss became NaN or exploded; the base model is used
 |   - OutOfDeviceMemory      not even the least work fits the device
 + SubmissionError            a rule of the file would be broken; the last good file stays
"""

from __future__ import annotations


class ArcError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(ArcError):
    """The user's input cannot be used as given."""


class SettingsError(InputError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class TaskFileError(InputError):
    """A task file cannot be read at all."""


class TaskFormatError(InputError):
    """One task breaks a rule of the format. `task_id` tells which; the message also names file, pair and row."""

    def __init__(self, message: str, *, task_id: str) -> None:
        super().__init__(message)
        self.task_id = task_id


class ModelError(InputError):
    """A model folder is missing, unreadable, or of a kind this package does not run."""


class TaskError(ArcError):
    """Something about one task; the run goes on with the others."""


class SequenceTooLong(TaskError):
    """A prompt does not fit the model or the cache."""


class TrainingDiverged(TaskError):
    """The loss became NaN or exploded."""


class OutOfDeviceMemory(TaskError):
    """Not even the least work fits the memory of the device."""


class SubmissionError(ArcError):
    """A rule of submission.json would be broken."""
