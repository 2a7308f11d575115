"""How programs and patches for one target are built, and how a program is started with the client in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """A target, and its tools.

    Args:
        target: the triple that the client reports.
        cc: compiles C, with the options that patches want.
        ld: links patches.
        runner: what runs the programs; empty where this machine does.
        preloads: whether the client comes by `LD_PRELOAD`, and not with the program.
        variables: what else programs want in the environment.
    """

    target: str
    cc: tuple[str, ...]
    ld: str
    runner: tuple[str, ...] = ()
    preloads: bool = True
    variables: Mapping[str, str] = field(default_factory=dict)

    def preload(self, library: Path) -> dict[str, str]:
        """The variables by which a program loads the client; an emulator must not load it for itself."""
        if not self.preloads:
            return {}
        return {"QEMU_SET_ENV": f"LD_PRELOAD={library}"} if self.runner else {"LD_PRELOAD": str(library)}


X86_64_GNU = Platform(target="x86_64-unknown-linux-gnu", cc=("gcc", "-fcf-protection=none"), ld="ld")
