"""Writes a large, deterministic crate: a binary of at least 50,000 lines in many modules, and one function to edit.

Every module has structs, an enum, a trait with several implementations, generics, closures, collections, formatted
text and error handling, and differs from its neighbours in names, fields and constants. `main` reaches all of it, and
all modules are public, so all of it becomes machine code however the crate is compiled.
"""

from __future__ import annotations

from pathlib import Path

MODULES = 95
GROUPS = 4
"""Groups of items in each module."""

EDITED_FILE = "src/m050.rs"
EDITED_LINE = "let version = {number};"
"""The line of the function `edited` that each edit changes; 0 at first."""

_MANIFEST = """\
[package]
name = "large"
version = "0.1.0"
edition = "2021"
publish = false

[workspace]
"""

_HEAD = """\
//! Module {m}.

use std::collections::{{BTreeMap, HashMap}};
use std::fmt;
use std::sync::atomic::{{AtomicU64, Ordering}};

static VISITS: AtomicU64 = AtomicU64::new({m});

const SCALE: u64 = {scale};

#[derive(Debug)]
pub enum Failure {{
    Empty,
    TooLarge(u64),
    Unknown {{ name: String }},
}}

impl fmt::Display for Failure {{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {{
        match self {{
            Failure::Empty => f.write_str("nothing in module {m}"),
            Failure::TooLarge(value) => write!(f, "{{value}} is more than {{SCALE}}"),
            Failure::Unknown {{ name }} => write!(f, "no {{name:?}} in module {m}"),
        }}
    }}
}}

impl std::error::Error for Failure {{}}

pub trait Measure {{
    fn size(&self) -> u64;

    fn doubled(&self) -> u64 {{
        self.size().wrapping_mul(2)
    }}
}}

fn measure_of(value: &dyn Measure) -> u64 {{
    value.size().wrapping_add(value.doubled())
}}

fn largest<T: PartialOrd + Copy>(values: &[T]) -> Option<T> {{
    let mut best = *values.first()?;
    for &value in values {{
        if value > best {{
            best = value;
        }}
    }}
    Some(best)
}}

"""

_GROUP = """\
#[derive(Clone, Debug, PartialEq)]
pub struct Record{g} {{
    pub id: u64,
    pub name: String,
    pub weights: Vec<u64>,
    pub extra_{m}_{g}: [u32; {array}],
}}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State{g} {{
    Idle,
    Running(u64),
    Done {{ code: u32, after: u64 }},
}}

impl Record{g} {{
    pub fn new(id: u64) -> Self {{
        Self {{
            id,
            name: format!("record-{m}-{g}-{{id}}"),
            weights: (0..{count}).map(|step: u64| step.wrapping_mul(id) + {g}).collect(),
            extra_{m}_{g}: [id as u32; {array}],
        }}
    }}

    pub fn heaviest(&self) -> Option<u64> {{
        largest(&self.weights)
    }}

    pub fn merge(&mut self, other: &Self) -> Result<usize, Failure> {{
        if other.weights.is_empty() {{
            return Err(Failure::Empty);
        }}
        let limit = SCALE.wrapping_mul(1_000_000_007);
        for (own, more) in self.weights.iter_mut().zip(&other.weights) {{
            *own = own.checked_add(*more).ok_or(Failure::TooLarge(*own))?;
            if *own > limit {{
                *own %= limit;
            }}
        }}
        Ok(self.weights.len())
    }}

    fn next_state(&self, state: State{g}) -> State{g} {{
        match state {{
            State{g}::Idle => State{g}::Running(self.id),
            State{g}::Running(steps) if steps > {limit} => State{g}::Done {{ code: {g}, after: steps }},
            State{g}::Running(steps) => State{g}::Running(steps + self.weights.len() as u64),
            State{g}::Done {{ code, .. }} => State{g}::Running(code as u64),
        }}
    }}
}}

impl Measure for Record{g} {{
    fn size(&self) -> u64 {{
        self.weights.iter().sum::<u64>() + self.extra_{m}_{g}.len() as u64
    }}
}}

impl Measure for State{g} {{
    fn size(&self) -> u64 {{
        match self {{
            State{g}::Idle => 0,
            State{g}::Running(steps) => *steps,
            State{g}::Done {{ code, after }} => u64::from(*code) + after,
        }}
    }}
}}

fn index_{g}(records: &[Record{g}]) -> HashMap<String, usize> {{
    let mut index = HashMap::new();
    for (place, record) in records.iter().enumerate() {{
        index.insert(record.name.clone(), place);
    }}
    index
}}

fn find_{g}<'a>(records: &'a [Record{g}], name: &str) -> Result<&'a Record{g}, Failure> {{
    let index = index_{g}(records);
    let place = index.get(name).ok_or_else(|| Failure::Unknown {{ name: name.to_owned() }})?;
    Ok(&records[*place])
}}

fn totals_{g}(records: &[Record{g}]) -> BTreeMap<u64, u64> {{
    let mut totals = BTreeMap::new();
    for record in records {{
        *totals.entry(record.id % {bucket}).or_insert(0) += record.size();
    }}
    totals.retain(|_, total| *total > {g});
    totals
}}

pub fn group_{g}(seed: u64) -> Result<u64, Failure> {{
    let mut records = Vec::new();
    for step in 1..4 {{
        records.push(Record{g}::new(seed % 97 + step));
    }}
    let first = records[0].clone();
    let merged = records[1].merge(&first)?;
    let mut sizes: Vec<u64> = Vec::new();
    for record in &records {{
        sizes.push(record.size());
    }}
    sizes.sort();
    let name = records[2].name.clone();
    let found = find_{g}(&records, &name)?;
    let mut state = State{g}::Idle;
    for _ in 0..merged {{
        state = found.next_state(state);
    }}
    let text = format!("{{:?}} {{}}", state, found.heaviest().unwrap_or(SCALE));
    let mut total = sizes[0].wrapping_add(text.len() as u64).wrapping_add(measure_of(&state));
    for (bucket, value) in &totals_{g}(&records) {{
        total = total.wrapping_add(bucket ^ value);
    }}
    for record in &records {{
        total = total.wrapping_add(measure_of(record));
    }}
    Ok(total)
}}

"""

_EDITED = """\
pub fn edited(value: u64) -> u64 {
    let version = 0;
    value.wrapping_mul(1000) + version
}

"""

_MAIN = """\
//! Goes through all modules once, and then prints one line every 20 ms.

{modules}

use std::time::{{Duration, Instant}};

fn main() {{
    let mut total = 0u64;
{calls}
    let start = Instant::now();
    let mut tick = 0u64;
    while start.elapsed() < Duration::from_secs(3600) {{
        tick += 1;
        println!("tick={{tick}} total={{total}} edited={{}}", {edited}::edited(1));
        std::thread::sleep(Duration::from_millis(20));
    }}
}}
"""


def module_text(module: int) -> str:
    """The source of one module."""
    groups = "".join(
        _GROUP.format(
            m=module,
            g=group,
            array=2 + (module + group) % 5,
            count=3 + group,
            limit=20 + module % 7,
            bucket=3 + (module * group) % 11,
        )
        for group in range(GROUPS)
    )
    calls = "".join(
        f"    total = total.wrapping_add(group_{group}(seed + {group}).unwrap_or({group}));\n"
        for group in range(GROUPS)
    )
    run = (
        "pub fn run(seed: u64) -> u64 {\n    let mut total = VISITS.fetch_add(1, Ordering::Relaxed);\n"
        f"{calls}    total\n}}\n"
    )
    edited = _EDITED if f"src/m{module:03}.rs" == EDITED_FILE else ""
    return _HEAD.format(m=module, scale=7 + module) + groups + edited + run


def generate(root: Path) -> int:
    """Writes the crate `large` to `root`, which is created; returns its number of source lines."""
    (root / "src").mkdir(parents=True, exist_ok=True)
    names = [f"m{module:03}" for module in range(MODULES)]
    main = _MAIN.format(
        modules="\n".join(f"pub mod {name};" for name in names),
        calls="\n".join(f"    total = total.wrapping_add({name}::run({len(name)}));" for name in names),
        edited=Path(EDITED_FILE).stem,
    )
    texts = {"main.rs": main} | {f"{name}.rs": module_text(number) for number, name in enumerate(names)}
    (root / "Cargo.toml").write_text(_MANIFEST)
    for file, text in texts.items():
        (root / "src" / file).write_text(text)
    return sum(text.count("\n") for text in texts.values())


_SYMBOL_NAME = "_ZN5bench{module_length}{module}{name_length}{name}17h{hash:016x}E"


def symbols_assembly(count: int) -> str:
    """Assembly of a program with `count` functions named the way rustc names them."""
    lines = [".text", ".globl main", "main:", "xorl %eax, %eax", "ret"]
    for number in range(count):
        module, name = f"module_{number % 311}", f"function_{number}"
        symbol = _SYMBOL_NAME.format(
            module=module,
            module_length=len(module),
            name=name,
            name_length=len(name),
            hash=number * 0x9E3779B97F4A7C15 % 2**64,
        )
        lines += [f".globl {symbol}", f".type {symbol},@function", f"{symbol}:", "ret", f".size {symbol}, 1"]
    return "\n".join([*lines, '.section .note.GNU-stack,"",@progbits', ""])
