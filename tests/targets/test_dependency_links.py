"""Apps that have the client as a dependency are built for systems that this machine cannot run."""

from collections.abc import Callable
from pathlib import Path

import lief
import pytest

from tests.client.libraries import write_package
from tests.targets.toolchains import Name, Toolchain

APP = """
#[no_mangle]
pub extern "C" fn app() -> i32 {
    hotpatch_client::start();
    hotpatch_client::call(|| 1)
}
"""
# What the client loads libraries with, and finds the program by.
LOADS: dict[Name, set[str]] = {
    "aarch64-apple-darwin": {"_dlopen", "_dlsym", "__dyld_get_image_header"},
    "x86_64-apple-darwin": {"_dlopen", "_dlsym", "__dyld_get_image_header"},
    "aarch64-linux-android": {"android_dlopen_ext", "dlsym", "dl_iterate_phdr"},
}


def undefined_symbols(binary: lief.ELF.Binary | lief.MachO.Binary) -> set[str]:
    """Names of what the dynamic loader has to find."""
    if isinstance(binary, lief.ELF.Binary):
        return {str(symbol.name) for symbol in binary.dynamic_symbols if symbol.shndx == 0}
    return {str(symbol.name) for symbol in binary.imported_symbols}


@pytest.mark.parametrize("target", LOADS)
def test_app_is_linked(
    toolchain: Callable[[Name], Toolchain], pytestconfig: pytest.Config, tmp_path: Path, target: Name
) -> None:
    """The app, a library as on devices, has the client in it, which takes the system's own way to load patches."""
    assert pytestconfig.cache
    source = tmp_path / "app.rs"
    source.write_text(APP)
    write_package(tmp_path, source, crate='[lib]\ncrate-type = ["cdylib"]')
    # The crate `libc` asks for this library, which is in Apple's SDK; nothing of it is used.
    (tmp_path / "libiconv.a").write_bytes(b"!<arch>\n")
    (tmp_path / "build.rs").write_text(f'fn main() {{ println!("cargo:rustc-link-search=native={tmp_path}") }}')
    target_dir = pytestconfig.cache.mkdir("dependent")
    [built] = toolchain(target).build(tmp_path, target_dir=target_dir).glob("libdependent.[sd]*[ob]")
    app = lief.parse(built)
    assert isinstance(app, lief.ELF.Binary | lief.MachO.Binary)
    assert undefined_symbols(app) >= LOADS[target]
    assert any("hotpatch_client" in str(symbol.name) and "5enter" in str(symbol.name) for symbol in app.symbols)
