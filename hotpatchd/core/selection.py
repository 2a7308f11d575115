"""What the developer wants cargo to build, in cargo's own words."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CargoSelection:
    """The target selection of one command line; each field is the cargo flag of that name.

    Several `bin` and `example` are several programs, which share the crates that both are built from.
    """

    manifest_path: str | None = None
    package: str | None = None
    lib: bool = False
    bin: tuple[str, ...] = ()
    example: tuple[str, ...] = ()
    release: bool = False
    profile: str | None = None
    features: tuple[str, ...] = ()
    no_default_features: bool = False
    all_features: bool = False
    target: str | None = None
    target_dir: str | None = None

    @property
    def cargo_profile(self) -> str:
        """The profile that cargo builds with."""
        return "release" if self.release else self.profile or "dev"

    def cargo_args(self) -> tuple[str, ...]:
        """The arguments of `cargo build`."""
        flags = tuple(flag for flag, given in (("--release", self.release), ("--lib", self.lib)) if given)
        named = (
            ("--package", self.package),
            *(("--bin", name) for name in self.bin),
            *(("--example", name) for name in self.example),
            ("--profile", self.profile),
            ("--target", self.target),
            ("--target-dir", self.target_dir),
        )
        return (*self._resolve_args(), *flags, *_given(named))

    def metadata_args(self) -> tuple[str, ...]:
        """The arguments of `cargo metadata`, for the same packages and features."""
        return (*self._resolve_args(), *_given((("--filter-platform", self.target),)))

    def _resolve_args(self) -> tuple[str, ...]:
        flags = (
            ("--no-default-features", self.no_default_features),
            ("--all-features", self.all_features),
        )
        named = (("--manifest-path", self.manifest_path), ("--features", ",".join(self.features) or None))
        return (*_given(named), *(flag for flag, given in flags if given))


def _given(named: tuple[tuple[str, str | None], ...]) -> tuple[str, ...]:
    return tuple(arg for flag, value in named if value is not None for arg in (flag, value))
