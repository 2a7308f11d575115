"""Programs as Rust sources.

The program answers each line that it gets on its socket, a number, with what `tick` returns for it. Odd numbers are
evaluated by the main thread, even ones by another, so thread-locals have two values.
"""

from collections.abc import Iterable

from tests.generator.language import (
    KEEPS,
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
    Variant,
    type_in,
)

MODULES = ("m0", "m1")
"""The modules of each crate, also where they are empty."""

MAIN = """\
#![allow(warnings)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::sync::mpsc::channel;

mod m0;
mod m1;
mod tick;
SUPPORT
fn main() {
    std::panic::set_hook(Box::new(|_| ()));
    let tick = std::hint::black_box(tick::tick as fn(i64) -> String);
    let (ask, asked) = channel::<i64>();
    let (answer, answered) = channel::<String>();
    std::thread::spawn(move || {
        for number in asked {
            answer.send(tick(number)).unwrap();
        }
    });
    let listener = UnixListener::bind(std::env::var("GENERATOR_SOCKET").unwrap()).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let lines = BufReader::new(stream.try_clone().unwrap()).lines();
    for line in lines {
        let number: i64 = line.unwrap().parse().unwrap();
        let text = if number % 2 == 0 {
            ask.send(number).unwrap();
            answered.recv().unwrap()
        } else {
            tick(number)
        };
        writeln!(stream, "{} {text}", std::process::id()).unwrap();
    }
}
"""

SUPPORT = """\
use std::future::Future;
use std::pin::{pin, Pin};
use std::task::{Context, Poll, Waker};

pub fn hash(text: &str) -> i64 {
    let mut hash = 7i64;
    for byte in text.bytes() {
        hash = hash.wrapping_mul(31).wrapping_add(byte as i64);
    }
    hash
}

pub struct Pause(pub bool);

impl Future for Pause {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.0 {
            return Poll::Ready(());
        }
        self.0 = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

pub type Task = Pin<Box<dyn Future<Output = i64> + Send>>;

pub fn poll_all(tasks: &mut Vec<Task>) -> i64 {
    let mut context = Context::from_waker(Waker::noop());
    let mut sum = 0i64;
    let mut at = 0;
    while at < tasks.len() {
        if let Poll::Ready(value) = tasks[at].as_mut().poll(&mut context) {
            sum = sum.wrapping_mul(3).wrapping_add(value);
            drop(tasks.remove(at));
        } else {
            at += 1;
        }
    }
    sum
}

pub fn wait_for<F: Future<Output = i64>>(future: F) -> i64 {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}
"""

MANIFEST = """\
[package]
name = "{name}"
version = "0.1.0"
edition = "2021"

[dependencies]
{dependencies}
"""

WORKSPACE = """
[workspace]

[profile.dev]
{profile}"""


def sources(program: Program) -> dict[str, str]:
    """The text of every file, by its path in the workspace."""
    files = {}
    for number, crate in enumerate(program.crates):
        is_app = number == len(program.crates) - 1
        up = "" if is_app else "../"
        below = "\n".join(f'{name} = {{ path = "{up}{name}" }}' for name in program.crates[:number])
        manifest = MANIFEST.format(name=crate, dependencies=below)
        root = "" if is_app else f"{crate}/"
        files[f"{root}Cargo.toml"] = manifest + (WORKSPACE.format(profile=program.profile) if is_app else "")
        if number == 0:
            files[f"{root}src/support.rs"] = SUPPORT
        support = "pub mod support;\n" if number == 0 else ""
        if is_app:
            files["src/main.rs"] = MAIN.replace("SUPPORT\n", support)
            files["src/tick.rs"] = _tick(program)
        else:
            modules = "".join(f"pub mod {module};\n" for module in MODULES)
            files[f"{root}src/lib.rs"] = f"#![allow(warnings)]\n\n{support}{modules}"
        for module in MODULES:
            home = f"{crate}::{module}"
            comments = "// A line.\n" * dict(program.comments).get(home, 0)
            items = (item for item in program.items if item.home == home)
            files[f"{root}src/{module}.rs"] = comments + "\n".join(
                Renderer(program, crate).item(item) for item in items
            )
    return files


def _tick(program: Program) -> str:
    renderer = Renderer(program, program.crates[-1])
    names = [name for name, _ in program.tick.lets]
    shown = " ".join(f"{name}={{{name}}}" for name in names)
    lets = "".join(f"    let {name} = {renderer.expr(value)};\n" for name, value in program.tick.lets)
    return f'pub fn tick(n: i64) -> String {{\n{lets}    format!("{shown}")\n}}\n'


class Renderer:
    """Writes items of one crate.

    Args:
        program: what names mean.
        crate: where the text goes.
    """

    def __init__(self, program: Program, crate: str) -> None:
        self._program = program
        self._crate = crate
        self._support = f"{'crate' if crate == program.crates[0] else program.crates[0]}::support"
        self._recursion = ""

    def path(self, name: str) -> str:
        """How this crate names an item."""
        crate, module = self._program.get_item(name).home.split("::")
        return f"{'crate' if crate == self._crate else crate}::{module}::{name}"

    def item(self, item: Item) -> str:
        """An item's text."""
        match item:
            case Function():
                return self._function(item)
            case Type():
                return self._type(item)
            case Trait():
                methods = "".join(f"    fn {name}(&self, x: i64) -> i64;\n" for name in item.methods)
                return f"pub trait {item.name} {{\n{methods}}}\n"
            case Static():
                return self._static(item)
            case Const():
                return f"pub const {item.name}: i64 = {item.value};\n"

    def _function(self, item: Function) -> str:
        params = [f"{name}: i64" for name in item.params]
        params += [f"{name}: &{self.path(kind)}" for name, kind in item.objects]
        bound = ""
        if item.bound:
            bound = f"<T: {self.path(item.bound)}>"
            params.append("t: &T")
        lines = []
        if item.recursive:
            depth = item.params[-1]
            lines.append(f"    if !(1..={RECURSIONS}).contains(&{depth}) {{\n        return {depth};\n    }}\n")
            names = [*item.params[1:-1], f"{depth} - 1", *(name for name, _ in item.objects)]
            self._recursion = f"{item.name}({{}}, {', '.join(names)})"
        if item.is_async:
            lines.append(f"    {self._support}::Pause(false).await;\n")
        head = f"pub {'async ' * item.is_async}fn {item.name}{bound}({', '.join(params)}) -> i64"
        return f"{head} {{\n{''.join(lines)}{self._body(item.body)}}}\n"

    def _body(self, body: Body, indent: str = "    ") -> str:
        lines = [f"let {name} = {self.expr(value)};" for name, value in body.lets]
        return "".join(f"{indent}{line}\n" for line in [*lines, self.expr(body.result)])

    def _type(self, item: Type) -> str:
        shape = self._enum(item) if item.variants else self._struct(item)
        methods = "".join(map(self._code, item.methods))
        text = f"{shape}\nimpl {item.name} {{\n{methods}}}\n"
        for impl in item.impls:
            text += f"\nimpl {self.path(impl.trait)} for {item.name} {{\n"
            text += "".join(self._code(code).replace("pub fn", "fn") for code in impl.methods) + "}\n"
        return text

    def _code(self, code: Code) -> str:
        return f"    pub fn {code.name}(&self, x: i64) -> i64 {{\n{self._body(code.body, ' ' * 8)}    }}\n"

    def _struct(self, item: Type) -> str:
        fields = "".join(f"    pub {field.name}: {self._kind(field.kind)},\n" for field in item.fields)
        values = []
        for field in item.fields:
            value = f"seed.wrapping_mul({field.factor}).wrapping_add({field.offset})"
            values.append(f"{field.name}: {self._made(field.kind, value)}")
        total = "0i64" + "".join(
            f".wrapping_add({self._read(field.kind, f'self.{field.name}')})" for field in item.fields
        )
        return (
            f"pub struct {item.name} {{\n{fields}}}\n\nimpl {item.name} {{\n"
            f"    pub fn new(seed: i64) -> Self {{\n        Self {{ {', '.join(values)} }}\n    }}\n"
            f"    pub fn total(&self) -> i64 {{\n        {total}\n    }}\n}}\n"
        )

    def _enum(self, item: Type) -> str:
        variants = "".join(
            f"    {one.name}{f'({self._kind(one.kind)})' if one.kind else ''},\n" for one in item.variants
        )
        makes = _arms(
            f"Self::{one.name}({self._made(one.kind, 'seed')})" if one.kind else f"Self::{one.name}"
            for one in item.variants
        )
        weighs = "".join(f"            {self._weigh(one)},\n" for one in item.variants)
        return (
            f"pub enum {item.name} {{\n{variants}}}\n\nimpl {item.name} {{\n"
            f"    pub fn new(seed: i64) -> Self {{\n        match seed.rem_euclid({len(item.variants)}) {{\n{makes}"
            f"        }}\n    }}\n"
            f"    pub fn total(&self) -> i64 {{\n        match self {{\n{weighs}        }}\n    }}\n}}\n"
        )

    def _weigh(self, one: Variant) -> str:
        if not one.kind:
            return f"Self::{one.name} => {one.weight}"
        is_number = one.kind != "String" and not type_in(one.kind)
        value = self._read(one.kind, "(*value)" if is_number else "value")
        return f"Self::{one.name}(value) => {value}.wrapping_add({one.weight})"

    def _kind(self, kind: str) -> str:
        inner = type_in(kind)
        return kind.replace(inner, self.path(inner)) if inner else kind

    def _made(self, kind: str, value: str) -> str:
        inner = type_in(kind)
        if not inner:
            return f"{value}.to_string()" if kind == "String" else f"{value} as {kind}"
        made = f"{self.path(inner)}::new({value})"
        return f"Box::new({made})" if kind.startswith("Box") else f"vec![{made}]" if kind.startswith("Vec") else made

    def _read(self, kind: str, place: str) -> str:
        if type_in(kind):
            return f"{place}[0].total()" if kind.startswith("Vec") else f"{place}.total()"
        return f"{self._support}::hash(&{place})" if kind == "String" else f"({place} as i64)"

    def _static(self, item: Static) -> str:
        value = item.initial
        holds = self.path(item.holds) if item.holds else ""
        kinds = {
            "atomic": ("std::sync::atomic::AtomicI64", f"std::sync::atomic::AtomicI64::new({value})"),
            "mutex": ("std::sync::Mutex<i64>", f"std::sync::Mutex::new({value})"),
            "local": ("std::cell::Cell<i64>", f"const {{ std::cell::Cell::new({value}) }}"),
            "lazy_local": ("std::cell::RefCell<Vec<i64>>", f"std::cell::RefCell::new(vec![{value}])"),
            "once": ("std::sync::OnceLock<i64>", "std::sync::OnceLock::new()"),
            "lazy": ("std::sync::LazyLock<i64>", f"std::sync::LazyLock::new(|| {value})"),
            "plain": ("i64", str(value)),
            "list": _kept("i64"),
            "kept": _kept(holds),
            "objects": _kept(f"Box<dyn {holds} + Send>"),
            "hooks": _kept("Box<dyn Fn(i64) -> i64 + Send>"),
            "makers": _kept(f"Box<dyn Fn(i64) -> {holds} + Send>"),
            "holders": _kept("Box<dyn Fn(i64) -> i64 + Send>"),
            "tasks": _kept(f"{self._support}::Task"),
            "pointer": ("std::sync::Mutex<Option<fn(i64) -> i64>>", "std::sync::Mutex::new(None)"),
        }
        kind, initial = kinds[item.kind]
        text = f"pub static {item.name}: {kind} = {initial};\n"
        return f"thread_local! {{\n    {text}}}\n" if item.kind in ("local", "lazy_local") else text

    def expr(self, expr: Expr) -> str:
        """An expression's text, which a method call may follow."""
        write = self.expr
        match expr:
            case Lit(value):
                return f"({value}i64)"
            case Var(name):
                return name
            case ConstRef(name):
                return self.path(name)
            case Bin(operator, left, right):
                if operator == "xor":
                    return f"({write(left)} ^ {write(right)})"
                return f"{write(left)}.wrapping_{operator}({write(right)})"
            case If(left, right, then, other):
                return f"(if {write(left)} < {write(right)} {{ {write(then)} }} else {{ {write(other)} }})"
            case Match(value, arms):
                return f"(match {write(value)}.rem_euclid({len(arms)}) {{ {_arms(map(write, arms), '')} }})"
            case Text(text, value):
                return f'{self._support}::hash(&format!("{text}{{}}", {write(value)}))'
            case Now(param, body, argument):
                return f"(|{param}: i64| -> i64 {{ {write(body)} }})({write(argument)})"
            case Fold(times, param, body):
                return f"(0..{times}i64).map(|{param}| {write(body)}).fold(0i64, i64::wrapping_add)"
            case Catch(condition, value, fallback):
                return (
                    f"std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {{ if {write(condition)} & 1 == 0 "
                    f'{{ panic!("even") }} {write(value)} }})).unwrap_or({fallback})'
                )
            case Call():
                return self._call(expr)
            case Recur(argument):
                return self._recursion.format(write(argument))
            case Read(variable, _, None):
                return f"{variable}.total()"
            case Read(variable, kind, name):
                field = next(one for one in self._program.get(kind, Type).fields if one.name == name)
                return self._read(field.kind, f"{variable}.{name}")
            case Method(kind, method, variable, seed, argument):
                return f"{variable or f'{self.path(kind)}::new({write(seed)})'}.{method}({write(argument)})"
            case Act(trait, method, variable, argument):
                return f"{self.path(trait)}::{method}({variable}, {write(argument)})"
            case Dyn(trait, method, types, chooser, argument):
                made = ", ".join(f"Box::new({self.path(kind)}::new(__at))" for kind in types)
                chosen = f"&*__all[__at.rem_euclid({len(types)}) as usize]"
                return (
                    f"({{ let __at = {write(chooser)}; let __all: [Box<dyn {self.path(trait)}>; {len(types)}] = "
                    f"[{made}]; {self.path(trait)}::{method}({chosen}, {write(argument)}) }})"
                )
            case Use():
                return self._use(expr)
            case Keep(static, kind, seed, argument):
                item = self._program.get(static, Static)
                new = f"{self.path(kind)}::new(__seed)"
                if item.kind == "objects":
                    kept = self._program.get(item.holds or "", Trait)
                    asked = f"{self.path(kept.name)}::{kept.methods[0]}(&**one, __argument)"
                    new = f"Box::new({new})"
                else:
                    asked = "one.total()"
                return self._keep(static, f"let __seed = {write(seed)};", argument, new, asked)
            case Hook(static, param, body, argument):
                item = self._program.get(static, Static)
                held = self.path(item.holds) if item.holds else ""
                result, made, asked = "i64", write(body), "one(__argument)"
                if item.kind == "makers":
                    result, made, asked = held, f"{held}::new({made})", f"{asked}.total()"
                if item.kind == "holders":
                    made = f"{made}.wrapping_add(__held.total())"
                new = f"Box::new(move |{param}: i64| -> {result} {{ {made} }})"
                if item.kind == "holders":
                    new = f"{{ let __held = {held}::new(__argument); {new} }}"
                return self._keep(static, "", argument, new, asked)
            case Spawn(static, function, argument):
                return (
                    f"({{ let __argument = {write(argument)}; let mut __list = {self.path(static)}.lock().unwrap(); "
                    f"if __list.len() < {KEEPS} {{ __list.push(Box::pin({self.path(function)}(__argument))); }} "
                    f"{self._support}::poll_all(&mut __list) }})"
                )
            case Point(static, function, argument):
                place = self.path(static)
                return (
                    f"({{ let __argument = {write(argument)}; let __function = *{place}.lock().unwrap()"
                    f".get_or_insert({self.path(function)} as fn(i64) -> i64); __function(__argument) }})"
                )

    def _call(self, call: Call) -> str:
        item = self._program.get(call.function, Function)
        arguments = [self.expr(argument) for argument in call.arguments]
        kinds = [kind for _, kind in item.objects] + ([call.witness] if call.witness else [])
        arguments += [
            f"&{self.path(kind)}::new({self.expr(seed)})" for kind, seed in zip(kinds, call.seeds, strict=True)
        ]
        text = f"{self.path(call.function)}({', '.join(arguments)})"
        return f"{self._support}::wait_for({text})" if item.is_async else text

    def _use(self, use: Use) -> str:
        place = self.path(use.static)
        value = self.expr(use.value)
        match self._program.get(use.static, Static).kind:
            case "atomic":
                return f"{place}.fetch_add({value}, std::sync::atomic::Ordering::SeqCst)"
            case "mutex":
                after = f"let mut __place = {place}.lock().unwrap(); *__place = __place.wrapping_add(__value); *__place"
            case "local":
                after = f"{place}.set({place}.get().wrapping_add(__value)); {place}.get()"
            case "lazy_local":
                change = "let last = list[0].wrapping_add(__value); list[0] = last; last"
                after = f"{place}.with_borrow_mut(|list| {{ {change} }})"
            case "once":
                after = f"*{place}.get_or_init(|| __value)"
            case "lazy":
                after = f"(*{place}).wrapping_add(__value)"
            case "plain":
                after = f"(*std::hint::black_box(&{place})).wrapping_add(__value)"
            case _:
                after = (
                    f"let mut __list = {place}.lock().unwrap(); if __list.len() >= {KEEPS} {{ __list.remove(0); }} "
                    "__list.push(__value); let mut __sum = 0i64; "
                    "for one in __list.iter() { __sum = __sum.wrapping_mul(3).wrapping_add(*one); } __sum"
                )
        return f"({{ let __value = {value}; {after} }})"

    def _keep(self, static: str, before: str, argument: Expr, new: str, asked: str) -> str:
        return (
            f"({{ {before} let __argument = {self.expr(argument)}; "
            f"let mut __list = {self.path(static)}.lock().unwrap(); if __list.len() >= {KEEPS} {{ __list.remove(0); }} "
            f"__list.push({new}); let mut __sum = 0i64; "
            f"for one in __list.iter() {{ __sum = __sum.wrapping_mul(3).wrapping_add({asked}); }} __sum }})"
        )


def _kept(kind: str) -> tuple[str, str]:
    return f"std::sync::Mutex<Vec<{kind}>>", "std::sync::Mutex::new(Vec::new())"


def _arms(values: Iterable[str], indent: str = " " * 12) -> str:
    listed = list(values)
    arms = [f"{number} => {value}," for number, value in enumerate(listed[:-1])] + [f"_ => {listed[-1]},"]
    return "".join(f"{indent}{arm}\n" for arm in arms) if indent else " ".join(arms)
