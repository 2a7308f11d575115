"""What a program that is patched while it runs must print: its state, and the code that each part of it runs."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from tests.generator.language import (
    KEEPS,
    RECURSIONS,
    Act,
    Bin,
    Body,
    Call,
    Catch,
    Const,
    ConstRef,
    Dyn,
    Expr,
    Fold,
    Function,
    Hook,
    If,
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
    Text,
    Trait,
    Type,
    Use,
    Var,
    bodies,
    children,
    expressions,
    named,
    rewritten,
    type_in,
    types_in,
)

BITS = {"u8": 8, "u16": 16, "u32": 32}
THREADS = 2

Identity: TypeAlias = tuple[object, ...]
"""What tells one piece of code from others over all edits: rustc's name for it stays the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """A value of a struct or enum.

    Args:
        type: the name of its type.
        variant: of an enum.
        values: field → number, text or another object; an enum's value has the field "0".
    """

    type: str
    variant: str | None
    values: dict[str, Value]


Value: TypeAlias = int | str | Object


@dataclass(frozen=True, slots=True, kw_only=True)
class Closure:
    """A closure that is kept.

    Args:
        owner: the code that made it.
        number: which of the closures of its owner it is.
        hook: what it was made from.
        captured: the variables that it took along.
        held: the object that it took along.
        program: the sources that it was made from, or whose code it has kept.
        left_by: the sources with which it was left behind: it keeps its code, whatever becomes of its owner.
    """

    owner: Owner
    number: int
    hook: Hook
    captured: dict[str, int]
    held: Object | None
    program: Program
    left_by: Program | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The future of an `async` function that was polled and waits.

    Args:
        function: its name.
        argument: what it was called with.
        program: the sources that it was made from, or whose code it has kept.
        left_by: the sources with which it was left behind: it ends with the code that it began with.
    """

    function: str
    argument: int
    program: Program
    left_by: Program | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A function that runs: the sources that its code is from, and its variables."""

    program: Program
    owner: Owner
    variables: dict[str, int | Object]


def wrap(value: int) -> int:
    """The value as an `i64`."""
    return (value + 2**63) % 2**64 - 2**63


def hashed(text: str) -> int:
    """What the program's `hash` makes of a text."""
    value = 7
    for byte in text.encode():
        value = wrap(value * 31 + byte)
    return value


def identity(program: Program, owner: Owner) -> Identity:
    """The identity of an owner's code."""
    item = program.find(owner[0])
    if isinstance(item, Function):
        return (item.home, item.name, len(item.params), item.objects, item.bound, item.is_async)
    return (item.home if item else "", *owner)


def path_of(program: Program, owner: Owner) -> str:
    """How messages name an owner's code."""
    if owner == ("tick",):
        return f"{program.crates[-1]}::tick::tick"
    path = f"{program.get_item(owner[0]).home}::{owner[0]}"
    if len(owner) == 3:
        return f"<{path} as {program.get_item(owner[1]).home}::{owner[1]}>::{owner[2]}"
    return "::".join([path, *owner[1:]])


def static_identity(program: Program, item: Static) -> Identity:
    """The identity of a static's value."""
    held = program.find(item.holds) if item.holds else None
    return (item.home, item.name, item.kind, item.holds, held.home if held else "")


def body_of(program: Program, owner: Owner) -> Body:
    """An owner's code, which is there."""
    return next(body for one, body in bodies(program) if one == owner)


def closures(program: Program, part: Body | Expr) -> Iterator[Expr]:
    """What a body makes closures of, in rustc's order, without those that a closure makes."""
    match part:
        case Now(argument=argument):
            yield part
            yield from closures(program, argument)
        case Fold() | Catch():
            yield part
        case Hook(argument=argument):
            yield from closures(program, argument)
            yield part
        case Use(static=static, value=value):
            yield from closures(program, value)
            if program.get(static, Static).kind in ("lazy_local", "once"):
                yield part
        case _:
            for child in children(part):
                yield from closures(program, child)


def after_edit(before: Program, after: Program, value: Object) -> Object | None:
    """The value as a value of the edited type; None where that one is made of other things."""
    old, new = before.find(value.type), after.find(value.type)
    if not (isinstance(old, Type) and isinstance(new, Type)):
        return None
    if value.variant is not None:
        kinds = {one.name: one.kind for one in old.variants}
        is_there = (value.variant, kinds.get(value.variant)) in ((one.name, one.kind) for one in new.variants)
        names = {"0": "0"} if is_there else None
    else:
        names = renamed_fields(old, new)
    if names is None:
        return None
    values: dict[str, Value] = {}
    for name, one in value.values.items():
        now = after_edit(before, after, one) if isinstance(one, Object) else one
        if now is None:
            return None
        values[names[name]] = now
    return replace(value, values=values)


def renamed_fields(old: Type, new: Type) -> dict[str, str] | None:
    """The new name of each field, where there are the same ones, or the same kinds in the same order."""
    before = {field.name: field.kind for field in old.fields}
    if before == {field.name: field.kind for field in new.fields}:
        return {name: name for name in before}
    same_kinds = [field.kind for field in old.fields] == [field.kind for field in new.fields]
    names = {one.name: two.name for one, two in zip(old.fields, new.fields, strict=False)}
    is_rename = same_kinds and all(one == two or two not in before for one, two in names.items())
    return names if is_rename else None


def captures(hook: Hook) -> tuple[str, ...]:
    """The variables that a closure takes along, in the order in which it first uses them."""
    used = [expr.name for expr in expressions(hook.body) if isinstance(expr, Var)]
    inner = {expr.param for expr in expressions(hook.body) if isinstance(expr, Now | Fold)} | {hook.param}
    return tuple(dict.fromkeys(name for name in used if name not in inner))


@dataclass(slots=True)
class Machine:
    """The model of a running program.

    Args:
        program: the sources that it runs.
    """

    program: Program
    _known: dict[Identity, Program] = field(default_factory=dict)
    _statics: dict[Identity, object] = field(default_factory=dict)
    _used: set[Identity] = field(default_factory=set)
    _thread: int = 0

    def __post_init__(self) -> None:
        self.switch(self.program)

    def copied(self) -> Machine:
        """The same machine, to go on otherwise with."""
        other = copy(self)
        other._known, other._used = dict(self._known), set(self._used)
        other._statics = {key: copy(value) for key, value in self._statics.items()}
        return other

    def switch(self, program: Program, left: Container[str] = ()) -> None:
        """The program runs these sources from now on; what it holds stays.

        Args:
            program: the sources.
            left: paths of functions whose closures and tasks are said to keep their old code.
        """
        self._switch(program, left, is_back=lambda _: False)

    def _switch(self, program: Program, left: Container[str], is_back: Callable[[Closure | Task], bool]) -> None:
        for key, kept in self._closures():
            self._statics[key] = [
                replace(closure, left_by=None) if is_back(closure) else self._after(closure, program, left)
                for closure in kept
            ]
        for key, tasks in self._tasks():
            self._statics[key] = [
                replace(task, left_by=None) if is_back(task) else self._task_after(task, program, left)
                for task in tasks
            ]
        for key, values in self._statics.items():
            if isinstance(values, list):
                self._statics[key] = [self._edited(one, program) for one in values]
        self.program = program
        for owner, _ in bodies(program):
            self._known[identity(program, owner)] = program
        for kind in program.all(Type):
            self._known[kind.home, kind.name] = program
        for static in program.all(Static):
            self._statics.setdefault(static_identity(program, static), _initial(static))

    def take_back(self, program: Program, left: Container[str] = ()) -> None:
        """These earlier sources run again, also in the closures and tasks that the last edit left behind.

        Args:
            program: the sources.
            left: what the last edit was said to leave; what was made of these functions since then keeps its code.
        """
        undone = self.program
        self._switch(program, left, is_back=lambda value: value.left_by is undone)

    def tick(self, number: int) -> str:
        """What the program answers to a line."""
        self._thread = number % THREADS
        frame = Frame(program=self.program, owner=("tick",), variables={"n": number})
        self._body(frame, self.program.tick)
        return " ".join(f"{name}={frame.variables[name]}" for name, _ in self.program.tick.lets)

    def kept(self, static: Static) -> tuple[Object, ...]:
        """The objects that a static holds, also those that its closures took along."""
        return _objects(self._statics.get(static_identity(self.program, static)))

    def is_used(self, static: Static) -> bool:
        """Whether the program has used a static; the linker leaves out those that nobody uses."""
        return static_identity(self.program, static) in self._used

    def has_other(self, static: Static) -> bool:
        """Whether the program has used a static of the same path and another type, at whatever time."""
        own = static_identity(self.program, static)
        return any(key != own and key[:2] == own[:2] for key in self._used)

    def is_back(self, static: Static, after: Program) -> bool:
        """Whether the program has used a static of other sources that its own are without."""
        own = static_identity(after, static)
        return own in self._used and own not in {static_identity(self.program, one) for one in self.program.all(Static)}

    def is_doubtful(self, program: Program) -> bool:
        """Whether it cannot be told from sources what the program would run, were these the next ones.

        The compiler's code of a closure can differ where its source does not; optimised code that is no longer in the
        sources has copies of what it called; and fields that have new names in a new order could be any of the old.
        """
        identities = {identity(program, owner) for owner, _ in bodies(program)}
        for _, kept in self._closures():
            for closure in kept:
                is_gone = identity(closure.program, closure.owner) not in identities
                if not closure.left_by and not is_gone and self._is_puzzle(closure, program):
                    return True
        statics = {static_identity(program, static) for static in program.all(Static)}
        for key, values in self._statics.items():
            is_lost = any(after_edit(self.program, program, one) is None for one in _objects(values))
            if key not in statics and is_lost:
                return True
        if any(_is_puzzle(old, program.find(old.name)) for old in self.program.all(Type)):
            return True
        pointers = [one for one in self._statics.values() if isinstance(one, tuple)]
        return program.is_optimised and any(identity(old, (name,)) not in identities for old, name in pointers)

    def code_of(self, closure: Closure) -> tuple[Program, Hook]:
        """What a kept closure runs when it is called now."""
        if closure.left_by:
            return closure.program, closure.hook
        program = self._known[identity(closure.program, closure.owner)]
        now = tuple(closures(program, body_of(program, closure.owner)))[closure.number]
        assert isinstance(now, Hook)
        return program, now

    def _closures(self) -> list[tuple[Identity, list[Closure]]]:
        return [
            (key, values)
            for key, values in self._statics.items()
            if isinstance(values, list) and values and isinstance(values[0], Closure)
        ]

    def _edited(self, value: object, program: Program) -> object:
        """What a static keeps, with objects of the edited types."""
        if isinstance(value, Closure) and value.held:
            return replace(value, held=after_edit(self.program, program, value.held) or value.held)
        return (after_edit(self.program, program, value) or value) if isinstance(value, Object) else value

    def _tasks(self) -> list[tuple[Identity, list[Task]]]:
        return [
            (key, values)
            for key, values in self._statics.items()
            if isinstance(values, list) and values and isinstance(values[0], Task)
        ]

    def _task_after(self, task: Task, program: Program, left: Container[str] = ()) -> Task:
        """A waiting task once other sources run: it goes on in the new code if that keeps the same variables."""
        key, owner = identity(task.program, (task.function,)), (task.function,)
        is_there = program.find(task.function) is not None and identity(program, owner) == key
        if task.left_by or not is_there:
            return task
        before = self._known[key]
        is_same = _reads_argument(before, owner) == _reads_argument(program, owner)
        # What the optimiser made one function of cannot be told from sources: there, what is said is believed.
        if is_same and not (program.is_optimised and path_of(before, owner) in left):
            return task
        return replace(task, program=before, left_by=program)

    def _both(self, closure: Closure, after: Program) -> tuple[tuple[Expr, ...], tuple[Expr, ...]]:
        before = self._known[identity(closure.program, closure.owner)]
        return tuple(tuple(closures(program, body_of(program, closure.owner))) for program in (before, after))  # type: ignore[return-value]

    def _is_puzzle(self, closure: Closure, after: Program) -> bool:
        """Whether the compiler's code may tell another story than the source about which closure is which."""
        old, new = self._both(closure, after)
        before, now = (
            [_shape(program, one) for one in found] for program, found in ((self.program, old), (after, new))
        )
        if len(old) != len(new):
            is_alone = not after.is_optimised and _others(self.program, closure.owner) == _others(after, closure.owner)
            is_longer = old == new[: len(old)] or new == old[: len(new)]
            return all(one == two for one, two in zip(before, now, strict=False)) and not (is_alone and is_longer)
        pairs = [(i, j) for i in range(len(old)) for j in range(len(old)) if i != j]
        if any(now[i] == before[j] != now[j] for i, j in pairs):
            return True
        one, two = old[closure.number], new[closure.number]
        if not (isinstance(one, Hook) and isinstance(two, Hook)):
            return True
        return captures(one) != captures(two) and len(captures(one)) == len(captures(two))

    def _after(self, closure: Closure, program: Program, left: Container[str] = ()) -> Closure:
        """A kept closure once other sources run.

        It gets the new code where its owner makes as many closures as before, and it takes the same variables along.
        """
        is_there = any(
            identity(program, owner) == identity(closure.program, closure.owner) for owner, _ in bodies(program)
        )
        if closure.left_by or not is_there:
            return closure
        old, new = self._both(closure, program)
        hook = old[closure.number]
        assert isinstance(hook, Hook)
        now = new[closure.number] if closure.number < len(new) else None
        is_same = isinstance(now, Hook) and captures(now) == captures(hook)
        before = self._known[identity(closure.program, closure.owner)]
        is_left = path_of(before, closure.owner) in left and self._may_be_left(closure, program)
        is_same = is_same and not is_left
        if is_same and (len(old) == len(new) or all(one == two for one, two in zip(old, new, strict=False))):
            return closure
        return replace(closure, program=before, hook=hook, left_by=program)

    def _may_be_left(self, closure: Closure, program: Program) -> bool:
        """Whether a closure that takes along what it did may keep its old code nevertheless.

        What the optimiser made one function of cannot be told from sources. Where several closures of a function may
        have other code, or one has and another is new, it cannot be told which is which; nor where the function has
        another symbol, and so all of them have, or where an edit of a crate below may have brought or taken away what
        this one uses of std. And a task that is left keeps all that is inside it.
        """
        owner = closure.owner
        before = self._known[identity(closure.program, owner)]
        if program.is_optimised or (_is_async(before, owner) and body_of(before, owner) != body_of(program, owner)):
            return True
        old, new = self._both(closure, program)
        others = sum(_may_differ(before, one, program, two) for one, two in zip(old, new, strict=False))
        is_renamed = _blocks_before(before, owner[0]) != _blocks_before(program, owner[0])
        is_above = _below(before, owner) != _below(program, owner)
        return others > 0 and (is_renamed or is_above or others + abs(len(old) - len(new)) > 1)

    def _body(self, frame: Frame, body: Body) -> int:
        for name, value in body.lets:
            frame.variables[name] = self._value(frame, value)
        return self._value(frame, body.result)

    def _run(self, frame: Frame, owner: Owner, variables: dict[str, int | Object]) -> int:
        program = self._known[identity(frame.program, owner)]
        body = body_of(program, owner)
        item = program.find(owner[0])
        if isinstance(item, Function) and item.recursive:
            depth = variables[item.params[-1]]
            assert isinstance(depth, int)
            if not 1 <= depth <= RECURSIONS:
                return depth
        return self._body(Frame(program=program, owner=owner, variables=variables), body)

    def _new(self, frame: Frame, name: str, seed: int) -> Object:
        item = self._type(frame, name)
        if item.variants:
            one = item.variants[seed % len(item.variants)]
            return Object(
                type=name, variant=one.name, values={"0": self._made(frame, one.kind, seed)} if one.kind else {}
            )
        values = {one.name: self._made(frame, one.kind, wrap(seed * one.factor + one.offset)) for one in item.fields}
        return Object(type=name, variant=None, values=values)

    def _made(self, frame: Frame, kind: str, value: int) -> Value:
        inner = type_in(kind)
        if inner:
            return self._new(frame, inner, value)
        if kind == "String":
            return str(value)
        return value % 2 ** BITS[kind] if kind in BITS else value

    def _number(self, frame: Frame, value: Value) -> int:
        if isinstance(value, Object):
            return self._total(frame, value)
        return hashed(value) if isinstance(value, str) else value

    def _type(self, frame: Frame, name: str) -> Type:
        item = frame.program.get(name, Type)
        return self._known[item.home, item.name].get(name, Type)

    def _total(self, frame: Frame, value: Object) -> int:
        item = self._type(frame, value.type)
        if value.variant is None:
            return wrap(sum(self._number(frame, value.values[one.name]) for one in item.fields))
        one = next(one for one in item.variants if one.name == value.variant)
        return wrap(self._number(frame, value.values["0"]) + one.weight) if one.kind else one.weight

    def _method(self, frame: Frame, owner: Owner, value: Object, argument: int) -> int:
        return self._run(frame, owner, {"self": value, "x": argument})

    def _object(self, frame: Frame, name: str) -> Object:
        value = frame.variables[name]
        assert isinstance(value, Object)
        return value

    def _value(self, frame: Frame, expr: Expr) -> int:
        match expr:
            case Lit(value):
                return value
            case Var(name):
                found = frame.variables[name]
                assert isinstance(found, int)
                return found
            case ConstRef(name):
                return frame.program.get(name, Const).value
            case Bin(operator, left, right):
                one, two = self._value(frame, left), self._value(frame, right)
                results = {"add": one + two, "sub": one - two, "mul": one * two, "xor": one ^ two}
                return wrap(results[operator])
            case If(left, right, then, other):
                one, two = self._value(frame, left), self._value(frame, right)
                return self._value(frame, then if one < two else other)
            case Match(selector, arms):
                return self._value(frame, arms[self._value(frame, selector) % len(arms)])
            case Text(text, inner):
                return hashed(f"{text}{self._value(frame, inner)}")
            case Now(param, body, argument):
                return self._value(_with(frame, param, self._value(frame, argument)), body)
            case Fold(times, param, body):
                return wrap(sum(self._value(_with(frame, param, number), body) for number in range(times)))
            case Catch(condition, inner, fallback):
                return self._value(frame, inner) if self._value(frame, condition) & 1 else fallback
            case Call():
                return self._call(frame, expr)
            case Recur(argument):
                item = frame.program.get(frame.owner[0], Function)
                variables = dict(frame.variables)
                depth = variables[item.params[-1]]
                assert isinstance(depth, int)
                variables |= {item.params[0]: self._value(frame, argument), item.params[-1]: depth - 1}
                names = {*item.params, *(name for name, _ in item.objects)}
                return self._run(frame, frame.owner, {name: variables[name] for name in names})
            case Read(variable, _, name):
                it = self._object(frame, variable)
                return self._total(frame, it) if name is None else self._number(frame, it.values[name])
            case Method(kind, method, variable, seed, argument):
                it = self._object(frame, variable) if variable else self._new(frame, kind, self._value(frame, seed))
                return self._method(frame, (kind, method), it, self._value(frame, argument))
            case Act(trait, method, variable, argument):
                it = self._object(frame, variable)
                return self._method(frame, (it.type, trait, method), it, self._value(frame, argument))
            case Dyn(trait, method, types, chooser, argument):
                at = self._value(frame, chooser)
                kind = types[at % len(types)]
                it = self._new(frame, kind, at)
                return self._method(frame, (kind, trait, method), it, self._value(frame, argument))
            case Use():
                return self._use(frame, expr)
            case Keep(static, kind, seed, argument):
                seeded = self._value(frame, seed)
                return self._keep(frame, static, self._value(frame, argument), self._new(frame, kind, seeded))
            case Hook(static, _, _, argument):
                passed = self._value(frame, argument)
                captured = {name: self._value(frame, Var(name)) for name in captures(expr)}
                made_here = closures(frame.program, body_of(frame.program, frame.owner))
                number = next(at for at, one in enumerate(made_here) if one is expr)
                place = frame.program.get(static, Static)
                closure = Closure(
                    owner=frame.owner,
                    number=number,
                    hook=expr,
                    captured=captured,
                    held=self._new(frame, place.holds, passed) if place.kind == "holders" and place.holds else None,
                    program=frame.program,
                )
                return self._keep(frame, static, passed, closure)
            case Spawn(static, function, argument):
                return self._spawn(frame, static, function, self._value(frame, argument))
            case Point(static, function, argument):
                passed = self._value(frame, argument)
                key = self._place(frame, static)
                pointed = self._statics[key] = self._statics[key] or (frame.program, function)
                assert isinstance(pointed, tuple)
                program, name = pointed
                target = program.get(name, Function)
                return self._run(
                    Frame(program=program, owner=frame.owner, variables={}), (name,), {target.params[0]: passed}
                )

    def _spawn(self, frame: Frame, static: str, function: str, argument: int) -> int:
        key = self._place(frame, static)
        tasks = self._statics[key]
        assert isinstance(tasks, list)
        waiting = [Task(function=function, argument=argument, program=frame.program)] if len(tasks) < KEEPS else []
        self._statics[key] = waiting
        total = 0
        for task in tasks:
            owner = (task.function,)
            program = task.program if task.left_by else self._known[identity(task.program, owner)]
            item = program.get(task.function, Function)
            variables: dict[str, int | Object] = {item.params[0]: task.argument}
            result = self._body(Frame(program=program, owner=owner, variables=variables), item.body)
            total = wrap(total * 3 + result)
        return total

    def _place(self, frame: Frame, static: str) -> Identity:
        key = static_identity(frame.program, frame.program.get(static, Static))
        self._used.add(key)
        return key

    def _call(self, frame: Frame, call: Call) -> int:
        item = frame.program.get(call.function, Function)
        variables: dict[str, int | Object] = {}
        for name, argument in zip(item.params, call.arguments, strict=True):
            variables[name] = self._value(frame, argument)
        kinds = [*item.objects, *([("t", call.witness)] if call.witness else [])]
        for (name, kind), seed in zip(kinds, call.seeds, strict=True):
            variables[name] = self._new(frame, kind, self._value(frame, seed))
        return self._run(frame, (call.function,), variables)

    def _use(self, frame: Frame, use: Use) -> int:
        value = self._value(frame, use.value)
        item = frame.program.get(use.static, Static)
        key = self._place(frame, use.static)
        now = self._statics[key]
        match item.kind:
            case "atomic":
                assert isinstance(now, int)
                self._statics[key] = wrap(now + value)
                return now
            case "mutex":
                assert isinstance(now, int)
                self._statics[key] = wrap(now + value)
                return wrap(now + value)
            case "local" | "lazy_local":
                assert isinstance(now, dict)
                now[self._thread] = wrap(now.get(self._thread, item.initial) + value)
                return int(now[self._thread])
            case "once":
                self._statics[key] = filled = value if now is None else now
                assert isinstance(filled, int)
                return filled
            case "lazy":
                self._statics[key] = filled = item.initial if now is None else now
                assert isinstance(filled, int)
                return wrap(filled + value)
            case "plain":
                return wrap(item.initial + value)
            case _:
                assert isinstance(now, list)
                del now[: len(now) - KEEPS + 1 if len(now) >= KEEPS else 0]
                now.append(value)
                total = 0
                for one in now:
                    total = wrap(total * 3 + one)
                return total

    def _keep(self, frame: Frame, static: str, argument: int, new: Object | Closure) -> int:
        item = frame.program.get(static, Static)
        kept = self._statics[self._place(frame, static)]
        assert isinstance(kept, list)
        if len(kept) >= KEEPS:
            del kept[0]
        kept.append(new)
        total = 0
        for one in kept:
            total = wrap(total * 3 + self._ask(frame, item, one, argument))
        return total

    def _ask(self, frame: Frame, item: Static, one: Object | Closure, argument: int) -> int:
        if isinstance(one, Object):
            if item.kind == "kept":
                return self._total(frame, one)
            trait = frame.program.get(item.holds or "", Trait)
            return self._method(frame, (one.type, trait.name, trait.methods[0]), one, argument)
        program, hook = self.code_of(one)
        variables: dict[str, int | Object] = {**one.captured, hook.param: argument}
        inside = Frame(program=program, owner=one.owner, variables=variables)
        value = self._value(inside, hook.body)
        if one.held:
            return wrap(value + self._total(frame, one.held))
        return self._total(frame, self._new(inside, item.holds, value)) if item.holds else value


def _shape(program: Program, closure: Expr) -> Expr:
    """A closure with other names for what it captures, and numbers for constants: then its code is the same."""
    names: dict[str, str] = {}

    def change(expr: Expr) -> Expr:
        match expr:
            case Var(name):
                return Var(names.setdefault(name, f"_{len(names)}"))
            case ConstRef(name):
                return Lit(program.get(name, Const).value)
            case Hook(_, _, body, _) | Now(_, body, _):
                return Now("", body, Lit(0))
            case _:
                return expr

    return rewritten(change(closure) if isinstance(closure, Hook | Now) else closure, change)


def _may_differ(before: Program, one: Expr, after: Program, two: Expr) -> bool:
    """Whether the compiler may make other code of a closure than before: it, or something that it names, changed."""
    if isinstance(one, Use) and isinstance(two, Use):
        return False
    if _shape(before, one) != _shape(after, two):
        return True
    names = {name for expr in expressions(one) for name in named(expr)}
    return any(_meaning(before, name) != _meaning(after, name) for name in names)


def _meaning(program: Program, name: str) -> tuple[object, ...]:
    """What code that names an item knows of it, and of all that it leads to."""
    item = program.find(name)
    known: tuple[object, ...] = (item,)
    parts: Sequence[str | None] = ()
    match item:
        case Function():
            known = (replace(item, body=item.body if item.is_async else Body((), Lit(0))),)
            parts = (*(kind for _, kind in item.objects), item.bound)
        case Type():
            known = (item.home, _blocks_before(program, name), *((field.name, field.kind) for field in item.fields))
            known += tuple((variant.name, variant.kind) for variant in item.variants)
            parts = types_in(item)
        case Static():
            known, parts = (replace(item, initial=0),), (item.holds,)
    return (*known, *(_meaning(program, part) for part in parts if part))


def _below(program: Program, owner: Owner) -> list[Item]:
    """What is in the crates that the one of an owner's code uses."""
    item = program.find(owner[0])
    own = program.crate_number(item.home if item else program.crates[-1])
    return [one for one in program.items if program.crate_number(one.home) < own]


def _blocks_before(program: Program, name: str) -> int:
    """How many `impl` blocks are before those of a type in its module: rustc has their numbers in methods' symbols."""
    item = program.find(name)
    if not isinstance(item, Type):
        return 0
    kinds = [kind for kind in program.all(Type) if kind.home == item.home]
    return sum(2 + len(kind.impls) for kind in kinds[: kinds.index(item)])


def _reads_argument(program: Program, owner: Owner) -> bool:
    """Whether a function with one parameter needs it after it has waited, so that its future keeps it."""
    item = program.get(owner[0], Function)
    return any(expr == Var(item.params[0]) for expr in expressions(item.body))


def _is_async(program: Program, owner: Owner) -> bool:
    item = program.find(owner[0])
    return isinstance(item, Function) and item.is_async


def _others(program: Program, owner: Owner) -> tuple[object, ...]:
    return tuple(item for item in program.items if item.name != owner[0]), owner == ("tick",) or program.tick


def _objects(values: object) -> tuple[Object, ...]:
    """The objects among what a static keeps, and those that closures among it took along."""
    kept = values if isinstance(values, list) else []
    found = (one.held if isinstance(one, Closure) else one for one in kept)
    return tuple(one for one in found if isinstance(one, Object))


def _with(frame: Frame, name: str, value: int) -> Frame:
    return Frame(program=frame.program, owner=frame.owner, variables={**frame.variables, name: value})


def _initial(static: Static) -> object:
    match static.kind:
        case "list" | "kept" | "objects" | "hooks" | "makers" | "holders" | "tasks":
            return []
        case "local":
            return dict.fromkeys(range(THREADS), static.initial)
        case "lazy_local":
            return {}
        case "once" | "lazy" | "pointer":
            return None
        case _:
            return static.initial


def _is_puzzle(old: Type, new: Item | None) -> bool:
    """Whether fields of the same kinds have new names and another order: which is which, nobody can tell."""
    if not isinstance(new, Type) or renamed_fields(old, new):
        return False
    return sorted(field.kind for field in old.fields) == sorted(field.kind for field in new.fields) != []
