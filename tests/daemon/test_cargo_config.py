"""The developer's settings for cargo."""

from pathlib import Path

import pytest

from hotpatchd.daemon.cargo_config import (
    manifest_lto,
    profile_variable,
    user_jobs,
    user_linker,
    user_runner,
    user_rustflags,
    user_wrapper,
)


def test_where_a_wrapper_is_found(tmp_path: Path) -> None:
    """Environment before files, the nearest file first, an empty value for none, relative paths resolved."""
    cwd, home = tmp_path / "a" / "b", tmp_path / "home"
    for directory, text in (
        (tmp_path / "a" / ".cargo", '[build]\nrustc-wrapper = "tools/w"\n'),
        (home / ".cargo", '[build]\nrustc-wrapper = "sccache"\nrustc-workspace-wrapper = "inner"\n'),
    ):
        directory.mkdir(parents=True)
        (directory / "config.toml").write_text(text)
    cwd.mkdir()
    (cwd / ".cargo").mkdir()
    (cwd / ".cargo" / "config.toml").write_text("not toml")

    def found(**environ: str) -> str | None:
        return user_wrapper("rustc-wrapper", cwd=cwd, environ={"HOME": str(home), **environ})

    assert found() == str(tmp_path / "a" / "tools" / "w")
    assert found(RUSTC_WRAPPER="env", CARGO_BUILD_RUSTC_WRAPPER="other") == "env"
    assert found(CARGO_BUILD_RUSTC_WRAPPER="./w") == str(cwd / "w")
    assert found(RUSTC_WRAPPER="") is None
    environ = {"CARGO_HOME": str(home / ".cargo")}
    assert user_wrapper("rustc-workspace-wrapper", cwd=cwd, environ=environ) == "inner"


class Settings:
    """A directory that cargo runs in, with a configuration file in it and one above."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cwd = root / "project"
        for directory in (self.cwd, root):
            (directory / ".cargo").mkdir(parents=True)

    def write(self, *, here: str, above: str) -> None:
        """Write the two files."""
        (self.cwd / ".cargo" / "config.toml").write_text(here)
        (self.root / ".cargo" / "config.toml").write_text(above)

    def runner(self, **environ: str) -> tuple[str, ...]:
        """The runner of one target."""
        environ = {"HOME": str(self.root / "home"), **environ}
        return user_runner("aarch64-unknown-linux-gnu", cwd=self.cwd, environ=environ)

    def linker(self, **environ: str) -> str | None:
        """The linker of one target."""
        environ = {"HOME": str(self.root / "home"), **environ}
        return user_linker("aarch64-unknown-linux-gnu", cwd=self.cwd, environ=environ)

    def rustflags(self, **environ: str) -> tuple[str, ...]:
        """What rustc is told for one target."""
        environ = {"HOME": str(self.root / "home"), **environ}
        return user_rustflags("aarch64-unknown-linux-gnu", cwd=self.cwd, environ=environ)

    def jobs(self, **environ: str) -> int | None:
        """How many jobs cargo runs on a machine with eight processors."""
        return user_jobs(8, cwd=self.cwd, environ={"HOME": str(self.root / "home"), **environ})


@pytest.fixture
def cargo_settings(tmp_path: Path) -> Settings:
    """Without content yet."""
    return Settings(tmp_path)


def test_a_runner_comes_from_the_nearest_file(cargo_settings: Settings) -> None:
    """A string is split at spaces; the runner of another target does not count."""
    table = "[target.aarch64-unknown-linux-gnu]\n"
    cargo_settings.write(
        here="[target.x86_64-unknown-linux-gnu]\nrunner = 'gdb'", above=table + "runner = 'qemu -L /a'"
    )
    assert cargo_settings.runner() == ("qemu", "-L", "/a")
    cargo_settings.write(here=table + "runner = 'other'", above=table + "runner = 'qemu -L /a'")
    assert cargo_settings.runner() == ("other",)


def test_a_runner_can_be_a_list_and_a_relative_path(cargo_settings: Settings) -> None:
    """Words of a list stay whole; the path counts from the directory that holds `.cargo`."""
    above = "[target.aarch64-unknown-linux-gnu]\nrunner = ['tools/run', '-L', '/a b']"
    cargo_settings.write(here="not toml", above=above)
    assert cargo_settings.runner() == (str(cargo_settings.root / "tools/run"), "-L", "/a b")


def test_a_runner_in_the_environment_wins(cargo_settings: Settings) -> None:
    """As cargo spells the variable."""
    cargo_settings.write(here="[target.aarch64-unknown-linux-gnu]\nrunner = 'other'", above="")
    assert cargo_settings.runner(CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="./q -s") == (
        str(cargo_settings.cwd / "q"),
        "-s",
    )


def test_without_a_setting_there_is_no_runner(cargo_settings: Settings) -> None:
    """The program is run by itself."""
    cargo_settings.write(here="[target]\naarch64-unknown-linux-gnu = 1", above="target = 2")
    assert cargo_settings.runner() == ()


def test_a_linker_comes_from_the_environment_or_the_nearest_file(cargo_settings: Settings) -> None:
    """A name stays a name, a relative path counts from where it is written."""
    assert cargo_settings.linker() is None
    table = "[target.aarch64-unknown-linux-gnu]\n"
    cargo_settings.write(here="", above=table + "linker = 'tools/cc'")
    assert cargo_settings.linker() == str(cargo_settings.root / "tools/cc")
    assert cargo_settings.linker(CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER="cc-9") == "cc-9"


def test_rustflags_come_from_the_strongest_source_alone(cargo_settings: Settings) -> None:
    """Environment, then the target's, then those of all targets, as strings or lists."""
    target = "[target.aarch64-unknown-linux-gnu]\nrustflags = ['-C', 'a b']\n"
    cargo_settings.write(here="[build]\nrustflags = '--cfg x'", above="")
    assert cargo_settings.rustflags() == ("--cfg", "x")
    cargo_settings.write(here="[build]\nrustflags = '--cfg x'", above=target)
    assert cargo_settings.rustflags() == ("-C", "a b")
    variable = {"CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS": "-O"}
    assert cargo_settings.rustflags(**variable) == ("-O",)
    assert cargo_settings.rustflags(**variable, RUSTFLAGS="-g  -v") == ("-g", "-v")
    assert cargo_settings.rustflags(RUSTFLAGS="-g", CARGO_ENCODED_RUSTFLAGS="--cfg\x1fa b") == ("--cfg", "a b")
    assert cargo_settings.rustflags(RUSTFLAGS="") == ()


def test_jobs_come_from_the_environment_or_the_nearest_file(cargo_settings: Settings) -> None:
    """A negative number is how many processors are left out, `default` is cargo's own choice."""
    cargo_settings.write(here="", above="[build]\njobs = 3")
    assert cargo_settings.jobs() == 3
    cargo_settings.write(here="[build]\njobs = -2", above="[build]\njobs = 3")
    assert cargo_settings.jobs() == 6
    assert cargo_settings.jobs(CARGO_BUILD_JOBS="4") == 4
    assert cargo_settings.jobs(CARGO_BUILD_JOBS="-20") == 1
    assert cargo_settings.jobs(CARGO_BUILD_JOBS="default") is None
    cargo_settings.write(here="", above="")
    assert cargo_settings.jobs() is None


@pytest.mark.parametrize(
    ("profiles", "here", "environ", "found"),
    [
        ("[profile.dist]\ninherits = 'release'\nlto = 'fat'\n", "", {}, '"fat"'),
        ("[profile.dist]\ninherits = 'mid'\n[profile.mid]\ninherits = 'release'\nlto = true\n", "", {}, "true"),
        ("[profile.dist]\ninherits = 'release'\n[profile.release]\nlto = 'thin'\n", "", {}, '"thin"'),
        ("[profile.dist]\ninherits = 'dev'\n[profile.release]\nlto = 'thin'\n", "", {}, None),
        ("[profile.dist]\ninherits = 'release'\nlto = false\n[profile.release]\nlto = true\n", "", {}, None),
        ("[profile.dist]\ninherits = 'release'\n", "[profile.release]\nlto = true\n", {}, "true"),
        (
            "[profile.release]\nlto = true\n[profile.dist]\ninherits = 'release'",
            "[profile.dist]\nlto = 'off'",
            {},
            None,
        ),
        ("[profile.dist]\ninherits = 'release'\nlto = 'fat'\n", "", {"CARGO_PROFILE_DIST_LTO": "thin"}, None),
        ("[profile.dist]\nlto = [1]\n", "", {}, None),
        ("profile = 1\n", "", {}, None),
        ("not toml", "", {}, None),
    ],
)
def test_which_link_time_optimisation_files_ask_for(
    tmp_path: Path, profiles: str, here: str, environ: dict[str, str], found: str | None
) -> None:
    """The nearest of the profiles that says anything counts, and there the configuration before the manifest."""
    settings = Settings(tmp_path)
    settings.write(here=here, above="")
    manifest = settings.cwd / "Cargo.toml"
    manifest.write_text(profiles)
    environ = {"HOME": str(tmp_path / "home"), **environ}
    assert manifest_lto("dist", manifest=manifest, cwd=settings.cwd, environ=environ) == found


def test_the_variable_for_a_setting_of_a_profile() -> None:
    """As cargo has it: upper case, with underscores."""
    assert profile_variable("my-dist", "lto") == "CARGO_PROFILE_MY_DIST_LTO"
