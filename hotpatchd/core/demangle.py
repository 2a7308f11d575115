"""Rust symbol names as a developer writes them: both manglings, without hashes.

The text is that of the crate rustc-demangle's alternate form (`{:#}`), as in `app::parse::{closure#0}` or
`<app::Shape as core::fmt::Debug>::fmt`; suffixes that LLVM and linkers append (`.llvm.<n>`, `.cold`) are dropped.

*Legacy* names are a list of path elements, each behind its length, with a hash as the last one; what C++ could
not have in a name is written as `$LT$`, `$u20$`, `..`.

*v0* names are a grammar that is read from left to right, with back references to byte positions. What is
read is printed at once, except the path of an `impl` block, which is skipped. Names can be made that recurse
for ever or expand without bound, so depth and output are limited; a real name comes nowhere near.

Source: RFC 2603; https://doc.rust-lang.org/rustc/symbol-mangling/v0.html; `rustc_codegen_utils` legacy mangling
"""

import re
from collections.abc import Callable, Iterator

_LEGACY = re.compile(r"__?ZN(?P<elements>\d.*)17h[0-9a-f]{16}E(?:\..*)?", re.ASCII | re.DOTALL)
_LEGACY_ESCAPE = re.compile(r"\.\.|\$(?:(?P<name>SP|BP|RF|LT|GT|LP|RP|C)|u(?P<code>[0-9a-f]{1,6}))\$")
_LEGACY_CHARS = {"SP": "@", "BP": "*", "RF": "&", "LT": "<", "GT": ">", "LP": "(", "RP": ")", "C": ","}

_V0 = re.compile(r"__?R(?P<path>[A-Z][0-9A-Za-z_]*)(?:[.$].*)?", re.ASCII | re.DOTALL)

_REIFY_SHIM = re.compile(r"(?:\{\{reify\.shim\}\}|::\{shim:reify#\d+\})$")

_BASIC_TYPES = {
    "a": "i8",
    "b": "bool",
    "c": "char",
    "d": "f64",
    "e": "str",
    "f": "f32",
    "h": "u8",
    "i": "isize",
    "j": "usize",
    "l": "i32",
    "m": "u32",
    "n": "i128",
    "o": "u128",
    "p": "_",
    "s": "i16",
    "t": "u16",
    "u": "()",
    "v": "...",
    "x": "i64",
    "y": "u64",
    "z": "!",
}

# A level takes up to three of the thousand frames that the interpreter's stack has.
_MAX_DEPTH = 200
_MAX_CHARS = 100_000
_MAX_INTEGER = 2**64 - 1


def of_shim(symbol: str) -> str:
    """The path of the function that a shim calls for those who have a pointer to it; empty for any other symbol.

    Functions that are told their caller (`#[track_caller]`) have such shims, which do not hand on who called them.

    Source: rustc_middle, `InstanceKind::ReifyShim`.
    """
    path = demangle(symbol)
    found = _REIFY_SHIM.search(path)
    return path[: found.start()] if found else ""


def demangle(name: str) -> str:
    """The readable form of a Rust symbol; any other name, or a malformed one, unchanged.

    A leading underscore more, as Mach-O has it, is taken for part of the mangling.
    """
    if not name.isascii():
        return name
    try:
        if legacy := _LEGACY.fullmatch(name):
            return _demangle_legacy(legacy["elements"])
        if v0 := _V0.fullmatch(name):
            return _V0Reader(v0["path"]).read_symbol()
    except _MalformedError:
        pass
    return name


class _MalformedError(Exception):
    """The name does not follow the grammar, or is beyond the limits."""


def _demangle_legacy(elements: str) -> str:
    path = []
    while elements:
        digits = re.match(r"\d{1,6}", elements)
        length = int(digits[0]) if digits else 0
        start = digits.end() if digits else 0
        element, elements = elements[start : start + length], elements[start + length :]
        if not length or len(element) != length:
            raise _MalformedError
        # An escape may not come first in an identifier, so an underscore was put before it.
        path.append(_LEGACY_ESCAPE.sub(_unescape_legacy, element[element.startswith("_$") :]))
    return "::".join(path)


def _unescape_legacy(escape: re.Match[str]) -> str:
    if escape["name"]:
        return _LEGACY_CHARS[escape["name"]]
    if not escape["code"]:
        return "::"
    char = _char(int(escape["code"], 16))
    return char if char is not None and char >= " " else escape[0]


def _char(code: int) -> str | None:
    """The character with this number; None if it is not a Unicode scalar value."""
    return chr(code) if code < 0xD800 or 0xE000 <= code <= 0x10FFFF else None


class _V0Reader:
    """Reads a v0 name, without its prefix and suffix, and prints it. Methods are named after the grammar's symbols."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0
        self.printed: list[str] = []
        self.printed_chars = 0
        self.is_skipping = False
        self.bound_lifetimes = 0

    def read_symbol(self) -> str:
        self.path(in_value=True)
        if self.at < len(self.text):
            self.is_skipping = True
            self.path(in_value=False)  # the crate that instantiates a generic function
        if self.at < len(self.text):
            raise _MalformedError
        return "".join(self.printed)

    def write(self, text: str) -> None:
        if not self.is_skipping:
            self.printed.append(text)
            self.printed_chars += len(text)
            if self.printed_chars > _MAX_CHARS:
                raise _MalformedError

    def enter(self) -> None:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _MalformedError

    def take(self) -> str:
        if self.at >= len(self.text):
            raise _MalformedError
        self.at += 1
        return self.text[self.at - 1]

    def eat(self, tag: str) -> bool:
        found = self.text.startswith(tag, self.at)
        self.at += found
        return found

    def match(self, pattern: str) -> re.Match[str]:
        match = re.compile(pattern).match(self.text, self.at)
        if match is None:
            raise _MalformedError
        self.at = match.end()
        return match

    def elements(self, separator: str) -> Iterator[int]:
        """Yield the index of each element, printing the separator between them, up to the closing `E`."""
        index = 0
        while not self.eat("E"):
            if index:
                self.write(separator)
            yield index
            index += 1

    def tuple(self, read: Callable[[], object]) -> None:
        self.write("(")
        is_single = False
        for index in self.elements(", "):
            read()
            is_single = index == 0
        self.write(",)" if is_single else ")")

    def base_62_number(self) -> int:
        """`_` is 0, `0_` is 1, and so on; digits are 0-9, a-z, A-Z."""
        digits = self.match(r"([0-9A-Za-z]{0,11})_")[1]
        number = 0
        for digit in digits:
            value = int(digit, 36) + (26 if digit.isupper() else 0)
            number = number * 62 + value
        number += bool(digits)
        if number > _MAX_INTEGER:
            raise _MalformedError
        return number

    def optional_number(self, tag: str) -> int:
        return self.base_62_number() + 1 if self.eat(tag) else 0

    def undisambiguated_identifier(self) -> str:
        is_punycode = self.eat("u")
        length = int(self.match(r"(0|[1-9][0-9]{0,6})_?")[1])
        text = self.text[self.at : self.at + length]
        self.at += length
        if len(text) < length:
            raise _MalformedError
        return _decode_punycode(text) if is_punycode else text

    def backref(self, read: Callable[[], object]) -> None:
        """Read something again that stands earlier in the name. Nothing is printed of it while skipping."""
        start = self.at - 1
        target = self.base_62_number()
        if target >= start:
            raise _MalformedError
        if not self.is_skipping:
            after, self.at = self.at, target
            read()
            self.at = after

    def path(self, *, in_value: bool) -> None:
        """Print a path; in a value, generic arguments come after `::`."""
        self.enter()
        tag = self.take()
        if tag == "C":
            self.optional_number("s")
            self.write(self.undisambiguated_identifier())
        elif tag == "N":
            namespace = self.match("[A-Za-z]")[0]
            self.path(in_value=in_value)
            index = self.optional_number("s")
            name = self.undisambiguated_identifier()
            if namespace.isupper():
                kind = {"C": "closure", "S": "shim"}.get(namespace, namespace)
                self.write(f"::{{{kind}:{name}#{index}}}" if name else f"::{{{kind}#{index}}}")
            elif name:
                self.write(f"::{name}")
        elif tag in "MXY":
            if tag != "Y":
                self.impl_path()
            self.write("<")
            self.type()
            if tag != "M":
                self.write(" as ")
                self.path(in_value=False)
            self.write(">")
        elif tag == "I":
            self.path(in_value=in_value)
            self.write("::<" if in_value else "<")
            for _ in self.elements(", "):
                self.generic_arg()
            self.write(">")
        elif tag == "B":
            self.backref(lambda: self.path(in_value=in_value))
        else:
            raise _MalformedError
        self.depth -= 1

    def impl_path(self) -> None:
        """Skip where the `impl` block stands."""
        was_skipping, self.is_skipping = self.is_skipping, True
        self.optional_number("s")
        self.path(in_value=False)
        self.is_skipping = was_skipping

    def generic_arg(self) -> None:
        if self.eat("L"):
            self.lifetime(self.base_62_number())
        elif self.eat("K"):
            self.const(in_value=False)
        else:
            self.type()

    def lifetime(self, index: int) -> None:
        """Print a lifetime: 0 is erased, 1 the innermost one that a `for<…>` binds."""
        if self.is_skipping:
            return
        depth = self.bound_lifetimes - index
        if depth < 0:
            raise _MalformedError
        if index == 0:
            self.write("'_")
        else:
            self.write(f"'{chr(ord('a') + depth)}" if depth < 26 else f"'_{depth}")

    def binder(self) -> int:
        """Print `for<'a, 'b> ` and make the lifetimes known; returns how many to forget afterwards."""
        count = self.optional_number("G")
        if count == 0 or self.is_skipping:
            return 0
        self.write("for<")
        for index in range(count):
            if index:
                self.write(", ")
            self.bound_lifetimes += 1
            self.lifetime(1)
        self.write("> ")
        return count

    def type(self) -> None:
        self.enter()
        if self.eat("w"):
            self.write("#[splat] ")
        tag = self.take()
        if tag in _BASIC_TYPES:
            self.write(_BASIC_TYPES[tag])
        elif tag in "RQ":
            self.write("&")
            lifetime = self.base_62_number() if self.eat("L") else 0
            if lifetime:
                self.lifetime(lifetime)
                self.write(" ")
            self.write("mut " if tag == "Q" else "")
            self.type()
        elif tag in "PO":
            self.write("*const " if tag == "P" else "*mut ")
            self.type()
        elif tag in "AS":
            self.write("[")
            self.type()
            if tag == "A":
                self.write("; ")
                self.const(in_value=True)
            self.write("]")
        elif tag == "T":
            self.tuple(self.type)
        elif tag == "F":
            self.fn_type()
        elif tag == "D":
            self.dyn_type()
        elif tag == "W":
            self.type()
            self.write(" is ")
            self.pattern()
        elif tag == "B":
            self.backref(self.type)
        else:
            self.at -= 1
            self.path(in_value=False)
        self.depth -= 1

    def fn_type(self) -> None:
        bound = self.binder()
        if self.eat("U"):
            self.write("unsafe ")
        if self.eat("K"):
            abi = "C" if self.eat("C") else self.undisambiguated_identifier().replace("_", "-")
            self.write(f'extern "{abi}" ')
        self.write("fn(")
        for _ in self.elements(", "):
            self.type()
        self.write(")")
        if not self.eat("u"):
            self.write(" -> ")
            self.type()
        self.bound_lifetimes -= bound

    def dyn_type(self) -> None:
        self.write("dyn ")
        bound = self.binder()
        for _ in self.elements(" + "):
            self.dyn_trait()
        self.bound_lifetimes -= bound
        self.match("L")
        lifetime = self.base_62_number()
        if lifetime:
            self.write(" + ")
            self.lifetime(lifetime)

    def dyn_trait(self) -> None:
        is_open = self.path_with_open_generics()
        while self.eat("p"):
            self.write(", " if is_open else "<")
            is_open = True
            self.write(f"{self.undisambiguated_identifier()} = ")
            if self.eat("K"):
                self.const(in_value=False)
            else:
                self.type()
        if is_open:
            self.write(">")

    def path_with_open_generics(self) -> bool:
        """Print a path whose `<…>`, if it has one, is left open for associated types; returns whether it has."""
        self.enter()
        is_open = False
        if self.eat("B"):
            found: list[bool] = []
            self.backref(lambda: found.append(self.path_with_open_generics()))
            is_open = found == [True]
        elif self.eat("I"):
            self.path(in_value=False)
            self.write("<")
            for _ in self.elements(", "):
                self.generic_arg()
            is_open = True
        else:
            self.path(in_value=False)
        self.depth -= 1
        return is_open

    def pattern(self) -> None:
        """Print what a pattern type (`u32 is 1..=9`) allows."""
        self.enter()
        tag = self.take()
        if tag == "R":
            self.const(in_value=False)
            self.write("..=")
            self.const(in_value=False)
        elif tag == "O":
            for _ in self.elements(" | "):
                self.pattern()
        elif tag == "N":
            self.write("!null")
        else:
            raise _MalformedError
        self.depth -= 1

    def const(self, *, in_value: bool) -> None:
        """Print a constant, in braces where it stands as a generic argument and is more than a literal."""
        self.enter()
        tag = self.take()
        is_str_literal = tag == "R" and self.eat("e")
        needs_braces = not in_value and tag in "eRQATV" and not is_str_literal
        self.write("{" if needs_braces else "")
        if tag == "p":
            self.write("_")
        elif tag in "hmtyoj":
            self.integer()
        elif tag in "aslxni":
            self.write("-" if self.eat("n") else "")
            self.integer()
        elif tag == "b":
            self.write("true" if self.match("0*([01]?)_")[1] == "1" else "false")
        elif tag == "c":
            self.quoted("'", self.scalar_value())
        elif tag == "e" or is_str_literal:
            self.write("" if is_str_literal else "*")
            self.quoted('"', self.str_value())
        elif tag in "RQ":
            self.write("&" if tag == "R" else "&mut ")
            self.const(in_value=True)
        elif tag == "A":
            self.write("[")
            for _ in self.elements(", "):
                self.const(in_value=True)
            self.write("]")
        elif tag == "T":
            self.tuple(lambda: self.const(in_value=True))
        elif tag == "V":
            self.path(in_value=True)
            self.fields()
        elif tag == "B":
            self.backref(lambda: self.const(in_value=in_value))
        else:
            raise _MalformedError
        self.write("}" if needs_braces else "")
        self.depth -= 1

    def fields(self) -> None:
        """Print the fields of a constant struct, tuple struct or unit struct."""
        shape = self.match("[UTS]")[0]
        if shape == "T":
            self.write("(")
            for _ in self.elements(", "):
                self.const(in_value=True)
            self.write(")")
        elif shape == "S":
            self.write(" { ")
            for _ in self.elements(", "):
                self.optional_number("s")
                self.write(f"{self.undisambiguated_identifier()}: ")
                self.const(in_value=True)
            self.write(" }")

    def nibbles(self) -> str:
        return self.match("([0-9a-f]*)_")[1]

    def integer(self) -> None:
        nibbles = self.nibbles()
        value = int(f"0{nibbles}", 16)
        self.write(str(value) if value <= _MAX_INTEGER else f"0x{nibbles}")

    def scalar_value(self) -> str:
        char = _char(int(f"0{self.nibbles()}", 16))
        if char is None:
            raise _MalformedError
        return char

    def str_value(self) -> str:
        try:
            return bytes.fromhex(self.nibbles()).decode()
        except ValueError:
            raise _MalformedError from None

    def quoted(self, quote: str, text: str) -> None:
        escaped = (char if char == "'\""[quote == "'"] else _escape(char) for char in text)
        self.write(f"{quote}{''.join(escaped)}{quote}")


def _escape(char: str) -> str:
    """As Rust's `char::escape_debug`."""
    escapes = {"\0": "\\0", "\t": "\\t", "\n": "\\n", "\r": "\\r", '"': '\\"', "'": "\\'", "\\": "\\\\"}
    return escapes.get(char) or (char if char.isprintable() else f"\\u{{{ord(char):x}}}")


def _decode_punycode(text: str) -> str:
    """Decode an identifier, whose last `_` stands for punycode's `-`."""
    ascii_part, _, insertions = text.rpartition("_")
    if not insertions:
        raise _MalformedError
    encoded = f"{ascii_part}-{insertions}" if ascii_part else insertions
    try:
        decoded = encoded.encode().decode("punycode")
        decoded.encode()
    except UnicodeError:
        return f"punycode{{{encoded}}}"
    return decoded
