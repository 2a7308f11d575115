"""Which names are rustc's."""

import pytest

from hotpatchd.core.unit import is_rust_name


@pytest.mark.parametrize(
    "symbol",
    [
        "_RNvCs1234_7mycrate3foo",
        "_ZN3app4main17h0123456789abcdefE",
        "_ZN3app4main17h0123456789abcdefE.llvm.1234567890",
    ],
)
def test_names_with_rustcs_mangling(symbol: str) -> None:
    """Both manglings, and what optimisation adds to them."""
    assert is_rust_name(symbol)


@pytest.mark.parametrize(
    "symbol",
    [
        "",
        "main",
        "memcpy",
        "rust_eh_personality",
        "_ZNSt6vectorIiE4sizeEv",
        "_ZN3app17h0123E",
        "app17h0123456789abcdefE",
    ],
)
def test_names_of_other_languages(symbol: str) -> None:
    """C names, C++ names, and what only resembles a Rust name."""
    assert not is_rust_name(symbol)
