"""Small Rust programs as values: what the generator makes, edits, writes as Rust, and interprets.

All arithmetic is that of `i64` and wraps. Every item has a rank; code uses items of a lower rank only, so nothing calls
itself but by `Recur`, and no lock is taken twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Literal, TypeAlias, TypeVar, cast

T = TypeVar("T")
Operator = Literal["add", "sub", "mul", "xor"]
FIELD_KINDS = ("u8", "u16", "u32", "i64", "String")
StaticKind = Literal[
    "atomic",
    "mutex",
    "local",
    "lazy_local",
    "once",
    "lazy",
    "plain",
    "list",
    "kept",
    "objects",
    "hooks",
    "makers",
    "holders",
    "pointer",
    "tasks",
]
CLOSURE_KINDS = frozenset({"hooks", "makers", "holders"})
"""Statics that keep closures: of numbers, of those that give objects, and of those that took one along."""
RANK_OF_TICK = 1e9
RECURSIONS = 3
KEEPS = 3
"""How many values, objects or closures a static keeps; the oldest goes first."""


@dataclass(frozen=True, slots=True)
class Lit:
    """A number."""

    value: int


@dataclass(frozen=True, slots=True)
class Var:
    """A local variable or parameter of type `i64`."""

    name: str


@dataclass(frozen=True, slots=True)
class ConstRef:
    """The value of a `const`."""

    name: str


@dataclass(frozen=True, slots=True)
class Bin:
    """An operation that wraps."""

    operator: Operator
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class If:
    """`if left < right`."""

    left: Expr
    right: Expr
    then: Expr
    other: Expr


@dataclass(frozen=True, slots=True)
class Match:
    """One arm for each remainder."""

    value: Expr
    arms: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """The hash of a text and a number that are formatted together."""

    text: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Now:
    """A closure that is called at once; `param` is its parameter."""

    param: str
    body: Expr
    argument: Expr


@dataclass(frozen=True, slots=True)
class Fold:
    """The sum of a closure's results for 0 to `times`, by an iterator."""

    times: int
    param: str
    body: Expr


@dataclass(frozen=True, slots=True)
class Catch:
    """A panic if `condition` is even, caught: then `fallback`, else `value`."""

    condition: Expr
    value: Expr
    fallback: int


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a function; `seeds` make the objects that it takes, `witness` is a generic one's type."""

    function: str
    arguments: tuple[Expr, ...]
    seeds: tuple[Expr, ...]
    witness: str | None


@dataclass(frozen=True, slots=True)
class Recur:
    """A call of the function itself, one deeper."""

    argument: Expr


@dataclass(frozen=True, slots=True)
class Read:
    """A field of an object in a variable; None for the sum of all of them, or what an enum's variant weighs."""

    variable: str
    type: str
    field: str | None


@dataclass(frozen=True, slots=True)
class Method:
    """A method of an object in a variable, or, with a seed, of a new one."""

    type: str
    method: str
    variable: str | None
    seed: Expr
    argument: Expr


@dataclass(frozen=True, slots=True)
class Act:
    """A trait's method of a generic function's object."""

    trait: str
    method: str
    variable: str
    argument: Expr


@dataclass(frozen=True, slots=True)
class Dyn:
    """A trait's method of one of several boxed trait objects."""

    trait: str
    method: str
    types: tuple[str, ...]
    chooser: Expr
    argument: Expr


@dataclass(frozen=True, slots=True)
class Use:
    """A static of numbers is moved by a value and read."""

    static: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Keep:
    """A static gets one more value of a type, and all that it keeps are asked."""

    static: str
    type: str
    seed: Expr
    argument: Expr


@dataclass(frozen=True, slots=True)
class Hook:
    """A static gets one more closure, and all that it keeps are called.

    What `body` gives is the result, or what the resulting object is made from, or is added to the object taken along,
    which is made from the argument.
    """

    static: str
    param: str
    body: Expr
    argument: Expr


@dataclass(frozen=True, slots=True)
class Point:
    """A function is called by the pointer that a static got when it was first used."""

    static: str
    function: str
    argument: Expr


@dataclass(frozen=True, slots=True)
class Spawn:
    """A static gets an `async` function's future, if there is room, and all that it keeps are polled."""

    static: str
    function: str
    argument: Expr


Expr: TypeAlias = (
    Lit
    | Var
    | ConstRef
    | Bin
    | If
    | Match
    | Text
    | Now
    | Fold
    | Catch
    | Call
    | Recur
    | Read
    | Method
    | Act
    | Dyn
    | Use
    | Keep
    | Hook
    | Point
    | Spawn
)


@dataclass(frozen=True, slots=True)
class Body:
    """Variables, each with its value, and the result."""

    lets: tuple[tuple[str, Expr], ...]
    result: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A free function.

    Args:
        name: unique in the program.
        home: crate and module, `app::m0`.
        rank: where it is in the order of use.
        params: numbers; of a recursive function, the last is the depth.
        objects: variable and type of what it borrows.
        bound: of a generic function, the trait of its object `t`.
        recursive: whether it calls itself.
        is_async: whether it is `async`, and waits once before its result.
        body: its code.
    """

    name: str
    home: str
    rank: float
    params: tuple[str, ...]
    objects: tuple[tuple[str, str], ...] = ()
    bound: str | None = None
    recursive: bool = False
    is_async: bool = False
    body: Body


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A field; its value is `seed * factor + offset`, cut to its kind, or what a type's `new` makes of that."""

    name: str
    kind: str
    factor: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """An enum's variant: with a value of a kind, or without, and what it weighs."""

    name: str
    kind: str | None
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A method's code, with the name of its only parameter `x`."""

    name: str
    body: Body


@dataclass(frozen=True, slots=True, kw_only=True)
class Impl:
    """The methods of a trait for a type."""

    trait: str
    methods: tuple[Code, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Type:
    """A struct or, with variants, an enum."""

    name: str
    home: str
    rank: float
    fields: tuple[Field, ...] = ()
    variants: tuple[Variant, ...] = ()
    methods: tuple[Code, ...] = ()
    impls: tuple[Impl, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trait:
    """A trait; its methods have one parameter."""

    name: str
    home: str
    rank: float
    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Static:
    """A static; `holds` is the type or trait of what it keeps."""

    name: str
    home: str
    rank: float
    kind: StaticKind
    initial: int
    holds: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Const:
    """A constant."""

    name: str
    home: str
    rank: float
    value: int


def type_in(kind: str | None) -> str | None:
    """The type that a field holds: as it is, in a box, or in a list."""
    inner = (kind or "String").removeprefix("Box<").removeprefix("Vec<").removesuffix(">")
    return None if inner in FIELD_KINDS else inner


def types_in(item: Type) -> tuple[str, ...]:
    """The types that a type's fields hold."""
    kinds = [*(field.kind for field in item.fields), *(variant.kind for variant in item.variants)]
    return tuple(inner for kind in kinds if (inner := type_in(kind)))


Item: TypeAlias = Function | Type | Trait | Static | Const


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A workspace.

    Args:
        crates: lowest first; the last is the program.
        items: all of them, in the order in which they are written.
        tick: what the program evaluates for each line that it is sent; `n` is that line's number. It shows the
            variables; the result is always 0.
        profile: cargo's profile, as lines of a manifest.
        comments: module → how many lines of comment it begins with.
    """

    crates: tuple[str, ...]
    items: tuple[Item, ...]
    tick: Body
    profile: str
    comments: tuple[tuple[str, int], ...] = ()

    def find(self, name: str) -> Item | None:
        """The item of this name."""
        return next((item for item in self.items if item.name == name), None)

    def get_item(self, name: str) -> Item:
        """The item of this name, which is there."""
        item = self.find(name)
        assert item, name
        return item

    def get(self, name: str, kind: type[T]) -> T:
        """The item of this name, which is there."""
        item = self.find(name)
        assert isinstance(item, kind), f"{name} is {item}"
        return item

    def all(self, kind: type[T]) -> tuple[T, ...]:
        """The items of a kind."""
        return tuple(item for item in self.items if isinstance(item, kind))

    @property
    def is_optimised(self) -> bool:
        """Whether the optimiser runs."""
        return "opt-level" in self.profile

    def is_below(self, item: Item, home: str, rank: float) -> bool:
        """Whether code in this module and of this rank may use the item."""
        return item.rank < rank and self.crate_number(item.home) <= self.crate_number(home)

    def crate_number(self, home: str) -> int:
        """How many crates are below the crate of this module."""
        return self.crates.index(home.split("::", maxsplit=1)[0])


Owner: TypeAlias = tuple[str, ...]
"""Whose code a body is: a function; a type and its method; a type, a trait and its method; or `tick`."""


def bodies(program: Program) -> Iterator[tuple[Owner, Body]]:
    """All code of a program."""
    for item in program.items:
        if isinstance(item, Function):
            yield (item.name,), item.body
        elif isinstance(item, Type):
            for code in item.methods:
                yield (item.name, code.name), code.body
            for impl in item.impls:
                for code in impl.methods:
                    yield (item.name, impl.trait, code.name), code.body
    yield ("tick",), program.tick


def with_body(program: Program, owner: Owner, body: Body) -> Program:
    """The program with another body for an owner."""
    if owner == ("tick",):
        return replace(program, tick=replace(body, result=Lit(0)))
    item = program.find(owner[0])
    if isinstance(item, Function):
        return with_item(program, replace(item, body=body))
    assert isinstance(item, Type)
    if len(owner) == 2:
        return with_item(program, replace(item, methods=_with_code(item.methods, owner[1], body)))
    impls = tuple(
        replace(impl, methods=_with_code(impl.methods, owner[2], body)) if impl.trait == owner[1] else impl
        for impl in item.impls
    )
    return with_item(program, replace(item, impls=impls))


def _with_code(codes: tuple[Code, ...], name: str, body: Body) -> tuple[Code, ...]:
    return tuple(replace(code, body=body) if code.name == name else code for code in codes)


def with_item(program: Program, item: Item) -> Program:
    """The program with the item in place of the one of its name."""
    return replace(program, items=tuple(item if one.name == item.name else one for one in program.items))


def expressions(part: Body | Expr) -> Iterator[Expr]:
    """Every expression of a body or of an expression, in the order of the source."""
    if not isinstance(part, Body):
        yield part
    for value in _values(part):
        yield from expressions(value)


def children(expr: Body | Expr) -> tuple[Expr, ...]:
    """The expressions that are a part of this one, directly, in the order of the source."""
    return tuple(_values(expr))


def _values(part: Body | Expr) -> Iterator[Expr]:
    if isinstance(part, Body):
        yield from (value for _, value in part.lets)
        yield part.result
        return
    for field in fields(part):
        value = getattr(part, field.name)
        if is_dataclass(value):
            yield cast(Expr, value)
        elif isinstance(value, tuple):
            yield from (cast(Expr, one) for one in value if is_dataclass(one))


def named(expr: Expr) -> tuple[str, ...]:
    """The items that an expression names, without those that its parts name."""
    match expr:
        case ConstRef(name):
            return (name,)
        case Call(function=function, witness=witness):
            return (function, *([witness] if witness else []))
        case Method(type=kind):
            return (kind,)
        case Act(trait=trait):
            return (trait,)
        case Dyn(trait=trait, types=types):
            return (trait, *types)
        case Use(static=static) | Hook(static=static):
            return (static,)
        case Keep(static=static, type=kind):
            return (static, kind)
        case Point(static=static, function=function) | Spawn(static=static, function=function):
            return (static, function)
        case _:
            return ()


P = TypeVar("P", bound=Body | Expr)


def mapped(part: P, change: Callable[[Expr], Expr]) -> P:
    """A body or expression with each of its direct parts changed."""
    if isinstance(part, Body):
        return cast(P, Body(tuple((name, change(value)) for name, value in part.lets), change(part.result)))
    changed: dict[str, object] = {}
    for field in fields(part):
        value = getattr(part, field.name)
        if is_dataclass(value):
            changed[field.name] = change(cast(Expr, value))
        elif isinstance(value, tuple):
            changed[field.name] = tuple(change(cast(Expr, one)) if is_dataclass(one) else one for one in value)
    return cast(P, replace(cast(Expr, part), **changed))  # type: ignore[arg-type]


def rewritten(part: P, change: Callable[[Expr], Expr]) -> P:
    """A body or expression with every expression in it changed, innermost first."""
    return mapped(part, lambda expr: change(rewritten(expr, change)))
