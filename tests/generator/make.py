"""Random programs and random expressions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from tests.generator.language import (
    CLOSURE_KINDS,
    FIELD_KINDS,
    RANK_OF_TICK,
    RECURSIONS,
    Act,
    Bin,
    Body,
    Call,
    Catch,
    Code,
    Const,
    ConstRef,
    Dyn,
    Expr,
    Field,
    Fold,
    Function,
    Hook,
    If,
    Impl,
    Item,
    Keep,
    Lit,
    Match,
    Method,
    Now,
    Owner,
    Point,
    Program,
    Read,
    Recur,
    Spawn,
    Static,
    StaticKind,
    Text,
    Trait,
    Type,
    Use,
    Var,
    Variant,
    bodies,
    children,
)
from tests.generator.render import MODULES

NUMBER_STATICS: tuple[StaticKind, ...] = ("atomic", "mutex", "local", "lazy_local", "once", "lazy", "plain", "list")
STATIC_KINDS: tuple[StaticKind, ...] = (
    *NUMBER_STATICS,
    "kept",
    "kept",
    "objects",
    "hooks",
    "hooks",
    "makers",
    "holders",
    "pointer",
    "tasks",
)
COST_LIMIT = 3000
"""How many expressions one tick may evaluate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What code may name.

    Args:
        home: its module.
        rank: its rank.
        numbers: variables of type `i64`.
        objects: variable and type of what it borrows.
        bound: the trait of the generic object `t`.
        recursive: whether it may call itself.
        is_plain: whether it may only name numbers, variables and constants. So it is in kept closures of optimised
            programs: where such a closure keeps its old code, that has copies of what it called.
    """

    home: str
    rank: float
    numbers: tuple[str, ...]
    objects: tuple[tuple[str, str], ...] = ()
    bound: str | None = None
    recursive: bool = False
    is_plain: bool = False


def scope_of(program: Program, owner: Owner) -> Scope:
    """The scope in which an owner's code begins."""
    if owner == ("tick",):
        return Scope(home=f"{program.crates[-1]}::tick", rank=RANK_OF_TICK, numbers=("n",))
    item = program.find(owner[0])
    if isinstance(item, Function):
        return Scope(
            home=item.home,
            rank=item.rank,
            numbers=item.params,
            objects=item.objects,
            bound=item.bound,
            recursive=item.recursive,
        )
    assert isinstance(item, Type)
    return Scope(home=item.home, rank=item.rank, numbers=("x",), objects=(("self", item.name),))


class Maker:
    """Makes random parts of a program.

    Args:
        random: where chance comes from.
        program: what there is to use.
    """

    def __init__(self, random: Random, program: Program) -> None:
        self.random = random
        self.program = program

    def number(self) -> int:
        """A number, mostly a small one."""
        return self.random.choice((self.random.randrange(10), self.random.randrange(-100, 1000)))

    def unused(self, prefix: str) -> str:
        """A name that no item has."""
        taken = {item.name for item in self.program.items}
        return next(name for at in range(10**6) if (name := f"{prefix}{at}") not in taken)

    def home(self, crate: str | None = None) -> str:
        """A module."""
        return f"{crate or self.random.choice(self.program.crates)}::{self.random.choice(MODULES)}"

    def body(self, scope: Scope, lets: int) -> Body:
        """A body with so many variables."""
        made: list[tuple[str, Expr]] = []
        for at in range(lets):
            made.append((f"v{at}", self.statement(scope)))
            scope = replace(scope, numbers=(*scope.numbers, f"v{at}"))
        return Body(tuple(made), self.expr(scope, 3))

    def statement(self, scope: Scope) -> Expr:
        """What a variable is set to: here closures are kept, too."""
        hooks = [static for static in self._statics(scope) if static.kind in CLOSURE_KINDS]
        if hooks and not scope.bound and self.random.random() < 0.5:
            return self.hook(scope, self.random.choice(hooks))
        return self.expr(scope, 3)

    def expr(self, scope: Scope, depth: int) -> Expr:
        """An expression that is at most so deep."""
        simple: list[Callable[[], Expr]] = [lambda: Lit(self.number())]
        if scope.numbers:
            simple += [lambda: Var(self.random.choice(scope.numbers))] * 2
        consts = [item for item in self.program.all(Const) if self._below(scope, item)]
        if consts:
            simple.append(lambda: ConstRef(self.random.choice(consts).name))
        for variable, kind in scope.objects:
            simple.append(lambda variable=variable, kind=kind: self._read(variable, kind))  # type: ignore[misc]
        deeper = scope, depth - 1
        if depth <= 0:
            return self.random.choice(simple)()
        if scope.is_plain:
            simple.append(lambda: Bin("add", self.expr(*deeper), self.expr(*deeper)))
            return self.random.choice(simple)()
        choices: list[Callable[[], Expr]] = [
            lambda: Bin(self.random.choice(("add", "sub", "mul", "xor")), self.expr(*deeper), self.expr(*deeper)),
            lambda: Bin("add", self.expr(*deeper), self.expr(*deeper)),
            lambda: If(*(self.expr(*deeper) for _ in range(4))),
            lambda: Match(self.expr(*deeper), tuple(self.expr(*deeper) for _ in range(self.random.randrange(2, 5)))),
            lambda: Text(f"t{self.random.randrange(100)}-", self.expr(*deeper)),
            lambda: Now("x0", self._closure(scope, "x0", depth), self.expr(*deeper)),
            lambda: Fold(self.random.randrange(2, 5), "x1", self._closure(scope, "x1", depth)),
            lambda: Catch(self.expr(*deeper), self._closure(scope, None, depth), self.number()),
            *simple,
            *self._uses(scope, depth),
        ]
        return self.random.choice(choices)()

    def _below(self, scope: Scope, item: Item) -> bool:
        return self.program.is_below(item, scope.home, scope.rank)

    def _statics(self, scope: Scope) -> list[Static]:
        return [item for item in self.program.all(Static) if self._below(scope, item)]

    def _closure(self, scope: Scope, param: str | None, depth: int) -> Expr:
        numbers = (*scope.numbers, param) if param else scope.numbers
        return self.expr(replace(scope, numbers=numbers), depth - 1)

    def _read(self, variable: str, kind: str) -> Expr:
        item = self.program.get(kind, Type)
        names = [None, *(field.name for field in item.fields)] if variable == "self" or item.fields else [None]
        return Read(variable, kind, self.random.choice(names))

    def _uses(self, scope: Scope, depth: int) -> list[Callable[[], Expr]]:
        deeper = scope, depth - 1
        choices: list[Callable[[], Expr]] = []
        functions = [item for item in self.program.all(Function) if self._below(scope, item)]
        if functions:
            choices += [lambda: self.call(scope, self.random.choice(functions), depth)] * 4
        types = [item for item in self.program.all(Type) if item.methods and self._below(scope, item)]
        if types:
            choices.append(lambda: self._method(scope, self.random.choice(types), depth))
        for variable, kind in scope.objects:
            methods = self.program.get(kind, Type).methods
            if methods and variable != "self":
                name = self.random.choice(methods).name
                choices.append(lambda v=variable, k=kind, m=name: Method(k, m, v, Lit(0), self.expr(*deeper)))  # type: ignore[misc]
        dynamic = [(item, self.implementers(item.name, scope)) for item in self.program.all(Trait)]
        dynamic = [(item, kinds) for item, kinds in dynamic if kinds and self._below(scope, item)]
        if dynamic:
            choices += [lambda: self._dyn(scope, *self.random.choice(dynamic), depth)] * 2
        if scope.bound:
            bound = self.program.get(scope.bound, Trait)
            choices += [lambda: Act(bound.name, self.random.choice(bound.methods), "t", self.expr(*deeper))] * 3
        if scope.recursive:
            choices.append(lambda: Recur(self.expr(*deeper)))
        statics = [item for item in self._statics(scope) if item.kind not in CLOSURE_KINDS]
        if statics:
            choices += [lambda: self.use(scope, self.random.choice(statics), depth)] * 3
        return choices

    def implementers(self, trait: str, scope: Scope) -> list[Type]:
        """The types that code may use as a trait's objects."""
        return [
            item
            for item in self.program.all(Type)
            if self._below(scope, item) and any(impl.trait == trait for impl in item.impls)
        ]

    def call(self, scope: Scope, item: Function, depth: int) -> Expr:
        """A call of a function."""
        arguments = tuple(self.expr(scope, depth - 2) for _ in item.params)
        seeds = tuple(self.expr(scope, 0) for _ in range(len(item.objects) + bool(item.bound)))
        witness = None
        if item.bound:
            kinds = self.implementers(item.bound, scope)
            if not kinds:
                return Lit(self.number())
            witness = self.random.choice(kinds).name
        return Call(item.name, arguments, seeds, witness)

    def use(self, scope: Scope, item: Static, depth: int) -> Expr:
        """A use of a static, not of one that keeps closures."""
        value = self.expr(scope, depth - 1)
        if item.kind == "kept":
            assert item.holds
            return Keep(item.name, item.holds, value, Lit(0))
        if item.kind == "objects":
            assert item.holds
            kinds = [kind for kind in self.implementers(item.holds, scope) if kind.rank < item.rank]
            return Keep(item.name, self.random.choice(kinds).name, value, self.expr(scope, 1)) if kinds else value
        if item.kind == "pointer":
            functions = [
                one
                for one in self.program.all(Function)
                if self._below(scope, one) and _is_plain(one) and one.rank < item.rank
            ]
            return Point(item.name, self.random.choice(functions).name, value) if functions else value
        if item.kind == "tasks":
            tasks = [
                one
                for one in self.program.all(Function)
                if self._below(scope, one) and _is_plain(replace(one, is_async=False)) and one.is_async
                if one.rank < item.rank
            ]
            return Spawn(item.name, self.random.choice(tasks).name, value) if tasks else value
        return Use(item.name, value)

    def hook(self, scope: Scope, item: Static) -> Expr:
        """A use of a static that keeps closures."""
        inside = replace(
            scope,
            rank=item.rank,
            numbers=(*scope.numbers, "y"),
            objects=(),
            recursive=False,
            is_plain=self.program.is_optimised,
        )
        return Hook(item.name, "y", self.expr(inside, 2), self.expr(scope, 1))

    def _method(self, scope: Scope, item: Type, depth: int) -> Expr:
        name = self.random.choice(item.methods).name
        return Method(item.name, name, None, self.expr(scope, depth - 2), self.expr(scope, depth - 2))

    def _dyn(self, scope: Scope, item: Trait, kinds: list[Type], depth: int) -> Expr:
        chosen = tuple(kind.name for kind in self.random.sample(kinds, min(len(kinds), 3)))
        return Dyn(
            item.name,
            self.random.choice(item.methods),
            chosen,
            self.expr(scope, depth - 2),
            self.expr(scope, depth - 2),
        )

    def kind(self, scope: Scope) -> str:
        """What a field of a type with this home and rank may hold."""
        types = [item.name for item in self.program.all(Type) if self._below(scope, item)]
        if not types or self.random.random() < 0.75:
            return self.random.choice(FIELD_KINDS)
        return self.random.choice(("{}", "Box<{}>", "Vec<{}>")).format(self.random.choice(types))

    def field(self, name: str, scope: Scope) -> Field:
        """A field."""
        return Field(
            name=name,
            kind=self.kind(scope),
            factor=self.random.randrange(1, 20),
            offset=self.random.randrange(100),
        )

    def variant(self, name: str, scope: Scope) -> Variant:
        """A variant of an enum."""
        kind = self.kind(scope) if self.random.random() < 0.8 else None
        return Variant(name=name, kind=kind, weight=self.random.randrange(1000))

    def type(self, rank: float, home: str) -> Type:
        """A struct or an enum, with methods, and the methods of some traits."""
        is_enum = self.random.random() < 0.4
        outside = Scope(home=home, rank=rank, numbers=())
        item = Type(
            name=self.unused("S" if not is_enum else "E"),
            home=home,
            rank=rank,
            fields=() if is_enum else tuple(self.field(f"a{at}", outside) for at in range(self.random.randrange(1, 5))),
            variants=tuple(self.variant(f"V{at}", outside) for at in range(self.random.randrange(2, 5)))
            if is_enum
            else (),
        )
        self.program = replace(self.program, items=(*self.program.items, item))
        scope = scope_of(self.program, (item.name, "new"))
        methods = tuple(
            Code(name=f"g{at}", body=self.body(scope, self.random.randrange(2)))
            for at in range(self.random.randrange(1, 3))
        )
        traits = [
            trait
            for trait in self.program.all(Trait)
            if self.program.crate_number(trait.home) <= self.program.crate_number(home) and trait.rank > rank
        ]
        impls = tuple(self.impl(scope, trait) for trait in traits if self.random.random() < 0.7)
        return replace(item, methods=methods, impls=impls)

    def impl(self, scope: Scope, trait: Trait) -> Impl:
        """A trait's methods for the type of this scope."""
        return Impl(
            trait=trait.name, methods=tuple(Code(name=name, body=self.body(scope, 0)) for name in trait.methods)
        )

    def function(self, rank: float, home: str) -> Function:
        """A function of some form."""
        scope = Scope(home=home, rank=rank, numbers=())
        params = tuple(f"p{at}" for at in range(self.random.randrange(3)))
        item = Function(name=self.unused("f"), home=home, rank=rank, params=params, body=Body((), Lit(0)))
        types = [kind for kind in self.program.all(Type) if self._below(scope, kind)]
        traits = [trait for trait in self.program.all(Trait) if self._below(scope, trait)]
        forms: list[Callable[[], Function]] = [
            lambda: replace(item, params=("p0",)),
            lambda: item,
            lambda: item,
            lambda: replace(item, params=("p0", "depth"), recursive=True),
            lambda: replace(item, params=("p0",), is_async=True),
            lambda: replace(item, is_async=True),
        ]
        if types:
            forms += [lambda: replace(item, objects=(("s0", self.random.choice(types).name),))] * 2
        if traits:
            forms += [lambda: replace(item, bound=self.random.choice(traits).name)] * 2
        item = self.random.choice(forms)()
        scope = replace(scope, numbers=item.params, objects=item.objects, bound=item.bound, recursive=item.recursive)
        return replace(item, body=self.body(scope, self.random.randrange(3)))

    def static(self, rank: float, home: str) -> Static:
        """A static."""
        kind = self.random.choice(STATIC_KINDS)
        if kind in ("tasks", "makers", "holders") and self.program.is_optimised:
            kind = "mutex"
        scope = Scope(home=home, rank=rank, numbers=())
        holds: list[str] = []
        if kind in ("kept", "makers", "holders"):
            holds = [item.name for item in self.program.all(Type) if self._below(scope, item)]
        if kind == "objects":
            holds = [item.name for item in self.program.all(Trait) if self._below(scope, item)]
        if kind in ("kept", "makers", "holders", "objects") and not holds:
            kind = "list"
        return Static(
            name=self.unused("X"),
            home=home,
            rank=rank,
            kind=kind,
            initial=self.number(),
            holds=self.random.choice(holds) if holds else None,
        )

    def const(self, rank: float, home: str) -> Const:
        """A constant."""
        return Const(name=self.unused("K"), home=home, rank=rank, value=self.number())


def _is_plain(item: Function) -> bool:
    """Whether the function can be pointed to as `fn(i64) -> i64`."""
    return (len(item.params), item.objects, item.bound, item.is_async) == (1, (), None, False)


ORDER = "const trait static type const static function static type function trait static function type function static"
"""The kinds of the first items; those that follow are random."""


def make_program(random: Random, profile: str) -> Program:
    """A random program."""
    crates = {1: ("app",), 2: ("base", "app"), 3: ("base", "middle", "app")}[random.choice((1, 2, 2, 3))]
    maker = Maker(random, Program(crates=crates, items=(), tick=Body((), Lit(0)), profile=profile))
    kinds = ORDER.split() + random.choices(("function", "static", "type"), weights=(5, 2, 1), k=random.randrange(2, 8))
    for at, kind in enumerate(kinds):
        home = maker.home()
        item: Item
        before = maker.program
        if kind == "trait":
            # Types come before what uses them and after what they are made for, so a trait's rank is above theirs.
            item = Trait(
                name=maker.unused("T"),
                home=f"{crates[0]}::m0",
                rank=at + 6.5,
                methods=("act",) + ("also",) * random.randrange(2),
            )
        elif kind == "static":
            item = maker.static(at, home)
        elif kind == "type":
            item = maker.type(at, home)
        elif kind == "function":
            item = maker.function(at, home)
        else:
            item = maker.const(at, home)
        program = replace(before, items=(*before.items, item))
        maker.program = program if cost(program) < COST_LIMIT / 10 else before
    return with_tick(maker)


def with_tick(maker: Maker) -> Program:
    """The program, with a tick that uses what it has."""
    program = maker.program
    scope = scope_of(program, ("tick",))
    lets: list[tuple[str, Expr]] = []
    for item in program.items:
        match item:
            case Function():
                value = maker.call(scope, item, 2)
            case Type(methods=methods) if methods:
                value = Method(item.name, methods[0].name, None, maker.expr(scope, 1), maker.expr(scope, 0))
            case Static(kind=kind) if kind not in CLOSURE_KINDS:
                value = maker.use(scope, item, 1)
            case Static():
                value = maker.hook(scope, item)
            case _:
                continue
        lets.append((f"e{len(lets)}", value))
    made = replace(program, tick=Body(tuple(lets), Lit(0)))
    while cost(made) > COST_LIMIT:
        lets.pop(maker.random.randrange(len(lets)))
        made = replace(program, tick=Body(tuple(lets), Lit(0)))
    return made


def cost(program: Program) -> int:
    """About how many expressions a tick evaluates, or any other code that costs more."""
    costs: dict[Owner, int] = {}
    code = dict(bodies(program))
    acting: dict[tuple[str, str], list[Owner]] = {}
    for owner in code:
        if len(owner) == 3:
            acting.setdefault((owner[1], owner[2]), []).append(owner)

    def of_owner(owner: Owner) -> int:
        if owner not in costs:
            costs[owner] = COST_LIMIT * 100
            item = program.find(owner[0])
            body = code[owner]
            costs[owner] = of(body) * (RECURSIONS if isinstance(item, Function) and item.recursive else 1)
        return costs[owner]

    def of(part: Body | Expr) -> int:
        times = part.times if isinstance(part, Fold) else 1
        called = 0
        match part:
            case Call(function=function):
                called = of_owner((function,))
            case Point(function=function) | Spawn(function=function):
                called = of_owner((function,))
            case Method(type=kind, method=method):
                called = of_owner((kind, method))
            case Act(trait=trait, method=method) | Dyn(trait=trait, method=method):
                called = max((of_owner(owner) for owner in acting.get((trait, method), ())), default=0)
            case Keep(static=static):
                holds = program.get(static, Static).holds
                called = 3 * max((of_owner(owner) for owner in code if owner[1:2] == (holds,)), default=0)
        inner = sum(of(child) for child in children(part))
        return 1 + called + inner * times * (3 if isinstance(part, Hook) else 1)

    return max(of_owner(owner) for owner in code)
