"""What the source says of how functions are called."""

import pytest

from hotpatchd.core.conventions import find_conventions


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (b"fn plain() {}", set()),
        (b'pub unsafe extern "C" fn f(a: u8) {}', {("f", "C")}),
        (b"extern fn f() {}", {("f", "C")}),
        (b'extern\n  "C-unwind"\n  fn f<T>() {}', {("f", "C")}),
        (b'extern "system" fn f() {}', {("f", "C")}),
        (b'extern "win64" fn r#type() {} extern "sysv64" fn g() {}', {("type", "win64"), ("g", "sysv64")}),
        (b'extern r#"C"# fn f() {}', {("f", "C")}),
        (b'extern "Rust" fn f() {}', set()),
        (b'extern "C" { fn foreign(); }', set()),
        (b'static F: extern "C" fn(u8) = g;', set()),
    ],
    ids=lambda value: value.decode() if isinstance(value, bytes) else "",
)
def test_functions_with_a_convention_of_their_own_are_found(source: bytes, found: set[tuple[str, str]]) -> None:
    """Declarations of foreign functions and types of function pointers define none."""
    assert find_conventions(source) == found
