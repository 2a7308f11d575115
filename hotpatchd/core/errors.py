"""Errors that callers tell apart.

    HotpatchdError            what happened, to which thing, what to do about it
    ├── UsageError            the command line or the configuration is wrong
    ├── CaptureError          one capture cannot be used (corrupt, foreign version, stale)
    ├── ArgvError             a rustc or linker command that cannot be understood
    ├── ObjectError           an object file, archive or host binary that cannot be used
    ├── BuildError            cargo, rustc or the linker failed
    └── WireError             the other side broke the protocol

An expected refusal of an edit is not an error: it is a `Refusal` in the verdict.
"""


class HotpatchdError(Exception):
    """Base of all errors that end as one message to the developer.

    Args:
        message: what happened, and to which thing.
        hint: what to do about it; empty where the message says it already.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  help: {self.hint}" if self.hint else self.message


class UsageError(HotpatchdError):
    """The command line or the configuration is wrong."""


class CaptureError(HotpatchdError):
    """One capture cannot be used; `message` names the file and the reason."""


class ArgvError(HotpatchdError):
    """A rustc or linker command line that cannot be understood."""


class ObjectError(HotpatchdError):
    """An object file, archive or host binary that cannot be used."""


class BuildError(HotpatchdError):
    """Cargo, rustc or the linker failed.

    Args:
        message: which program failed, and on what.
        output: what it printed, as it printed it.
        hint: what to do about it.
    """

    def __init__(self, message: str, *, output: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.output = output


class WireError(HotpatchdError):
    """The other side broke the protocol."""
