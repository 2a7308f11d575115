"""Link plans for the linker commands in `fixtures/linklines`, and how they are written down.

`python -m tests.core.dylib_plans` writes what is planned now; whoever runs it reads the difference.
"""

from dataclasses import replace
from pathlib import Path

from hotpatchd.core.dylibplan import DylibPlan, plan_dylib_link
from hotpatchd.core.linkline import LinkLine, parse_link_line
from tests.core.linker_words import split_windows

FIXTURES = Path(__file__).parents[2] / "fixtures" / "linklines"

TARGETS = {
    "dev-bin": "x86_64-unknown-linux-gnu",
    "dev-cdylib-rlib-staticlib": "x86_64-unknown-linux-gnu",
    "aarch64-linux-gcc": "aarch64-unknown-linux-gnu",
    "aarch64-linux-ld-lld": "aarch64-unknown-linux-gnu",
    "musl-dynamic-gcc": "x86_64-unknown-linux-musl",
    "android-rust-lld": "aarch64-linux-android",
    "android-clang": "aarch64-linux-android",
    "android-ndk-clang-reconstructed": "aarch64-linux-android",
    "macos-cc": "aarch64-apple-darwin",
    "macos-cc-cdylib": "aarch64-apple-darwin",
    "macos-xcode-cc-reconstructed": "aarch64-apple-darwin",
    "macos-zig-script": "aarch64-apple-darwin",
    "macos-python-ziglang-reconstructed": "aarch64-apple-darwin",
    "macos-rust-lld": "aarch64-apple-darwin",
    "ios-simulator-cc": "aarch64-apple-ios-sim",
    "ios-simulator-xcode-cc-reconstructed": "aarch64-apple-ios-sim",
    "windows-gnu-gcc": "x86_64-pc-windows-gnu",
    "windows-gnu-self-contained": "x86_64-pc-windows-gnu",
    "windows-msvc-link-cdylib": "x86_64-pc-windows-msvc",
    "windows-msvc-lld-link": "x86_64-pc-windows-msvc",
    "windows-msvc-link-reconstructed": "x86_64-pc-windows-msvc",
    "windows-msvc-response-reconstructed": "x86_64-pc-windows-msvc",
}
"""For which target each command links."""

OBJECTS = ("/patch/1/app.o", "/patch/1/stub o.o")
OUTPUT = "/patch/1/libpatch-1.so"


def captured(name: str) -> LinkLine:
    """A command of the fixtures, its response file put in its place."""
    line = parse_link_line((FIXTURES / f"{name}.txt").read_text("utf-8"))
    response = FIXTURES / f"{name}.rsp"
    if not response.exists():
        return line
    return replace(line, argv=(line.driver, *split_windows(response.read_text("utf-16"))))


def planned(name: str) -> DylibPlan:
    """The plan for it, made on a Mac where that matters."""
    target = TARGETS[name]
    on_macos = "apple" in target and "zig" not in name
    return plan_dylib_link(
        captured(name), target=target, objects=OBJECTS, output=OUTPUT, exports=("main",), on_macos=on_macos
    )


def shown(plan: DylibPlan) -> str:
    """All of a plan, a word or a row to a line."""

    def block(title: str, lines: list[str]) -> str:
        return "".join([f"{title}:\n", *(f"    {line}\n" for line in lines)])

    return "".join(
        [
            block("argv", list(plan.argv)),
            block(f"response, {plan.response_encoding}", plan.response.splitlines()),
            block("after", [" ".join(command) for command in plan.after]),
            block("added", [f"{words}    {reason}" for words, reason in plan.added]),
            block("dropped", [f"{words}    {reason}" for words, reason in plan.dropped]),
        ]
    )


if __name__ == "__main__":
    for name in TARGETS:
        (FIXTURES / f"{name}.plan").write_text(shown(planned(name)), "utf-8")
