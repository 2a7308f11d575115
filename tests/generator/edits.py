"""Random edits of programs, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias, TypeVar

from tests.generator.language import (
    CLOSURE_KINDS,
    Bin,
    Body,
    Call,
    Code,
    Const,
    ConstRef,
    Dyn,
    Expr,
    Fold,
    Function,
    Hook,
    Impl,
    Item,
    Keep,
    Lit,
    Method,
    Now,
    Owner,
    Point,
    Program,
    Read,
    Spawn,
    Static,
    Trait,
    Type,
    Use,
    Var,
    bodies,
    children,
    expressions,
    mapped,
    named,
    rewritten,
    types_in,
    with_body,
    with_item,
)
from tests.generator.make import COST_LIMIT, Maker, Scope, cost, scope_of

T = TypeVar("T")
P = TypeVar("P", bound=Body | Expr)
Edit: TypeAlias = Callable[[Maker], Program | None]


def _pick(maker: Maker, items: list[T] | tuple[T, ...]) -> T | None:
    return maker.random.choice(items) if items else None


def _everywhere(program: Program, change: Callable[[Expr], Expr]) -> Program:
    for owner, body in bodies(program):
        program = with_body(program, owner, rewritten(body, change))
    return program


def _without(program: Program, name: str) -> Program:
    return replace(program, items=tuple(item for item in program.items if item.name != name))


def _inner(program: Program, expr: Expr, scope: Scope) -> Callable[[Expr], Scope]:
    """The scope of each child of an expression."""
    match expr:
        case Now(param, body, _) | Fold(_, param, body):
            inside = replace(scope, numbers=(*scope.numbers, param))
            return lambda child: inside if child is body else scope
        case Hook(static, param, body, _):
            rank = program.get(static, Static).rank
            inside = replace(
                scope,
                rank=min(rank, scope.rank),
                numbers=(*scope.numbers, param),
                objects=(),
                bound=None,
                recursive=False,
                is_plain=program.is_optimised,
            )
            return lambda child: inside if child is body else scope
        case _:
            return lambda _: scope


def changed_at(program: Program, owner: Owner, number: int, change: Callable[[Expr, Scope], Expr]) -> Program:
    """The program with one expression of an owner, counted in the order of the source, changed in its scope."""
    left = number

    def visit(expr: Expr, scope: Scope) -> Expr:
        nonlocal left
        if left == 0:
            left -= 1
            return change(expr, scope)
        left -= 1
        scopes = _inner(program, expr, scope)
        return mapped(expr, lambda child: visit(child, scopes(child)))

    body = dict(bodies(program))[owner]
    scope = scope_of(program, owner)
    lets: list[tuple[str, Expr]] = []
    for name, value in body.lets:
        lets.append((name, visit(value, scope)))
        if owner != ("tick",):
            scope = replace(scope, numbers=(*scope.numbers, name))
    return with_body(program, owner, Body(tuple(lets), visit(body.result, scope)))


def _somewhere(
    maker: Maker, change: Callable[[Expr, Scope], Expr], wanted: Callable[[Expr], bool] = lambda _: True
) -> Program | None:
    program = maker.program
    places = [
        (owner, number)
        for owner, body in bodies(program)
        for number, expr in enumerate(expressions(body))
        if wanted(expr)
    ]
    place = _pick(maker, places)
    return changed_at(program, *place, change) if place else None


def change_number(maker: Maker) -> Program | None:
    """Another number somewhere."""
    return _somewhere(maker, lambda *_: Lit(maker.number()), lambda expr: isinstance(expr, Lit))


def change_expression(maker: Maker) -> Program | None:
    """Another expression somewhere."""
    return _somewhere(maker, lambda _, scope: maker.expr(scope, 2))


def change_const(maker: Maker) -> Program | None:
    """Another value of a constant."""
    item = _pick(maker, maker.program.all(Const))
    return with_item(maker.program, replace(item, value=item.value + 1 + maker.random.randrange(50))) if item else None


def add_const(maker: Maker) -> Program | None:
    """A new constant, used somewhere."""
    item = maker.const(-maker.random.random(), maker.home())
    return _add(maker, item, lambda _, scope: ConstRef(item.name))


def _rank(maker: Maker) -> float:
    ranks = sorted(item.rank for item in maker.program.items)
    return maker.random.uniform(ranks[len(ranks) // 3], ranks[-1] + 1)


def _add(maker: Maker, item: Item, use: Callable[[Expr, Scope], Expr]) -> Program | None:
    at = maker.random.randrange(len(maker.program.items) + 1)
    items = maker.program.items
    maker.program = replace(maker.program, items=(*items[:at], item, *items[at:]))
    return _somewhere(maker, use)


def add_function(maker: Maker) -> Program | None:
    """A new function, called somewhere."""
    item = maker.function(_rank(maker), maker.home())
    return _add(maker, item, lambda _, scope: maker.call(scope, item, 2))


def add_static(maker: Maker) -> Program | None:
    """A new static, used somewhere."""
    item = maker.static(_rank(maker), maker.home())
    if item.kind in CLOSURE_KINDS:
        return None
    return _add(maker, item, lambda _, scope: maker.use(scope, item, 2))


def add_type(maker: Maker) -> Program | None:
    """A new type, used somewhere."""
    before = maker.program
    item = maker.type(_rank(maker), maker.home())
    maker.program = before
    name = item.methods[0].name
    return _add(maker, item, lambda _, scope: Method(item.name, name, None, maker.expr(scope, 1), maker.expr(scope, 1)))


def remove_function(maker: Maker) -> Program | None:
    """A function goes, and the calls of it."""
    item = _pick(maker, maker.program.all(Function))
    if item is None:
        return None

    def change(expr: Expr) -> Expr:
        return Lit(maker.number()) if isinstance(expr, Call | Point | Spawn) and expr.function == item.name else expr

    return _without(_everywhere(maker.program, change), item.name)


def remove_static(maker: Maker) -> Program | None:
    """A static goes, and its uses."""
    item = _pick(maker, maker.program.all(Static))
    if item is None:
        return None

    def change(expr: Expr) -> Expr:
        return (
            Lit(maker.number())
            if isinstance(expr, Use | Keep | Hook | Point | Spawn) and expr.static == item.name
            else expr
        )

    return _without(_everywhere(maker.program, change), item.name)


def rename_function(maker: Maker) -> Program | None:
    """A function gets another name."""
    item = _pick(maker, maker.program.all(Function))
    if item is None:
        return None
    name = maker.unused("r")

    def change(expr: Expr) -> Expr:
        if isinstance(expr, Call | Point | Spawn) and expr.function == item.name:
            return replace(expr, function=name)
        return expr

    program = _everywhere(maker.program, change)
    new = replace(program.get(item.name, Function), name=name)
    return replace(program, items=tuple(new if one.name == item.name else one for one in program.items))


def move_function(maker: Maker) -> Program | None:
    """A function goes to another module."""
    item = _pick(maker, maker.program.all(Function))
    return with_item(maker.program, replace(item, home=maker.home())) if item else None


def move_static(maker: Maker) -> Program | None:
    """A static goes to another module, where it is a new one."""
    item = _pick(maker, maker.program.all(Static))
    return with_item(maker.program, replace(item, home=maker.home())) if item else None


def move_in_file(maker: Maker) -> Program | None:
    """An item is written elsewhere in its file."""
    items = list(maker.program.items)
    item = items.pop(maker.random.randrange(len(items)))
    items.insert(maker.random.randrange(len(items) + 1), item)
    return replace(maker.program, items=tuple(items))


def add_parameter(maker: Maker) -> Program | None:
    """A function gets a parameter, and all callers pass something."""
    item = _pick(maker, maker.program.all(Function))
    if item is None or item.recursive:
        return None
    name = f"p{len(item.params)}"

    def change(expr: Expr) -> Expr:
        if isinstance(expr, Call) and expr.function == item.name:
            return replace(expr, arguments=(*expr.arguments, Lit(maker.number())))
        return Lit(maker.number()) if isinstance(expr, Point | Spawn) and expr.function == item.name else expr

    program = _everywhere(maker.program, change)
    new = replace(program.get(item.name, Function), params=(*item.params, name))
    maker.program = with_item(program, new)
    number = maker.random.randrange(sum(1 for _ in expressions(new.body)))
    return changed_at(maker.program, (item.name,), number, lambda *_: Var(name))


def remove_parameter(maker: Maker) -> Program | None:
    """A function loses its last parameter."""
    item = _pick(maker, [one for one in maker.program.all(Function) if one.params and not one.recursive])
    if item is None:
        return None
    last = item.params[-1]

    def change(expr: Expr) -> Expr:
        if isinstance(expr, Call) and expr.function == item.name:
            return replace(expr, arguments=expr.arguments[:-1])
        return Lit(maker.number()) if isinstance(expr, Point | Spawn) and expr.function == item.name else expr

    program = _everywhere(maker.program, change)
    new = program.get(item.name, Function)
    body = rewritten(new.body, lambda expr: Lit(5) if expr == Var(last) else expr)
    return with_item(program, replace(new, params=item.params[:-1], body=body))


def toggle_async(maker: Maker) -> Program | None:
    """A function becomes `async`, or is no longer."""
    item = _pick(maker, [one for one in maker.program.all(Function) if not one.recursive])
    if item is None:
        return None

    def change(expr: Expr) -> Expr:
        return Lit(maker.number()) if isinstance(expr, Point | Spawn) and expr.function == item.name else expr

    program = _everywhere(maker.program, change)
    return with_item(program, replace(program.get(item.name, Function), is_async=not item.is_async))


def change_initialiser(maker: Maker) -> Program | None:
    """A static begins with another number, which the program does not see."""
    item = _pick(maker, maker.program.all(Static))
    return with_item(maker.program, replace(item, initial=item.initial + 1)) if item else None


def change_static_type(maker: Maker) -> Program | None:
    """A static gets another type."""
    kinds = {"atomic": "mutex", "mutex": "list", "list": "mutex", "plain": "atomic"}
    item = _pick(maker, [one for one in maker.program.all(Static) if one.kind in kinds])
    return with_item(maker.program, replace(item, kind=kinds[item.kind])) if item else None  # type: ignore[arg-type]


def _outside(item: Type) -> Scope:
    """The scope of a type's definition."""
    return Scope(home=item.home, rank=item.rank, numbers=())


def _structs(maker: Maker) -> list[Type]:
    return [item for item in maker.program.all(Type) if item.fields]


def _enums(maker: Maker) -> list[Type]:
    return [item for item in maker.program.all(Type) if item.variants]


def add_field(maker: Maker) -> Program | None:
    """A struct gets a field."""
    item = _pick(maker, _structs(maker))
    if item is None:
        return None
    at = maker.random.randrange(len(item.fields) + 1)
    name = next(name for at in range(99) if (name := f"a{at}") not in {one.name for one in item.fields})
    return with_item(
        maker.program,
        replace(
            item,
            fields=(
                *item.fields[:at],
                maker.field(name, _outside(item)),
                *item.fields[at:],
            ),
        ),
    )


def remove_field(maker: Maker) -> Program | None:
    """A struct loses a field."""
    item = _pick(maker, [one for one in _structs(maker) if len(one.fields) > 1])
    if item is None:
        return None
    gone = maker.random.choice(item.fields)

    def change(expr: Expr) -> Expr:
        is_read = isinstance(expr, Read) and (expr.type, expr.field) == (item.name, gone.name)
        return Lit(maker.number()) if is_read else expr

    program = _everywhere(maker.program, change)
    new = program.get(item.name, Type)
    return with_item(program, replace(new, fields=tuple(one for one in new.fields if one != gone)))


def change_field(maker: Maker) -> Program | None:
    """A field is computed otherwise, or is of another kind."""
    item = _pick(maker, _structs(maker))
    if item is None:
        return None
    old = maker.random.choice(item.fields)
    new = maker.field(old.name, _outside(item))
    if maker.random.random() < 0.5:
        new = replace(new, kind=old.kind)
    return with_item(maker.program, replace(item, fields=tuple(new if one == old else one for one in item.fields)))


def reorder_fields(maker: Maker) -> Program | None:
    """A struct's fields in another order."""
    item = _pick(maker, [one for one in _structs(maker) if len(one.fields) > 1])
    if item is None:
        return None
    fields = maker.random.sample(item.fields, len(item.fields))
    return with_item(maker.program, replace(item, fields=tuple(fields)))


def rename_field(maker: Maker) -> Program | None:
    """A field gets another name."""
    item = _pick(maker, _structs(maker))
    if item is None:
        return None
    old = maker.random.choice(item.fields)
    name = f"b{maker.random.randrange(1000)}"

    def change(expr: Expr) -> Expr:
        is_read = isinstance(expr, Read) and (expr.type, expr.field) == (item.name, old.name)
        return replace(expr, field=name) if is_read and isinstance(expr, Read) else expr

    program = _everywhere(maker.program, change)
    new = program.get(item.name, Type)
    fields = tuple(replace(one, name=name) if one == old else one for one in new.fields)
    return with_item(program, replace(new, fields=fields))


def add_variant(maker: Maker) -> Program | None:
    """An enum gets a variant."""
    item = _pick(maker, _enums(maker))
    if item is None:
        return None
    at = maker.random.randrange(len(item.variants) + 1)
    variant = maker.variant(f"W{maker.random.randrange(1000)}", _outside(item))
    return with_item(maker.program, replace(item, variants=(*item.variants[:at], variant, *item.variants[at:])))


def remove_variant(maker: Maker) -> Program | None:
    """An enum loses a variant."""
    item = _pick(maker, [one for one in _enums(maker) if len(one.variants) > 2])
    if item is None:
        return None
    gone = maker.random.choice(item.variants)
    return with_item(maker.program, replace(item, variants=tuple(one for one in item.variants if one != gone)))


def change_variant(maker: Maker) -> Program | None:
    """A variant weighs something else, or holds something else."""
    item = _pick(maker, _enums(maker))
    if item is None:
        return None
    old = maker.random.choice(item.variants)
    new = maker.variant(old.name, _outside(item))
    if maker.random.random() < 0.5:
        new = replace(new, kind=old.kind)
    return with_item(maker.program, replace(item, variants=tuple(new if one == old else one for one in item.variants)))


def add_method(maker: Maker) -> Program | None:
    """A type gets a method, called somewhere."""
    item = _pick(maker, maker.program.all(Type))
    if item is None:
        return None
    name = next(name for at in range(99) if (name := f"g{at}") not in {one.name for one in item.methods})
    code = Code(name=name, body=maker.body(scope_of(maker.program, (item.name, name)), 1))
    maker.program = with_item(maker.program, replace(item, methods=(code, *item.methods)))
    return _somewhere(maker, lambda _, scope: Method(item.name, name, None, maker.expr(scope, 1), maker.expr(scope, 1)))


def add_impl(maker: Maker) -> Program | None:
    """A type gets the methods of one more trait, and is used as its object."""
    program = maker.program
    pairs = [
        (item, trait)
        for item in program.all(Type)
        for trait in program.all(Trait)
        if trait.rank > item.rank and trait.name not in {impl.trait for impl in item.impls}
        if program.crate_number(trait.home) <= program.crate_number(item.home)
    ]
    pair = _pick(maker, pairs)
    if pair is None:
        return None
    item, trait = pair
    impl = maker.impl(scope_of(program, (item.name, "new")), trait)
    maker.program = with_item(program, replace(item, impls=(*item.impls, impl)))
    return _somewhere(
        maker,
        lambda _, scope: Dyn(trait.name, trait.methods[0], (item.name,), maker.expr(scope, 1), maker.expr(scope, 1)),
    )


def add_trait_method(maker: Maker) -> Program | None:
    """A trait gets a method, and so do all types that implement it."""
    trait = _pick(maker, maker.program.all(Trait))
    if trait is None:
        return None
    name = f"more{maker.random.randrange(1000)}"
    at = maker.random.randrange(len(trait.methods) + 1)
    program = with_item(maker.program, replace(trait, methods=(*trait.methods[:at], name, *trait.methods[at:])))
    for item in program.all(Type):
        code = Code(name=name, body=maker.body(scope_of(program, (item.name, name)), 0))
        impls = tuple(
            Impl(trait=impl.trait, methods=(*impl.methods, code)) if impl.trait == trait.name else impl
            for impl in item.impls
        )
        program = with_item(program, replace(item, impls=impls))
    return program


def add_statement(maker: Maker) -> Program | None:
    """A new variable at the beginning of a body, often with a closure, which renumbers those below."""
    owner, body = maker.random.choice([(owner, body) for owner, body in bodies(maker.program) if owner != ("tick",)])
    scope = scope_of(maker.program, owner)
    name = f"w{maker.random.randrange(1000)}"
    value = (
        maker.expr(scope, 2) if maker.random.random() < 0.3 else Now("x0", maker.expr(scope, 1), maker.expr(scope, 0))
    )
    made = with_body(maker.program, owner, replace(body, lets=((name, value), *body.lets)))
    below = sum(1 for _ in expressions(value))
    number = below + maker.random.randrange(sum(1 for _ in expressions(body)))
    return changed_at(made, owner, number, lambda *_: Var(name))


def add_entry(maker: Maker) -> Program | None:
    """The tick shows one thing more."""
    tick = maker.program.tick
    name = f"e{1 + max((int(name[1:]) for name, _ in tick.lets), default=0)}"
    value = maker.statement(scope_of(maker.program, ("tick",)))
    return replace(maker.program, tick=replace(tick, lets=(*tick.lets, (name, value))))


def add_comment(maker: Maker) -> Program | None:
    """A line of comment above everything else of a module."""
    home = maker.home()
    comments = dict(maker.program.comments)
    comments[home] = comments.get(home, 0) + 1
    return replace(maker.program, comments=tuple(comments.items()))


EDITS: dict[Edit, int] = {
    change_number: 8,
    change_expression: 10,
    change_const: 2,
    add_const: 1,
    add_function: 4,
    add_static: 3,
    add_type: 2,
    add_method: 2,
    add_impl: 2,
    add_trait_method: 1,
    add_statement: 4,
    add_entry: 2,
    add_comment: 2,
    add_parameter: 3,
    remove_parameter: 2,
    remove_function: 2,
    remove_static: 1,
    rename_function: 2,
    move_function: 2,
    move_static: 1,
    move_in_file: 2,
    toggle_async: 1,
    change_initialiser: 2,
    change_static_type: 1,
    add_field: 2,
    remove_field: 2,
    change_field: 2,
    reorder_fields: 2,
    rename_field: 1,
    add_variant: 2,
    remove_variant: 1,
    change_variant: 2,
}
"""Every kind of edit, and how often it is made."""

TRIES = 200


def edited(maker: Maker) -> tuple[str, Program]:
    """A program that is one random edit away, and the edit's name."""
    program = maker.program
    for _ in range(TRIES):
        (edit,) = maker.random.choices(tuple(EDITS), weights=tuple(EDITS.values()))
        maker.program = program
        made = edit(maker)
        if made is not None and made != program and is_valid(made):
            maker.program = program
            return edit.__name__, made
    raise AssertionError(f"no edit of the program was found in {TRIES} tries")


def is_valid(program: Program) -> bool:
    """Whether all code uses what is there and below it, and not too much of it."""

    def fits(part: Body | Expr, scope: Scope) -> bool:
        if not isinstance(part, Body):
            is_named = all(_is_usable(program, name, scope) for name in named(part))
            if not is_named or (scope.is_plain and not isinstance(part, Lit | Var | ConstRef | Bin)):
                return False
            scopes = _inner(program, part, scope)
            return all(fits(child, scopes(child)) for child in children(part))
        return all(fits(child, scope) for child in children(part))

    holds = (
        _is_usable(program, item.holds, Scope(home=item.home, rank=item.rank, numbers=()))
        for item in program.all(Static)
        if item.holds
    )
    borrows = (
        _is_usable(program, name, scope_of(program, (item.name,)))
        for item in program.all(Function)
        for name in [*(kind for _, kind in item.objects), *([item.bound] if item.bound else [])]
    )
    fields = (
        program.find(name) is not None and program.is_below(program.get(name, Type), item.home, item.rank)
        for item in program.all(Type)
        for name in types_in(item)
    )
    inside = all(fits(body, scope_of(program, owner)) for owner, body in bodies(program))
    return all(holds) and all(borrows) and all(fields) and inside and cost(program) < COST_LIMIT


def _is_usable(program: Program, name: str, scope: Scope) -> bool:
    item = program.find(name)
    is_own = isinstance(item, Type) and item.rank == scope.rank and item.home == scope.home
    return item is not None and (is_own or program.is_below(item, scope.home, scope.rank))
