"""The tree of errors, and what an exception of a device means.

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

DeviceLost is a RuntimeError, as CUDA's own errors are. Errors of devices are recognized by their names and texts, so
that torch need not be imported.
"""

from __future__ import annotations

_NO_MEMORY = ("out of memory", "alloc_failed", "can't allocate memory", "not enough memory")
_LOST = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "launch failure",
    "cuda error",
    "cublas_status_execution_failed",
    "uncorrectable ecc",
    "no cuda-capable device",
    "no cuda gpus are available",
    "fallen off the bus",
    "nvml",
    "device is lost",
)


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


class DeviceLost(RuntimeError):
    """The device that a worker should use is not there."""


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had too little memory: less work may succeed in the same process."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return not names.isdisjoint({"OutOfMemoryError", "MemoryError"}) or _says(error, _NO_MEMORY)


def device_lost(error: BaseException) -> bool:
    """Whether every later call on the device would fail too: the process must end and another take its place."""
    lost = isinstance(error, DeviceLost) or (isinstance(error, RuntimeError) and _says(error, _LOST))
    return lost and not out_of_memory(error)


def _says(error: BaseException, texts: tuple[str, ...]) -> bool:
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(text in said for text in texts)
