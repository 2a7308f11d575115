"""The catalogue of edits: for each fixture program, each kind of edit that must apply."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One replacement in one file, and what must come of it.

    Args:
        kind: what sort of function or item is edited.
        file: the source file, relative to the project.
        old: text that is there exactly once.
        new: what takes its place.
        key: the word of the program's line that shows the edit.
        value: what `key` shows afterwards.
        patched: regular expression; the whole name of a function in `functions.patched`.
        added: likewise in `functions.added`; empty where nothing need be new.
    """

    kind: str
    file: str
    old: str
    new: str
    key: str
    value: str
    patched: str
    added: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A fixture program, built in one way.

    Args:
        name: a directory of `fixtures/programs`.
        selection: cargo's target selection.
        edits: the edits that must apply.
        inlines: the compiler may have put the edited function into callers, which are patched instead.
    """

    name: str
    edits: tuple[Edit, ...]
    selection: tuple[str, ...] = ()
    inlines: bool = False

    @property
    def id(self) -> str:
        """A name for reports."""
        return "".join([self.name, *(word for word in self.selection if word.startswith("--release"))])


PRIVATE = Edit(
    kind="private",
    file="src/main.rs",
    old="    left + right",
    new="    left * right",
    key="private",
    value="60",
    patched=r".*::private_sum",
)
PUBLIC = Edit(
    kind="public",
    file="src/main.rs",
    old='String::from("first")',
    new='String::from("second")',
    key="public",
    value="second",
    patched=r".*::public_name",
)
GENERIC = Edit(
    kind="generic",
    file="src/main.rs",
    old="    value + value",
    new="    value + value + value",
    key="generic",
    value="63",
    patched=r".*::generic_twice(::<.*>)?",
)
TRAIT_METHOD = Edit(
    kind="trait_method",
    file="src/main.rs",
    old="self.side * self.side",
    new="self.side * self.side * self.side",
    key="trait",
    value="125",
    patched=r"<.*Square as .*Shape>::area",
)
CLOSURE = Edit(
    kind="closure",
    file="src/main.rs",
    old="|value| value + 1)",
    new="|value| value + 2)",
    key="closure",
    value="12",
    patched=r".*::closure_total::\{+closure.*\}+",
)
CONST = Edit(
    kind="const",
    file="src/main.rs",
    old="const FACTOR: u64 = 10;",
    new="const FACTOR: u64 = 11;",
    key="const",
    value="77",
    patched=r".*::const_scaled",
)


def extra(kind: str, value: str, body: str, items: str = "", added: str = "") -> Edit:
    """An edit of the function `extra`, which every program has: a new body, and new items after it."""
    return Edit(
        kind=kind,
        file="src/main.rs",
        old='    String::from("plain")\n}\n',
        new=f"    {body}\n}}\n{items}",
        key="extra",
        value=value,
        patched=r".*::extra",
        added=added,
    )


EXTRAS = (
    extra(
        "add_functions",
        "n42",
        "label_of(doubled(21))",
        "\nfn doubled(value: u64) -> u64 {\n    value * 2\n}\n"
        '\nfn label_of<T: std::fmt::Display>(value: T) -> String {\n    format!("n{value}")\n}\n',
        added=r".*::doubled",
    ),
    extra(
        "add_types",
        "v1.2",
        "let parts: Vec<Box<dyn Part>> = vec![Box::new(Major(1)), Box::new(Minor { value: 2 })];\n"
        '    format!("v{}", parts.iter().map(|part| part.text()).collect::<Vec<_>>().join("."))',
        "\ntrait Part {\n    fn text(&self) -> String;\n}\n"
        "\nstruct Major(u64);\n\nstruct Minor {\n    value: u8,\n}\n"
        "\nimpl Part for Major {\n    fn text(&self) -> String {\n        self.0.to_string()\n    }\n}\n"
        "\nimpl Part for Minor {\n    fn text(&self) -> String {\n        self.value.to_string()\n    }\n}\n",
        added=r"<.*Minor as .*Part>::text",
    ),
    extra(
        "add_static",
        "fresh:[1-9][0-9]*",
        "static FRESH: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);\n"
        '    format!("fresh:{}", 1 + FRESH.fetch_add(1, std::sync::atomic::Ordering::Relaxed))',
    ),
    extra(
        "std_hashmap",
        "map2",
        "let mut counts = std::collections::HashMap::new();\n"
        '    for word in ["one", "two", "one"] {\n'
        "        *counts.entry(word.to_owned()).or_insert(0) += 1;\n    }\n"
        '    format!("map{}", counts["one"])',
    ),
    extra(
        "std_btreemap",
        "tree:a=1,b=2",
        'let tree: std::collections::BTreeMap<_, _> = [("b", 2), ("a", 1)].into_iter().collect();\n'
        '    let pairs: Vec<_> = tree.iter().map(|(key, value)| format!("{key}={value}")).collect();\n'
        '    format!("tree:{}", pairs.join(","))',
    ),
    extra("std_args", "args1", 'format!("args{}", std::env::args().count())'),
    extra("std_floats", "1.414", 'format!("{:.3}", "2".parse::<f64>().unwrap().sqrt())'),
    extra(
        "std_sort",
        "fig-pear-apple",
        'let mut words = vec!["apple", "pear", "fig"];\n    words.sort_by_key(|word| word.len());\n    words.join("-")',
    ),
    extra(
        "std_backtrace",
        "named",
        "let trace = std::backtrace::Backtrace::force_capture().to_string();\n"
        '    String::from(if trace.contains("::") { "named" } else { "unnamed" })',
    ),
)


def moved_to(edits: tuple[Edit, ...], file: str) -> tuple[Edit, ...]:
    """The same edits of another file."""
    return tuple(replace(edit, file=file) for edit in edits)


PLAIN = (PRIVATE, PUBLIC, GENERIC, TRAIT_METHOD, CLOSURE, CONST)

STATEFUL = (
    PRIVATE,
    PUBLIC,
    GENERIC,
    replace(TRAIT_METHOD, value="131"),
    replace(
        CLOSURE,
        old="move |value| value + offset",
        new="move |value| value + 2 * offset",
        value="36",
        patched=r".*::rules::\{+closure.*\}+",
    ),
    CONST,
    Edit(
        kind="async",
        file="src/executor.rs",
        old="MARK.store(5,",
        new="MARK.store(6,",
        key="async_mark",
        value="6",
        patched=r".*::count_for_ever::\{+closure.*\}+",
    ),
    Edit(
        kind="thread_local_user",
        file="src/places.rs",
        old='"old:',
        new='"new:',
        key="state",
        value="new:([0-9]+):\\1",
        patched=r".*::places::state",
    ),
    Edit(
        kind="drop",
        file="src/panics.rs",
        old="WEIGHT.store(5,",
        new="WEIGHT.store(6,",
        key="weight",
        value="6",
        patched=r"<.*Guard as .*Drop>::drop",
    ),
    extra(
        "std_threads",
        "joined9",
        'format!("joined{}", std::thread::spawn(|| (2..5).sum::<u64>()).join().unwrap())',
    ),
    *EXTRAS,
)

OWN_PART = Edit(
    kind="of_the_tip",
    file="src/main.rs",
    old='String::from("binary")',
    new='String::from("changed")',
    key="own",
    value="changed",
    patched=r".*::own_part",
)

LIBBIN = (
    *moved_to((PRIVATE, PUBLIC, CLOSURE, CONST, *EXTRAS), "src/lib.rs"),
    Edit(
        kind="generic",
        file="src/lib.rs",
        old='format!("<{value}>")',
        new='format!("[{value}]")',
        key="generic",
        value=r"\[21\]",
        patched=r".*::generic_label(::<.*>)?",
    ),
    replace(TRAIT_METHOD, file="src/shapes.rs"),
    Edit(
        kind="trait_default",
        file="src/shapes.rs",
        old="self.area() * 2",
        new="self.area() * 4",
        key="default",
        value="100",
        patched=r".*Shape(>?)::doubled",
    ),
    OWN_PART,
)

EXAMPLE_TIP = (
    *moved_to((*PLAIN, *EXTRAS), "src/lib.rs"),
    replace(OWN_PART, file="examples/tip.rs", old='String::from("example")'),
)

POPULAR = (
    *moved_to((PRIVATE, PUBLIC, TRAIT_METHOD), "src/orders.rs"),
    GENERIC,
    CLOSURE,
    CONST,
    Edit(
        kind="async",
        file="src/main.rs",
        old='"{}",\n            line(',
        new='"{} mark=new",\n            line(',
        key="mark",
        value="new",
        patched=r".*::print_lines::\{+closure.*\}+",
    ),
    Edit(
        kind="dependency_use",
        file="src/orders.rs",
        old="    private_sum(found[1].parse().unwrap(), found[2].parse().unwrap())",
        new='    let words = Regex::new(r"[a-z]+").unwrap().find_iter(text).count() as u64;\n'
        "    let text = serde_json::to_string(&vec![words; 3]).unwrap();\n"
        "    text.len() as u64 + private_sum(found[1].parse().unwrap(), found[2].parse().unwrap())",
        key="private",
        value="30",
        patched=r".*::describe",
    ),
    *EXTRAS,
)

VARIANTS = (
    Variant(name="single", edits=(*PLAIN, *EXTRAS)),
    Variant(name="stateful", edits=STATEFUL),
    Variant(name="libbin", edits=LIBBIN),
    Variant(name="example-tip", edits=EXAMPLE_TIP, selection=("--example", "tip")),
    Variant(name="popular", edits=POPULAR),
    Variant(name="popular", edits=POPULAR, selection=("--release",), inlines=True),
)
