"""Which edits of manifests, lock files and cargo's configuration make a difference."""

import pytest

from hotpatchd.core.manifest import Difference, Use, differences, why_harmless

MANIFEST = """
[package]
name = "app"
version = "0.1.0"
edition = "2021"
description = "old"

[dependencies]
serde = { version = "1", features = ["derive"] }

[profile.dev]
opt-level = 1
"""
USE = Use(profile="dev", variables=frozenset(), packages=frozenset({"app"}))


def edited(*changes: tuple[str, str]) -> str:
    """The manifest with replacements; an addition replaces nothing at the end."""
    text = MANIFEST
    for old, new in changes:
        assert old in text
        text = text.replace(old, new) if old else text + new
    return text


@pytest.mark.parametrize(
    "after",
    [
        edited(("[package]", "# A comment.\n[package]")),
        edited(('edition = "2021"\n', ""), ('version = "0.1.0"', 'edition = "2021"\nversion="0.1.0"')),
        edited(
            (
                'serde = { version = "1", features = ["derive"] }',
                '[dependencies.serde]\nversion="1"\nfeatures=["derive"]',
            )
        ),
    ],
)
def test_how_a_manifest_is_written_makes_no_difference(after: str) -> None:
    """Comments, order, and which of two spellings of a table."""
    assert differences("manifest", MANIFEST, after, USE) == ()
    assert why_harmless("manifest", MANIFEST, after, USE) == "nothing that the program is built from changed in it"


@pytest.mark.parametrize(
    "addition",
    [
        "[package.metadata.docs.rs]\nall-features = true\n",
        "[workspace.metadata.x]\ny = 1\n",
        '[[test]]\nname = "slow"\nharness = false\n',
        '[[bench]]\nname = "fast"\n',
        '[badges]\nmaintenance = { status = "experimental" }\n',
        '[lints.clippy]\npedantic = "warn"\n',
        "[profile.release]\nlto = true\n",
        "[profile.bench]\ndebug = true\n",
        '[profile.mine]\ninherits = "dev"\n',
        '[workspace.package]\ndescription = "shared"\nkeywords = ["a"]\n',
    ],
)
def test_tables_that_nothing_in_the_build_reads(addition: str) -> None:
    """They are for other programs, other profiles, or other targets."""
    assert why_harmless("manifest", MANIFEST, MANIFEST + addition, USE)


@pytest.mark.parametrize(
    "line",
    [
        'authors = ["A"]',
        'homepage = "https://a"',
        'repository = "https://a"',
        'license = "MIT"',
        'license-file = "L"',
        'readme = "R.md"',
        'documentation = "https://a"',
        'keywords = ["a"]',
        'categories = ["b"]',
        "publish = false",
        'exclude = ["x"]',
        'include = ["x"]',
        "autotests = false",
        "autobenches = false",
    ],
)
def test_keys_of_a_package_that_nothing_in_the_build_reads(line: str) -> None:
    """They describe it."""
    assert why_harmless("manifest", MANIFEST, edited(("[package]", f"[package]\n{line}")), USE)


@pytest.mark.parametrize(
    "changes",
    [
        ('version = "0.1.0"', 'version = "0.2.0"'),
        ('edition = "2021"', 'edition = "2024"'),
        ('name = "app"', 'name = "other"'),
        ('features = ["derive"]', "features = []"),
        ('version = "1"', 'version = "1.1"'),
        ("opt-level = 1", "opt-level = 2"),
        ('edition = "2021"', 'edition = "2021"\nrust-version = "1.80"'),
        ('edition = "2021"', 'edition = "2021"\ndefault-run = "x"'),
        ('edition = "2021"', 'edition = "2021"\nbuild = "make.rs"'),
        ("", '[dev-dependencies]\nrand = "0.8"\n'),
        ("", '[build-dependencies]\ncc = "1"\n'),
        ("", "[features]\nextra = []\n"),
        ("", '[lib]\nname = "x"\n'),
        ("", '[[bin]]\nname = "x"\n'),
        ("", '[lints.rust]\nunsafe_code = "forbid"\n'),
        ("", '[patch.crates-io]\nserde = { path = "serde" }\n'),
        ("", '[target."cfg(unix)".dependencies]\nlibc = "0.2"\n'),
        ("", "[profile.dev.package.serde]\nopt-level = 3\n"),
        ("", "[something-new]\nx = 1\n"),
    ],
)
def test_what_counts(changes: tuple[str, str]) -> None:
    """Everything that cargo or rustc acts on, and everything that is not known."""
    assert why_harmless("manifest", MANIFEST, edited(changes), USE) is None


def test_one_change_that_counts_among_others_that_do_not() -> None:
    """Each is told by its key."""
    after = edited(('"old"', '"new"'), ('"0.1.0"', '"0.2.0"'))
    found = differences("manifest", MANIFEST, after, USE)
    assert found is not None
    assert [(difference.key, bool(difference.harmless)) for difference in found] == [
        ("package.description", True),
        ("package.version", False),
    ]
    assert why_harmless("manifest", MANIFEST, after, USE) is None


@pytest.mark.parametrize("inherited", [False, True])
def test_a_description_counts_where_somebody_asks_for_it(inherited: bool) -> None:
    """Cargo passes it in a variable, also one that is inherited from the workspace."""
    after = MANIFEST + '[workspace.package]\ndescription = "a"\n' if inherited else edited(('"old"', '"new"'))
    use = Use(profile="dev", variables=frozenset({"CARGO_PKG_DESCRIPTION"}), packages=frozenset())
    assert why_harmless("manifest", MANIFEST, after, use) is None
    assert why_harmless("manifest", MANIFEST, after, USE)


@pytest.mark.parametrize(
    ("profile", "changed", "counts"),
    [
        ("release", "release", True),
        ("release", "dev", False),
        ("mine", "mine", True),
        ("mine", "release", True),
        ("mine", "dev", False),
        ("test", "dev", True),
        ("bench", "release", True),
    ],
)
def test_a_profile_counts_if_the_one_that_is_used_inherits_from_it(profile: str, changed: str, counts: bool) -> None:
    """Directly or through others."""
    before = '[profile.mine]\ninherits = "release"\n'
    after = before + f"[profile.{changed}.package.serde]\nopt-level = 3\n"
    use = Use(profile=profile, variables=frozenset(), packages=frozenset())
    assert (why_harmless("manifest", before, after, use) is None) == counts


def test_the_profile_that_another_begins_to_inherit_from_counts() -> None:
    """Both texts say what is inherited."""
    before = '[profile.mine]\ninherits = "release"\n'
    after = '[profile.mine]\ninherits = "dev"\n[profile.dev]\ndebug = false\n'
    use = Use(profile="mine", variables=frozenset(), packages=frozenset())
    found = differences("manifest", before, after, use)
    assert found == (
        Difference(key="profile.dev.debug", harmless=""),
        Difference(key="profile.mine.inherits", harmless=""),
    )


@pytest.mark.parametrize("text", ["[package", "a = 1\na = 2\n"])
def test_a_text_that_is_no_toml_counts(text: str) -> None:
    """Cargo will say what is wrong."""
    assert differences("manifest", MANIFEST, text, USE) is None
    assert why_harmless("manifest", text, text, USE) is None


LOCK = """
version = 4

[[package]]
name = "app"
version = "0.1.0"
dependencies = ["serde", "log"]

[[package]]
name = "log"
version = "0.4.1"
source = "registry"
checksum = "1"

[[package]]
name = "rand"
version = "0.8.0"
source = "registry"
checksum = "2"

[[package]]
name = "serde"
version = "1.0.0"
source = "registry"
checksum = "3"

[[package]]
name = "tool"
version = "0.1.0"
dependencies = ["rand"]
"""


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ('checksum = "3"', 'checksum = "4"', ["serde 1.0.0"]),
        ('version = "0.4.1"', 'version = "0.4.2"', ["app 0.1.0", "log 0.4.1", "log 0.4.2"]),
        ('dependencies = ["serde", "log"]', 'dependencies = ["serde"]', ["app 0.1.0", "log 0.4.1"]),
        ('dependencies = ["serde", "log"]', 'dependencies = ["log", "serde"]', []),
        ('version = "0.8.0"', 'version = "0.8.1"', []),
        ("version = 4", "# generated\nversion = 3", []),
    ],
)
def test_the_lock_file_counts_as_far_as_the_program_needs_it(old: str, new: str, changed: list[str]) -> None:
    """Packages that only another member needs may change."""
    found = differences("lock file", LOCK, LOCK.replace(old, new), USE)
    assert found is not None
    assert [difference.key for difference in found] == changed
    assert not any(difference.harmless for difference in found)


def test_a_second_version_for_another_member_changes_names_but_nothing_else() -> None:
    """A dependency is written with its version where its name alone would not do."""
    second = '[[package]]\nname = "log"\nversion = "0.3.0"\nsource = "registry"\nchecksum = "9"\n'
    after = LOCK.replace('"log"]', '"log 0.4.1"]').replace('["rand"]', '["rand", "log 0.3.0"]') + second
    assert differences("lock file", LOCK, after, USE) == ()


def test_a_package_of_a_registry_that_has_the_name_of_ones_own() -> None:
    """It is another one."""
    other = '[[package]]\nname = "app"\nversion = "9.0.0"\nsource = "registry"\nchecksum = "9"\n'
    assert differences("lock file", LOCK, LOCK + other, USE) == ()


@pytest.mark.parametrize(
    ("table", "counts"),
    [
        ("[alias]\nb = 'build'\n", False),
        ("[term]\nverbose = true\n", False),
        ("[net]\noffline = true\n", False),
        ("[build]\nrustflags = ['-Copt-level=1']\n", True),
        ("[env]\nX = '1'\n", True),
        ("[target.x86_64-unknown-linux-gnu]\nlinker = 'clang'\n", True),
    ],
)
def test_cargo_configuration(table: str, counts: bool) -> None:
    """How cargo talks and where it fetches from is of no consequence."""
    assert (why_harmless("cargo configuration", "", table, USE) is None) == counts
