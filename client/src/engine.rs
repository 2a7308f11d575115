//! Applies patches and takes them back: each all or nothing.

use crate::announce::{hide_from_gdb, show_to_gdb, Shown};
use crate::arch::{detour, entered_under_detour, synchronize_code, CALL_LEN, DETOUR_LEN};
use crate::check::{check, Ground, Plan, Way};
use crate::frames;
use crate::host::Host;
use crate::locals::{Initial, Reserve, Unlocked};
use crate::memory::{discard, pages, protect, release, Memory, SLOT_SIZE};
use crate::park::{signal, wait_left, Parking, Stuck};
use crate::proof::{Blocks, Taken};
use crate::site::{SecondCall, Site};
use crate::unwind::{with_modules, Module, Walker};
use crate::wire::{Applied, Idle, OnStack, Patch, Protection, Ran, Reason, Refusal, Region, ThreadLocals, Timings};
use libc::pid_t;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, Instant};
use std::{fs, io, mem, process, ptr, slice, thread};

const ATTEMPTS: u32 = 8;
/// Attempts that find a thread starting another, which takes it less than a millisecond.
const ATTEMPTS_WHILE_STARTING: u32 = 1024;
/// Size of the function that starts threads, where no table tells it: musl has none, and 1.8 KiB for x86-64.
const THREAD_START_SIZE: u64 = 2048;
const FIRST_LIMIT: Duration = Duration::from_millis(50);
/// How much of a function is searched for jumps to its beginning.
const MAX_SEARCHED: u64 = 1 << 20;
/// How often to look for first executions, by the age of the newest patch that has some to come.
const LOOKS: [(Duration, Duration); 3] = [
    (Duration::from_millis(50), Duration::from_millis(1)),
    (Duration::from_secs(1), Duration::from_millis(10)),
    (Duration::from_secs(60), Duration::from_millis(100)),
];
const LAST_LOOKS: Duration = Duration::from_secs(1);

pub struct Engine {
    pub host: Host,
    pub instance: String,
    region: Range<u64>,
    next: u64,
    reserve: Option<Reserve>,
    /// In force, oldest first.
    patches: Vec<InForce>,
    /// Every body that each detoured function has had, the host's first; taken back ones too, since threads may run them.
    bodies: BTreeMap<u64, Vec<Range<u64>>>,
    /// Bodies that patches merely lead on to, by the address of the jump that does.
    far_bodies: BTreeMap<u64, Range<u64>>,
    /// Executable segments and unwind tables of all patches ever applied: they stay mapped.
    code: Vec<Range<u64>>,
    tables: Vec<Module>,
    /// Where the registered frames of all patches begin.
    frames: Vec<u64>,
    shown: Vec<Shown>,
    /// What detours pass through where it is to be told when new code runs.
    blocks: Blocks,
    /// Detours whose new code has not run yet, and would be what runs: numbers of patch and detour.
    watched: Vec<(usize, usize)>,
    looked: Instant,
    /// Whether a first execution was found that was not told.
    untold: bool,
    memory: Memory,
    parking: Parking,
}

struct InForce {
    patch: String,
    since: Instant,
    detours: Vec<Undoable>,
    idle: Vec<Idle>,
}

struct Undoable {
    site: Site,
    way: Way,
    /// What it changed at which addresses.
    overwritten: Vec<(u64, Vec<u8>)>,
    ran: Option<FirstRun>,
}

/// When a function was found to have run: the time since the patch came into force, and since the look before.
#[derive(Clone, Copy)]
struct FirstRun {
    after: Duration,
    within: Duration,
    told: bool,
}

/// New first bytes for a function.
struct Change {
    from: u64,
    writes: Vec<Write>,
    /// The bodies that are not called any more.
    old_bodies: Vec<Range<u64>>,
    /// The function's own body where it jumps to bytes that the change overwrites, else empty: no thread may stay in it.
    jumping_back: Range<u64>,
}

impl Change {
    /// Whether a thread at `at` would go on in the middle of what is written, or in what is padding again.
    fn is_entered(&self, at: u64) -> bool {
        at != self.from && self.writes.iter().any(|write| write.differs_from(at))
    }
}

/// New bytes at one place, as many as were there.
struct Write {
    addr: u64,
    code: Vec<u8>,
    overwritten: Vec<u8>,
}

impl Write {
    /// Whether something changes from `at` on, which is inside.
    fn differs_from(&self, at: u64) -> bool {
        let inside = at.checked_sub(self.addr).map(|offset| offset as usize).filter(|&offset| offset < self.code.len());
        inside.is_some_and(|offset| self.code[offset..] != self.overwritten[offset..])
    }

    fn is_there(&self) -> bool {
        self.code.iter().zip(self.addr..).all(|(&byte, addr)| unsafe { ptr::read_volatile(addr as *const u8) } == byte)
    }
}

/// What rewriting told.
struct Rewritten {
    threads: usize,
    parked: Duration,
    on_stack: Vec<OnStack>,
}

/// Why code was not rewritten this time.
enum Hindrance {
    Stuck(Stuck),
    /// The thread is, or will return, between the bytes that are to be overwritten.
    Inside(pid_t, u64),
    /// The thread is in a function that jumps to the bytes that are to be overwritten.
    JumpingBack(pid_t, u64),
    /// The thread is in a function that must be idle, by its number.
    Busy(pid_t, usize),
    /// The thread is starting another, which may have its thread-locals already.
    Starting(pid_t),
    Unwritable(io::Error),
    /// What was written to this address is not there.
    Lost(u64),
    /// The library is not loaded any more.
    Unloaded,
}

impl Engine {
    pub fn new(host: Host, instance: String, region: Range<u64>, reserve: Option<Reserve>) -> io::Result<Engine> {
        membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE);
        Ok(Engine {
            host,
            instance,
            next: region.start,
            region,
            reserve,
            patches: Vec::new(),
            bodies: BTreeMap::new(),
            far_bodies: BTreeMap::new(),
            code: Vec::new(),
            tables: Vec::new(),
            frames: Vec::new(),
            shown: Vec::new(),
            blocks: Blocks::default(),
            watched: Vec::new(),
            looked: Instant::now(),
            untold: false,
            memory: Memory::open()?,
            parking: Parking::open()?,
        })
    }

    pub fn region(&self) -> Region {
        Region {
            addr: self.region.start,
            size: self.region.end - self.region.start,
            slot_size: SLOT_SIZE,
            next: self.next,
        }
    }

    /// The address space that is kept for patches.
    pub fn reserved(&self) -> Range<u64> {
        self.region.clone()
    }

    /// Whether the host is still there, as the patches in force have made it.
    pub fn is_there(&self) -> bool {
        is_patched(&self.host, &self.patches, &self.memory)
    }

    /// Whether no patch has been applied, not even one that was taken back.
    pub fn is_untouched(&self) -> bool {
        self.next == self.region.start
    }

    /// Room for thread-locals, where it has not been used.
    pub fn take_reserve(&mut self) -> Option<Reserve> {
        if self.is_untouched() {
            self.reserve.take()
        } else {
            None
        }
    }

    pub fn give_reserve(&mut self, reserve: Reserve) {
        self.reserve = Some(reserve);
    }

    /// Gives everything back that patches of an unloaded library have.
    pub fn retire(self) {
        self.frames.iter().for_each(|&eh_frame| unsafe { frames::deregister(eh_frame) });
        self.shown.into_iter().for_each(|shown| unsafe { hide_from_gdb(shown) });
        release(&self.region);
    }

    /// The unwind tables of all patches.
    pub fn tables(&self) -> &[Module] {
        &self.tables
    }

    pub fn thread_locals(&self) -> ThreadLocals {
        self.reserve.as_ref().map(Reserve::describe).unwrap_or_default()
    }

    /// Ids of the patches in force, oldest first.
    pub fn patches(&self) -> Vec<&str> {
        self.patches.iter().map(|patch| &*patch.patch).collect()
    }

    pub fn apply(&mut self, patch: &Patch, bytes: &[u8]) -> Result<Applied, Refusal> {
        let begun = Instant::now();
        let ground = Ground {
            host: &self.host,
            region_end: self.region.end,
            next: self.next,
            code: &self.code,
            reserve: self.reserve.as_ref(),
        };
        let mut plan = check(patch, bytes, &ground)?;
        let verify = begun.elapsed();
        copy(&plan, bytes)
            .map_err(|error| Reason::Memory.because(format!("cannot map the patch: {error}")))
            .and_then(|()| first_difference(&plan, bytes).map_or(Ok(()), |addr| Err(lost(addr))))
            .and_then(|()| {
                let taken = if patch.proof { self.pass_through_entries(&mut plan) } else { None };
                let copied = begun.elapsed() - verify;
                let proof = taken.is_some();
                let rewritten = self.put_in_force(patch, &plan, taken)?;
                self.shown.extend(patch.elf.iter().filter_map(|elf| unsafe { show_to_gdb(elf) }));
                Ok(Applied { proof, ..self.answer(rewritten, verify, copied, begun) })
            })
            .map_err(|refusal| {
                plan.segments.iter().for_each(|segment| discard(&segment.pages));
                refusal
            })
    }

    /// Has the detours lead to entries, by which it can be told when the new code runs; `None` where there is no room.
    fn pass_through_entries(&self, plan: &mut Plan) -> Option<Taken> {
        let free = plan.end..self.region.end;
        let taken = self.blocks.take(plan.detours.len() as u64, &free).ok()?;
        let mut reached = plan.detours.iter().zip(&taken.entries).map(|(jump, entry)| (jump.from.start, entry.addr));
        if reached.any(|(from, entry)| detour(from, entry).is_none()) {
            taken.give_back();
            return None;
        }
        for (jump, entry) in plan.detours.iter_mut().zip(&taken.entries) {
            entry.lead_to(jump.way.to);
            jump.way.entry = Some(*entry);
        }
        plan.end = plan.end.max(taken.end().unwrap_or(0));
        Some(taken)
    }

    /// Puts a patch in force that has been copied; what was taken for it is given back if that fails.
    fn put_in_force(&mut self, patch: &Patch, plan: &Plan, taken: Option<Taken>) -> Result<Rewritten, Refusal> {
        let rewritten = match self.lead_to(patch, plan) {
            Ok(rewritten) => rewritten,
            Err(refusal) => {
                taken.into_iter().for_each(Taken::give_back);
                return Err(refusal);
            }
        };
        self.tables.extend(taken.and_then(|taken| self.blocks.keep(taken)));
        Ok(rewritten)
    }

    /// Registers the frames and writes the detours and thread-locals of a patch.
    fn lead_to(&mut self, patch: &Patch, plan: &Plan) -> Result<Rewritten, Refusal> {
        let tables = plan.tables();
        let sites = self.choose_sites(plan)?;
        let changes = plan.detours.iter().zip(&sites).map(|(jump, site)| {
            let code = site.lead_to(jump.way.first()).ok_or_else(|| {
                Reason::Address.because(format!("the detour from {:#x} is too long", jump.from.start))
            })?;
            self.change(*site, code, self.bodies_of(&jump.from), jump.way)
        });
        let mut changes = changes.collect::<Result<Vec<Change>, Refusal>>()?;
        let calls = place_calls(&sites, plan.end)
            .map_err(|error| Reason::Memory.because(format!("cannot write the calls of the patch: {error}")))?;
        let proven = self.proven(plan);
        changes.extend(proven.iter().filter_map(|&place| self.straightened(place)));
        if let Some(eh_frame) = &plan.eh_frame {
            unsafe { frames::register(eh_frame.start) };
        }
        let rewritten = self.rewrite(&changes, &patch.idle, &plan.thread_locals).map_err(|refusal| {
            if let Some(eh_frame) = &plan.eh_frame {
                unsafe { frames::deregister(eh_frame.start) };
            }
            discard(&calls);
            refusal
        })?;
        for (jump, site) in plan.detours.iter().zip(&sites) {
            let mut bodies = self.bodies_of(&jump.from);
            let to = jump.way.to;
            let far_body = self.far_bodies.get(&to).cloned();
            bodies.extend(far_body.or_else(|| self.tables.iter().chain(&tables).find_map(|t| t.function(to))));
            bodies.extend(jump.way.entry.map(|entry| entry.code()));
            bodies.extend(site.second_call.iter().flat_map(SecondCall::passage));
            self.bodies.insert(jump.from.start, bodies);
        }
        let detours = plan.detours.iter().zip(sites).zip(changes).map(|((jump, site), change)| Undoable {
            site,
            way: jump.way,
            overwritten: change.writes.into_iter().map(|write| (write.addr, write.overwritten)).collect(),
            ran: None,
        });
        let detours = detours.collect();
        self.look(); // the last time for what is replaced
        for (patch, number) in proven {
            self.patches[patch].detours[number].way.entry = None;
        }
        self.patches.push(InForce {
            patch: patch.patch.clone(),
            since: self.looked,
            detours,
            idle: patch.idle.clone(),
        });
        self.watch();
        self.code.extend_from_slice(&plan.code);
        self.tables.extend(tables);
        self.frames.extend(plan.eh_frame.iter().map(|eh_frame| eh_frame.start));
        self.next = calls.end.next_multiple_of(SLOT_SIZE);
        Ok(rewritten)
    }

    /// Detours in force that `plan` leaves alone, and that need not pass through their entries any more.
    fn proven(&self, plan: &Plan) -> Vec<(usize, usize)> {
        let mut seen: BTreeSet<u64> = plan.detours.iter().map(|jump| jump.from.start).collect();
        let newest = self.newest_detours(&mut seen);
        newest.into_iter().filter(|&place| self.detour(place).way.entry.is_some_and(|entry| entry.has_run())).collect()
    }

    /// The change of a detour to one that leads straight to where it leads.
    fn straightened(&self, place: (usize, usize)) -> Option<Change> {
        let Undoable { site, way, .. } = self.detour(place);
        self.change(*site, site.lead_to(way.to)?, Vec::new(), *way).ok()
    }

    /// Where the detours of a patch are to be. A function that has one keeps it there.
    fn choose_sites(&self, plan: &Plan) -> Result<Vec<Site>, Refusal> {
        let in_force = self.newest_detours(&mut BTreeSet::new());
        let mut sites: Vec<Site> = in_force.into_iter().map(|place| self.detour(place).site).collect();
        let mut free = plan.end..self.region.end.min(plan.end + self.host.page_size);
        let mut chosen = Vec::with_capacity(plan.detours.len());
        for jump in &plan.detours {
            let known = sites.iter().find(|site| site.from == jump.from.start).copied();
            let call_addr = (free.end - free.start >= CALL_LEN as u64).then_some(free.start);
            let site = match known {
                Some(site) => site,
                None => Site::choose(jump, &self.code_of(&jump.from), &sites, call_addr, &self.memory)?,
            };
            if known.is_none() {
                free.start += site.second_call.map_or(0, |_| CALL_LEN as u64);
                sites.push(site);
            }
            chosen.push(site);
        }
        Ok(chosen)
    }

    fn code_of(&self, function: &Range<u64>) -> Vec<u8> {
        let mut code = vec![0; (function.end - function.start).min(MAX_SEARCHED) as usize];
        let read = self.memory.read(function.start, &mut code);
        code.truncate(read);
        code
    }

    fn detour(&self, (patch, number): (usize, usize)) -> &Undoable {
        &self.patches[patch].detours[number]
    }

    /// The newest detour of each function that is not in `seen`, as numbers of patch and detour.
    fn newest_detours(&self, seen: &mut BTreeSet<u64>) -> Vec<(usize, usize)> {
        let mut newest = Vec::new();
        for (patch, in_force) in self.patches.iter().enumerate().rev() {
            let numbered = in_force.detours.iter().enumerate();
            newest.extend(
                numbered.filter(|(_, detour)| seen.insert(detour.site.from)).map(|(number, _)| (patch, number)),
            );
        }
        newest
    }

    /// Says that there is to be nothing at `jump` but a jump to the start of `body`.
    pub fn leads_on(&mut self, jump: u64, body: Range<u64>) {
        self.far_bodies.insert(jump, body);
    }

    fn bodies_of(&self, function: &Range<u64>) -> Vec<Range<u64>> {
        self.bodies.get(&function.start).cloned().unwrap_or_else(|| vec![function.clone()])
    }

    /// A change of a function, after which calls go this way.
    fn change(
        &self,
        site: Site,
        code: Vec<(u64, Vec<u8>)>,
        bodies: Vec<Range<u64>>,
        way: Way,
    ) -> Result<Change, Refusal> {
        let mut writes = Vec::with_capacity(code.len());
        for (addr, code) in code {
            let mut overwritten = vec![0; code.len()];
            if self.memory.read(addr, &mut overwritten) != code.len() {
                return Err(Reason::Memory.because(format!("cannot read the code at {addr:#x}")));
            }
            if code != overwritten {
                writes.push(Write { addr, code, overwritten });
            }
        }
        let from = site.from;
        let own = bodies.iter().find(|body| body.start == from).cloned().unwrap_or_default();
        let at_start = writes.iter().find(|write| write.addr == from && site.second_call.is_none());
        let comes_back = at_start.is_some_and(|write| {
            let len = write.code.len();
            let entered = entered_under_detour(&self.code_of(&own), len);
            entered & ((1 << len) - 1) != 0 && write.differs_from(from + 1)
        });
        let jumping_back = if comes_back { own } else { 0..0 };
        let to = self.far_bodies.get(&way.to).map_or(way.to, |body| body.start);
        let old_bodies = bodies.into_iter().filter(|body| ![to, way.first()].contains(&body.start)).collect();
        Ok(Change { from, writes, old_bodies, jumping_back })
    }

    /// Takes back all patches after `to`, or all.
    pub fn undo(&mut self, to: Option<&str>) -> Result<Applied, Refusal> {
        let begun = Instant::now();
        let kept = match to {
            None => 0,
            Some(id) => {
                let found = self.patches.iter().rposition(|patch| patch.patch == id);
                1 + found.ok_or_else(|| Reason::UnknownPatch.because(format!("no patch {id} is in force")))?
            }
        };
        let mut restored = BTreeMap::new();
        for detour in self.patches[kept..].iter().rev().flat_map(|patch| &patch.detours) {
            // The oldest comes last and counts.
            restored.insert(detour.site.from, (detour.site, detour.overwritten.clone()));
        }
        let changes = restored.into_iter().map(|(from, (site, code))| {
            let mut in_force = self.patches[..kept].iter().rev().flat_map(|patch| &patch.detours);
            let way = in_force.find(|detour| detour.site.from == from).map_or(Way::straight(from), |detour| detour.way);
            self.change(site, code, self.bodies.get(&from).cloned().unwrap_or_default(), way)
        });
        let changes = changes.collect::<Result<Vec<Change>, Refusal>>()?;
        let verify = begun.elapsed();
        let idle: Vec<Idle> = self.patches[kept..].iter().flat_map(|patch| patch.idle.iter().cloned()).collect();
        let rewritten = self.rewrite(&changes, &idle, &[])?;
        self.patches.truncate(kept);
        self.watch();
        Ok(self.answer(rewritten, verify, Duration::ZERO, begun))
    }

    fn answer(&self, rewritten: Rewritten, verify: Duration, copy: Duration, begun: Instant) -> Applied {
        let us = |duration: Duration| duration.as_micros() as u64;
        Applied {
            next: self.next,
            threads: rewritten.threads,
            timings_us: Timings {
                verify: us(verify),
                copy: us(copy),
                park: us(rewritten.parked),
                total: us(begun.elapsed()),
            },
            on_stack: rewritten.on_stack,
            proof: false,
        }
    }

    /// What has run for the first time, and was not told yet: a message for each patch and each look that found something.
    pub fn take_ran(&mut self) -> Vec<Ran> {
        self.look();
        if !mem::take(&mut self.untold) {
            return Vec::new();
        }
        let us = |duration: Duration| duration.as_micros() as u64;
        let mut told = Vec::new();
        for patch in &mut self.patches {
            let mut found: BTreeMap<Duration, Ran> = BTreeMap::new();
            for detour in &mut patch.detours {
                let Some(ran) = detour.ran.as_mut().filter(|ran| !ran.told) else { continue };
                ran.told = true;
                let (patch, after_us, within_us) = (patch.patch.clone(), us(ran.after), us(ran.within));
                let first = found.entry(ran.after).or_insert(Ran { patch, from: Vec::new(), after_us, within_us });
                first.from.push(detour.site.from);
            }
            told.extend(found.into_values());
        }
        told
    }

    /// How soon to look again; `None` where all has run.
    pub fn next_look(&self) -> Option<Duration> {
        let newest = self.watched.iter().map(|&(patch, _)| self.patches[patch].since).max()?;
        let pace = LOOKS.iter().find(|(age, _)| newest.elapsed() < *age);
        Some(pace.map_or(LAST_LOOKS, |&(_, pause)| pause))
    }

    /// Has everything told again that has run.
    pub fn tell_again(&mut self) {
        let ran = self.patches.iter_mut().flat_map(|patch| &mut patch.detours).filter_map(|detour| detour.ran.as_mut());
        ran.for_each(|ran| ran.told = false);
        self.untold = true;
    }

    fn look(&mut self) {
        let now = Instant::now();
        let Engine { patches, watched, looked, untold, .. } = self;
        watched.retain(|&(patch, number)| {
            let since = patches[patch].since;
            let detour = &mut patches[patch].detours[number];
            if detour.way.entry.is_some_and(|entry| entry.has_run()) {
                detour.ran = Some(FirstRun { after: now - since, within: now - *looked, told: false });
                *untold = true;
            }
            detour.ran.is_none()
        });
        *looked = now;
    }

    /// Turns to what the patches in force lead to: a function is watched where its newest code has not run.
    fn watch(&mut self) {
        let is_open = |&place: &(usize, usize)| {
            let detour = self.detour(place);
            detour.way.entry.is_some() && detour.ran.is_none()
        };
        self.watched = self.newest_detours(&mut BTreeSet::new()).into_iter().filter(is_open).collect();
    }

    /// Writes all changes while no other thread runs; tries again while one is in the way.
    fn rewrite(&mut self, changes: &[Change], idle: &[Idle], locals: &[Initial]) -> Result<Rewritten, Refusal> {
        let idle_bodies: Vec<_> =
            idle.iter().map(|one| self.bodies_of(&(one.from..one.from.saturating_add(one.size)))).collect();
        let unlocked = match &self.reserve {
            Some(reserve) if !locals.is_empty() => Some(reserve.unlock(locals).map_err(|error| {
                Reason::Memory.because(format!("cannot write the initial image of thread-locals: {error}"))
            })?),
            _ => None,
        };
        if changes.is_empty() && unlocked.is_none() {
            return Ok(Rewritten { threads: 0, parked: Duration::ZERO, on_stack: Vec::new() });
        }
        let mut hindrance = None;
        let (mut attempt, mut while_starting) = (0, 0);
        while attempt < ATTEMPTS && while_starting < ATTEMPTS_WHILE_STARTING {
            wait_left();
            let mut result = None;
            let Engine { host, memory, parking, tables, patches, .. } = self;
            with_modules(|mut modules| {
                if !is_patched(host, patches, memory) {
                    result = Some(Err(Hindrance::Unloaded));
                    return;
                }
                modules.extend_from_slice(tables);
                let walker = Walker::new(modules, memory);
                let limit = FIRST_LIMIT * (1 << attempt.min(3));
                result = Some(rewrite_once(changes, &idle_bodies, unlocked.as_ref(), memory, parking, walker, limit));
            });
            match result.unwrap_or_else(|| Err(Hindrance::Unwritable(io::ErrorKind::Other.into()))) {
                Ok(rewritten) => return Ok(rewritten),
                Err(Hindrance::Stuck(Stuck::Crowded)) => self.parking.make_room(),
                Err(Hindrance::Stuck(Stuck::Thread(tid)))
                    if is_dead(tid) || self.memory.is_emulated() && belongs_to_emulator(tid) =>
                {
                    self.parking.ignore(tid);
                }
                Err(Hindrance::Starting(tid)) => {
                    hindrance = Some(Hindrance::Starting(tid));
                    while_starting += 1;
                    // Of changing length, so as not to keep step with a program that starts threads all the time.
                    thread::sleep(Duration::from_micros(100 + u64::from(while_starting % 11) * 170));
                    continue;
                }
                Err(other) => {
                    // libc blocks every signal now and then, for a moment.
                    let in_vain = |tid| attempt >= 2 && blocks_signal(tid);
                    let stop = match other {
                        Hindrance::Stuck(Stuck::Thread(tid)) => in_vain(tid),
                        Hindrance::Unloaded => true,
                        _ => false,
                    };
                    hindrance = Some(other);
                    if stop {
                        break;
                    }
                    thread::sleep(Duration::from_millis(1 << attempt));
                }
            }
            attempt += 1;
        }
        Err(match hindrance {
            Some(Hindrance::Stuck(Stuck::Thread(tid))) if blocks_signal(tid) => {
                let (name, signal) = (thread_name(tid), signal());
                Reason::Park
                    .because(format!("thread {name} blocks signal {signal}: choose another with HOTPATCHD_SIGNAL"))
            }
            Some(Hindrance::Stuck(Stuck::Thread(tid))) => {
                Reason::Park.because(format!("thread {} did not stop: {}", thread_name(tid), standing(tid)))
            }
            Some(Hindrance::Stuck(Stuck::System(error))) => {
                Reason::Park.because(format!("cannot stop the threads: {error}"))
            }
            Some(Hindrance::Inside(tid, from)) => {
                let name = thread_name(tid);
                let detail = format!("thread {name} stays in the first bytes of the function at {from:#x}");
                Refusal { from: Some(from), ..Reason::Park.because(detail) }
            }
            Some(Hindrance::JumpingBack(tid, from)) => {
                let name = thread_name(tid);
                let detail = format!("thread {name} stays in it, and it jumps back to its first bytes; restart");
                Refusal { from: Some(from), ..Reason::Park.because(detail) }
            }
            Some(Hindrance::Busy(tid, number)) => Refusal {
                symbol: Some(idle[number].symbol.clone()),
                ..Reason::Layout.because(format!("{} (thread {})", idle[number].detail, thread_name(tid)))
            },
            Some(Hindrance::Starting(tid)) => {
                Reason::Park.because(format!("thread {} stays in starting another", thread_name(tid)))
            }
            Some(Hindrance::Lost(from)) => lost(from),
            Some(Hindrance::Unloaded) => Reason::Memory.because("the library was unloaded"),
            Some(Hindrance::Unwritable(error)) => Reason::Memory.because(format!("cannot write code: {error}")),
            Some(Hindrance::Stuck(Stuck::Crowded)) | None => Reason::Park.because("threads keep being started"),
        })
    }
}

/// Whether a host is loaded, and not again: then it would have its own code, where the newest patch wrote a jump.
fn is_patched(host: &Host, patches: &[InForce], memory: &Memory) -> bool {
    let is_written = |jump: &Undoable| {
        let expected = jump.site.lead_to(jump.way.first()).unwrap_or_default();
        expected.iter().all(|(addr, code)| {
            let mut found = [0; DETOUR_LEN];
            let found = &mut found[..code.len()];
            memory.read(*addr, found) == code.len() && found == code
        })
    };
    host.library().is_none()
        || host.is_loaded() && patches.iter().rev().find_map(|patch| patch.detours.first()).map_or(true, is_written)
}

/// One attempt of [`Engine::rewrite`].
fn rewrite_once(
    changes: &[Change],
    idle: &[Vec<Range<u64>>],
    locals: Option<&Unlocked>,
    memory: &Memory,
    parking: &mut Parking,
    mut walker: Walker,
    limit: Duration,
) -> Result<Rewritten, Hindrance> {
    let mut tids: Vec<pid_t> = Vec::with_capacity(parking.capacity());
    let mut running: Vec<(usize, pid_t)> = Vec::with_capacity(parking.capacity() * changes.len());
    let thread_start = locals.map_or(0..0, |locals| {
        let start = locals.thread_start();
        walker.function(start).unwrap_or(start..start + THREAD_START_SIZE)
    });

    // From here until the threads are released: no allocation, no lock, no panic.
    let parked = parking.park(limit).map_err(Hindrance::Stuck)?;
    for (tid, thread_pointer, registers) in parked.threads() {
        let seen = running.len();
        let mut inside = None;
        let mut jumping_back = None;
        let mut busy = None;
        let mut starting = false;
        walker.walk(registers, thread_pointer, |at, returns| {
            let within = at.wrapping_sub(u64::from(returns));
            starting |= thread_start.contains(&within);
            busy = busy.or_else(|| idle.iter().position(|bodies| bodies.iter().any(|body| body.contains(&within))));
            for (number, change) in changes.iter().enumerate() {
                if change.is_entered(at) {
                    inside = Some(change.from);
                }
                // A thread at the first byte of what is rewritten has yet to run it.
                if within != change.from && change.jumping_back.contains(&within) {
                    jumping_back = Some(change.from);
                }
                let runs = within != change.from && change.old_bodies.iter().any(|body| body.contains(&within));
                if runs && !running.iter().skip(seen).any(|&(other, _)| other == number) {
                    running.push((number, tid));
                }
            }
        });
        if let Some(from) = inside {
            return Err(Hindrance::Inside(tid, from));
        }
        if let Some(from) = jumping_back {
            return Err(Hindrance::JumpingBack(tid, from));
        }
        if let Some(number) = busy {
            return Err(Hindrance::Busy(tid, number));
        }
        if starting {
            return Err(Hindrance::Starting(tid));
        }
        tids.push(tid);
    }
    let writes = || changes.iter().flat_map(|change| &change.writes);
    let take_back = |count| {
        for write in writes().take(count) {
            let _ = memory.write_code(write.addr, &write.overwritten);
        }
    };
    for (done, write) in writes().enumerate() {
        if let Err(error) = memory.write_code(write.addr, &write.code) {
            take_back(done + 1);
            return Err(Hindrance::Unwritable(error));
        }
    }
    if let Some(lost) = writes().find(|write| !write.is_there()) {
        take_back(usize::MAX);
        return Err(Hindrance::Lost(lost.addr));
    }
    if let Some(locals) = locals {
        unsafe { locals.write(parked.thread_pointers()) };
    }
    // Other cores may have fetched the old instructions. A parked thread comes back by sigreturn, whose iret makes its core
    // fetch anew on x86-64; this command asks for it by name, on every processor that Linux has it for.
    membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE);
    let parked = parked.release();

    let on_stack = changes.iter().enumerate().filter_map(|(number, change)| {
        let threads = running.iter().filter(|(other, _)| *other == number).map(|&(_, tid)| thread_name(tid));
        let threads: Vec<String> = threads.collect();
        (!threads.is_empty()).then_some(OnStack { from: change.from, threads })
    });
    Ok(Rewritten { threads: tids.len(), on_stack: on_stack.collect(), parked })
}

impl Plan {
    fn tables(&self) -> Vec<Module> {
        let Some(eh_frame) = &self.eh_frame else { return Vec::new() };
        let size = (eh_frame.end - eh_frame.start) as usize;
        let bytes = unsafe { slice::from_raw_parts(eh_frame.start as *const u8, size) };
        self.code.iter().map(|code| Module::of_patch(code.clone(), eh_frame.start, bytes)).collect()
    }
}

/// Puts the segments in place, imports included, with their final protection.
fn copy(plan: &Plan, bytes: &[u8]) -> io::Result<()> {
    for segment in &plan.segments {
        protect(&segment.pages, libc::PROT_READ | libc::PROT_WRITE)?;
        let content = &bytes[segment.content.clone()];
        unsafe { ptr::copy_nonoverlapping(content.as_ptr(), segment.addr as *mut u8, content.len()) };
    }
    for &(slot, value) in &plan.slots {
        unsafe { ptr::write_unaligned(slot as *mut u64, value) };
    }
    for segment in &plan.segments {
        protect(
            &segment.pages,
            match segment.prot {
                Protection::R => libc::PROT_READ,
                Protection::Rw => libc::PROT_READ | libc::PROT_WRITE,
                Protection::Rx => libc::PROT_READ | libc::PROT_EXEC,
            },
        )?;
        if segment.prot == Protection::Rx {
            synchronize_code(&segment.pages);
        }
    }
    Ok(())
}

/// Puts the calls in place that sites need from `start` on, a page of its own; the pages that they take.
fn place_calls(sites: &[Site], start: u64) -> io::Result<Range<u64>> {
    let calls = sites.iter().filter_map(|site| site.second_call.as_ref()).filter(|call| call.addr >= start);
    let code: Vec<u8> = calls.flat_map(|call| call.code()).collect();
    let range = pages(&(start..start + code.len() as u64));
    if code.is_empty() {
        return Ok(range);
    }
    protect(&range, libc::PROT_READ | libc::PROT_WRITE)?;
    unsafe { ptr::copy_nonoverlapping(code.as_ptr(), start as *mut u8, code.len()) };
    protect(&range, libc::PROT_READ | libc::PROT_EXEC)?;
    synchronize_code(&range);
    match code == unsafe { slice::from_raw_parts(start as *const u8, code.len()) } {
        true => Ok(range),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Where memory, as the processor sees it, does not have what [`copy`] was to put there.
fn first_difference(plan: &Plan, bytes: &[u8]) -> Option<u64> {
    plan.segments.iter().find_map(|segment| {
        let mut expected = Cow::Borrowed(&bytes[segment.content.clone()]);
        for &(slot, value) in plan.slots.iter().filter(|(slot, _)| segment.pages.contains(slot)) {
            let at = (slot - segment.addr) as usize;
            let expected = expected.to_mut();
            expected.resize(expected.len().max(at + 8), 0);
            expected[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        }
        let found = unsafe { slice::from_raw_parts(segment.addr as *const u8, expected.len()) };
        if *found == *expected {
            return None;
        }
        let at = found.iter().zip(&*expected).position(|(found, expected)| found != expected)?;
        Some(segment.addr + at as u64)
    })
}

fn lost(addr: u64) -> Refusal {
    Reason::Memory.because(format!("what was written to {addr:#x} is not what is there afterwards"))
}

fn membarrier(command: libc::c_int) {
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
}

fn thread_name(tid: pid_t) -> String {
    if tid as u32 == process::id() {
        return "main".to_owned(); // the kernel has the program's name for it
    }
    match fs::read(format!("/proc/self/task/{tid}/comm")) {
        Ok(name) => String::from_utf8_lossy(&name).trim_end().to_owned(),
        Err(_) => format!("{tid} (ended)"),
    }
}

fn status_field(tid: pid_t, field: &str) -> Option<String> {
    let status = fs::read(format!("/proc/self/task/{tid}/status")).ok()?;
    let status = String::from_utf8_lossy(&status);
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// Whether the thread has ended but is still listed, as a main thread that called `pthread_exit` is.
fn is_dead(tid: pid_t) -> bool {
    status_field(tid, "State").map_or(true, |state| state.starts_with(['Z', 'X']))
}

/// Why a thread takes no signal. Source: proc_pid_status(5), `State`.
fn standing(tid: pid_t) -> &'static str {
    match status_field(tid, "State").and_then(|state| state.chars().next()) {
        Some('D') => "it waits in the kernel, out of reach of signals; save again when it is done",
        Some('T' | 't') => "a debugger holds it; let it go on and save again",
        Some('R') => "it got no turn on a processor; save again",
        _ => "save again",
    }
}

fn blocks_signal(tid: pid_t) -> bool {
    blocked_signals(tid) >> (signal() - 1) & 1 == 1
}

/// Whether the thread blocks every signal that can stand for one of the program's own. Source: qemu, `linux-user/signal.c`
/// (`signal_table_init`) and `util/qemu-thread-posix.c`: no thread of the program does, by means of libc.
fn belongs_to_emulator(tid: pid_t) -> bool {
    let real_time = !0 << (libc::SIGRTMIN() - 1);
    blocked_signals(tid) & real_time == real_time
}

fn blocked_signals(tid: pid_t) -> u64 {
    status_field(tid, "SigBlk").and_then(|mask| u64::from_str_radix(&mask, 16).ok()).unwrap_or(0)
}
