//! New entries, and making room for them in a full table.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use super::call_ids::{CallId, TemplateKey};
use super::entry::{Connection, EntryRef};
use super::index::{Hash, Reference, Refused};
use super::layout::{
    ADDRESSES, CONTROL, Control, Direction, Kind, OWN, PORTS, RUNTIME, TAIL_CALL_ID, TAIL_CONTROLLED, TAIL_DESTINATION,
    TAIL_MARK, TAIL_OWN, TAIL_PASSIVE, TAIL_SHIFT, TEMPLATE, own_word, ports_word, runtime_word,
};
use super::table::{self, ConnectionTable, WorkerId};
use super::{State, Tick};
use crate::packet::{Family, FlowKey};
use crate::prefetch;
use crate::service::{DestinationKey, Method};

/// Up to this capacity the oldest entry of all that gives way is replaced; above, the oldest of a sample.
const SMALL: u32 = 2048;
/// Chunks with entries that give way, that a sample reads, and entries that go at once.
const SAMPLE_CHUNKS: u32 = 8;
const EVICT_MAX: usize = 16;
/// Chunks that a search passes once it has found something.
const SEARCH_CHUNKS: u32 = 1024;
/// Retired entries that an insertion into a full table brings back to use at most.
const RECLAIM_MAX: usize = 64;

/// A connection to insert.
#[derive(Clone, Copy, Debug)]
pub struct NewConnection<'t> {
    /// Client to VIP.
    pub flow: FlowKey,
    /// Address and port of its destination.
    pub destination: DestinationKey,
    /// Slot of its destination in the workers' table.
    pub destination_id: u32,
    /// Forwarding method. With `Masq` the connection is found by its replies too.
    pub method: Method,
    /// State after the packet at hand: [`State::first`].
    pub state: State,
    /// Ticks until it expires: [`super::TimeoutTable::ticks`].
    pub timeout_ticks: u32,
    /// Hop by which the client's packet came.
    pub client_hop: u16,
    /// Firewall mark of its service; 0 = its service has an address.
    pub fwmark: u32,
    /// Template, or connection helped, that controls it: that one lives as long as this one.
    pub controller: Option<EntryRef<'t>>,
    /// Its payload is looked at ([`EntryRef::is_helped`]). Only TCP by `Masq`.
    pub helped: bool,
}

/// A persistence template to insert.
#[derive(Clone, Copy, Debug)]
pub struct NewTemplate {
    /// As for [`ConnectionTable::lookup_template`].
    pub key: TemplateKey,
    /// Address and port of its destination; port 0 when the service has port 0 or a mark.
    pub destination: DestinationKey,
    /// Slot of its destination in the workers' table.
    pub destination_id: u32,
    /// Forwarding method of the destination.
    pub method: Method,
    /// Ticks until it expires; and from each new connection on.
    pub timeout_ticks: u32,
    /// Firewall mark of its service; 0 = its service has an address.
    pub fwmark: u32,
}

/// Ports of service and destination in a template that wins no more (as the kernel lists them).
pub const INVALID_TEMPLATE_PORT: u16 = 65_535;

/// Why an entry was not inserted.
#[derive(Debug, PartialEq)]
pub enum InsertError<'t> {
    /// Another worker was faster: this is the connection.
    Exists(EntryRef<'t>),
    /// No slot, and no entry that gives way.
    Full,
}

/// A NAT connection that is in the table, and not found by its replies yet.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct ReplyLink {
    slot: u32,
    hash: Hash,
}

impl ReplyLink {
    /// Of what its replies are found by.
    pub fn hash(&self) -> Hash {
        self.hash
    }
}

/// What connection and template have in common.
struct Draft<'a> {
    kind: Kind,
    flow: &'a FlowKey,
    call_id: Option<CallId>,
    /// Where the caller has it: to read again at once what was written in parts makes a processor wait.
    destination: &'a DestinationKey,
    method: Method,
    state: State,
    deadline: Tick,
    runtime: u64,
    own: u64,
    template: u64,
    helped: bool,
}

impl Draft<'_> {
    /// As [`reply_key`], before there is an entry.
    fn reply_key(&self) -> Option<FlowKey> {
        if self.method != Method::Masq || self.kind != Kind::Connection {
            return None;
        }
        let ports = (self.destination.port as u32) << 16 | self.flow.source_port() as u32;
        let client = self.flow.addresses;
        match (self.flow.family, self.destination.address) {
            (Family::V4, IpAddr::V4(v4)) => {
                let client = (client[0] >> 32) as u32;
                Some(FlowKey::v4(self.flow.protocol, v4.to_bits(), client, ports))
            }
            (Family::V6, IpAddr::V6(v6)) => {
                let client = (client[0] as u128) << 64 | client[1] as u128;
                Some(FlowKey::v6(self.flow.protocol, v6.to_bits(), client, ports))
            }
            _ => None,
        }
    }
}

impl ConnectionTable {
    /// Inserts a connection; `hash` is that of its flow. When the table is full, connections half-open or over are replaced,
    /// oldest first: `evicted` gets each, to take it off its destination's numbers.
    ///
    /// Count the connection on its destination before this call (and off again if it fails): another worker may
    /// change its state as soon as it is in the table.
    pub fn insert<'t>(
        &'t self,
        worker: WorkerId,
        hash: Hash,
        new: &NewConnection<'t>,
        now: Tick,
        evicted: &mut dyn FnMut(&Connection),
    ) -> Result<EntryRef<'t>, InsertError<'t>> {
        let (entry, link) = self.insert_one_way(worker, hash, new, now, evicted)?;
        match link.and_then(|link| self.link_replies(link)) {
            // The caller counts it off.
            Some(_gone) => Err(InsertError::Full),
            None => Ok(entry),
        }
    }

    /// The same, but a NAT connection's second key is left for [`link_replies`](ConnectionTable::link_replies), in the same batch:
    /// until then the memory that it needs can come.
    #[inline(always)]
    pub fn insert_one_way<'t>(
        &'t self,
        worker: WorkerId,
        hash: Hash,
        new: &NewConnection<'t>,
        now: Tick,
        evicted: &mut dyn FnMut(&Connection),
    ) -> Result<(EntryRef<'t>, Option<ReplyLink>), InsertError<'t>> {
        let draft = Draft {
            kind: Kind::Connection,
            flow: &new.flow,
            call_id: None,
            destination: &new.destination,
            method: new.method,
            state: new.state,
            deadline: now.after(new.timeout_ticks),
            runtime: runtime_word(new.destination_id, new.client_hop),
            own: own_word(0, new.fwmark),
            template: new.controller.map_or(0, |controller| controller.control_word()),
            helped: new.helped,
        };
        if let Some(controller) = new.controller {
            controller.control_one_more();
        }
        match self.add(worker.0 as usize, hash, &draft, now, evicted) {
            Ok((slot, entry, reply)) => Ok((entry, reply.map(|hash| ReplyLink { slot, hash }))),
            Err(error) => {
                if draft.template != 0 {
                    self.control_one_less(draft.template);
                }
                Err(error)
            }
        }
    }

    /// Inserts a template.
    pub fn insert_template<'t>(
        &'t self,
        worker: WorkerId,
        new: &NewTemplate,
        now: Tick,
        evicted: &mut dyn FnMut(&Connection),
    ) -> Result<EntryRef<'t>, InsertError<'t>> {
        let draft = Draft {
            kind: Kind::Template,
            flow: &new.key.flow,
            call_id: new.key.call_id,
            destination: &new.destination,
            method: new.method,
            state: State::None,
            deadline: now.after(new.timeout_ticks),
            runtime: runtime_word(new.destination_id, 0),
            own: own_word(new.timeout_ticks, new.fwmark),
            template: self.next_generation(),
            helped: false,
        };
        let hash = self.hash_as(Kind::Template, &new.key.flow, new.key.call_id);
        let (_, entry, _) = self.add(worker.0 as usize, hash, &draft, now, evicted)?;
        Ok(entry)
    }

    /// Returns its slot, the entry there, and the hash of what its replies are found by.
    #[inline(always)]
    fn add<'t>(
        &'t self,
        worker: usize,
        hash: Hash,
        draft: &Draft<'_>,
        now: Tick,
        evicted: &mut dyn FnMut(&Connection),
    ) -> Result<(u32, EntryRef<'t>, Option<Hash>), InsertError<'t>> {
        let reply = draft.reply_key().map(|key| self.hash(&key));
        if let Some(hash) = reply {
            self.index.prefetch_for_insertion(hash);
        }
        let control = control_of(draft);
        let wide = control.is_wide();
        let number = match self.slots.allocate(worker, wide) {
            Some(number) => number,
            None => self.make_room(worker, wide, now, evicted).ok_or(InsertError::Full)?,
        };
        // The next insertion's, most likely.
        prefetch::to_write(self.slots(), number as usize + 1);
        let entry = self.entry(number).ok_or(InsertError::Full)?;
        self.write(entry, wide, draft);
        let find = || {
            // Copied here, where few come: what is pointed to would have to be in memory for all.
            let (kind, flow, call_id) = (draft.kind, *draft.flow, draft.call_id);
            self.index.find(hash, |r| self.is_same(r, kind, &flow, call_id))
        };
        let mut published = false;
        let publish = || {
            published = true;
            // Release, and last of all words: an entry with a valid mark is whole, here and in the file.
            entry.slot.words[CONTROL].store(control.0, Ordering::Release);
        };
        let reference = Reference::new(number, Direction::Forward);
        let linked = self.index.insert_unique(hash, reference, find, publish);
        if !published {
            self.slots.put_back(worker, number, wide);
        }
        match linked {
            Ok(()) => {}
            Err(Refused::Exists(there)) => {
                let there = self.entry(there.slot()).ok_or(InsertError::Full)?;
                return Err(InsertError::Exists(there));
            }
            Err(Refused::NoRoom) if published => return Err(self.take_back(worker, draft.kind, entry)),
            Err(Refused::NoRoom) => return Err(InsertError::Full),
        }
        self.slots.count_inserted(worker);
        self.chunk_of(number).begins(draft.state, draft.deadline);
        self.count_expected(draft.kind, entry, 1);
        Ok((number, entry, reply))
    }

    /// Makes the connection findable by its replies. `Some`: there is no room in the index, and the connection has ended; it is to
    /// be taken off its destination's numbers.
    #[inline(never)]
    pub fn link_replies(&self, link: ReplyLink) -> Option<Connection> {
        let ReplyLink { slot, hash } = link;
        let entry = self.entry(slot)?;
        if !self.link_reply(entry, hash) {
            return self.retire(entry, |_| true);
        }
        if !entry.is_live() {
            // Another worker made room in between, and may have looked for this reference in vain. Where a lock's holder does
            // not run it stays, and finds nobody.
            let _removed = self
                .index
                .remove(hash, Reference::new(entry.number(), Direction::Reply));
        }
        None
    }

    /// A generation that no template and no helped connection had, in its place in their words.
    pub(super) fn next_generation(&self) -> u64 {
        (self.generation.fetch_add(1, Ordering::Relaxed).wrapping_add(1) as u64) << 32
    }

    /// Makes a NAT connection findable by its replies. `false`: no room in the index.
    pub(super) fn link_reply(&self, entry: EntryRef<'_>, hash: Hash) -> bool {
        let reference = Reference::new(entry.number(), Direction::Reply);
        let is_same = |r: Reference| {
            // Its words stay as they are at least until the end of the batch, also when it is retired.
            let key = reply_key(entry, entry.control());
            key.is_some_and(|key| r.direction() == Direction::Reply && self.is_same(r, Kind::Connection, &key, None))
        };
        self.index.insert_newest(hash, reference, is_same).is_ok()
    }

    /// The entry is in the table by half: retires it as one that others may hold.
    #[cold]
    fn take_back(&self, worker: usize, kind: Kind, entry: EntryRef<'_>) -> InsertError<'static> {
        self.slots.count_inserted(worker);
        self.count_expected(kind, entry, 1);
        self.chunk_of(entry.number())
            .count_giving_way(State::None, entry.state());
        // Whoever retires it first does all there is to do; its template is given back by the caller.
        entry.slot.words[TEMPLATE].store(0, Ordering::Relaxed);
        let _retired_here_or_elsewhere = self.retire(entry, |_| true);
        InsertError::Full
    }

    /// Everything but the control word.
    #[inline(always)]
    fn write(&self, entry: EntryRef<'_>, wide: bool, draft: &Draft<'_>) {
        let set = |n: usize, value: u64| entry.slot.words[n].store(value, Ordering::Relaxed);
        let flow = draft.flow;
        set(RUNTIME, draft.runtime);
        set(
            PORTS,
            ports_word(flow.source_port(), flow.destination_port(), draft.destination.port),
        );
        set(TEMPLATE, draft.template);
        let destination = match draft.destination.address {
            IpAddr::V4(v4) => v4.to_bits() as u128,
            IpAddr::V6(v6) => v6.to_bits(),
        };
        if flow.family == Family::V4 && draft.destination.address.is_ipv4() {
            set(ADDRESSES, flow.addresses[0]);
            set(ADDRESSES + 1, (destination as u64) << 32 | flow.addresses[0] >> 32);
        } else {
            for (n, address) in flow.addresses.iter().enumerate() {
                set(ADDRESSES + n, *address);
            }
        }
        let Some(tail) = self.slots().get(entry.number() as usize + 1).filter(|_| wide) else {
            set(OWN, draft.own);
            return;
        };
        let set = |n: usize, value: u64| tail.words[n].store(value, Ordering::Relaxed);
        set(CONTROL, TAIL_MARK);
        set(TAIL_DESTINATION, (destination >> 64) as u64);
        set(TAIL_DESTINATION + 1, destination as u64);
        set(TAIL_OWN, draft.own);
        if draft.helped {
            set(TAIL_SHIFT, 0);
            set(TAIL_PASSIVE, 0);
            set(TAIL_CONTROLLED, self.next_generation());
        }
        if let Some(call_id) = draft.call_id {
            set(TAIL_CALL_ID, call_id.word());
        }
    }

    /// A slot in a table without any: from the retired ones, or in place of entries that give way.
    #[cold]
    fn make_room(&self, worker: usize, wide: bool, now: Tick, evicted: &mut dyn FnMut(&Connection)) -> Option<u32> {
        if self.slots.is_full(wide) && !self.evict(wide, now, evicted) {
            return None;
        }
        if self.slots.has_limbo() {
            self.reclaim(RECLAIM_MAX);
        }
        self.slots.allocate(worker, wide)
    }

    /// Retires the oldest entries that are half-open or over: established ones never. `false`: there is none.
    fn evict(&self, wide: bool, now: Tick, evicted: &mut dyn FnMut(&Connection)) -> bool {
        if self.barren.load(Ordering::Relaxed) == now.0 {
            return false;
        }
        let small = self.capacity() <= SMALL;
        let most = if small { 1 + wide as usize } else { EVICT_MAX };
        let mut oldest = [(Tick(u32::MAX), u32::MAX); EVICT_MAX];
        let oldest = &mut oldest[..most];
        if !self.sample_giving_way(small, oldest) {
            self.barren.store(now.0, Ordering::Relaxed);
            return false;
        }
        let mut any = false;
        for (_, number) in oldest.iter().filter(|(_, number)| *number != u32::MAX) {
            let Some(entry) = self.entry(*number) else { continue };
            if let Some(connection) = self.retire(entry, |control| control.state().gives_way()) {
                evicted(&connection);
                any = true;
            }
        }
        any
    }

    /// Fills `oldest` with the entries of nearest deadline that give way, sorted, from a sample of chunks (all of them, if
    /// `small`). `false`: no chunk of the table has any.
    fn sample_giving_way(&self, small: bool, oldest: &mut [(Tick, u32)]) -> bool {
        let chunks = self.slots.chunks();
        let mut chunk = self.evict_cursor.load(Ordering::Relaxed) % chunks;
        let (mut passed, mut sampled) = (0, 0);
        while passed < chunks && (small || sampled < SAMPLE_CHUNKS && (sampled == 0 || passed < SEARCH_CHUNKS)) {
            let known = self.chunks.get(chunk);
            if known.giving_way() != 0 {
                sampled += 1;
                self.live_in(chunk, |entry| {
                    let control = entry.control();
                    if control.kind() == Some(Kind::Connection) && control.state().gives_way() {
                        keep_oldest(oldest, (control.deadline(), entry.number()));
                    }
                });
            }
            passed += 1;
            chunk = (chunk + 1) % chunks;
        }
        self.evict_cursor.store(chunk, Ordering::Relaxed);
        sampled != 0
    }

    #[inline]
    fn is_it(&self, reference: Reference, key_bits: u64, key: &FlowKey) -> bool {
        table::is_it(self.slots(), reference, key_bits, key)
    }

    /// The entry at this reference is live, of this kind, and has this key.
    #[inline]
    pub(super) fn is_same(&self, reference: Reference, kind: Kind, flow: &FlowKey, call_id: Option<CallId>) -> bool {
        match kind {
            Kind::Connection => self.is_it(reference, Control::key_bits(kind, flow), flow),
            Kind::Template => table::is_template(self.slots(), reference, &TemplateKey { flow: *flow, call_id }),
        }
    }
}

/// Inserts into a sorted list of fixed length.
fn keep_oldest(oldest: &mut [(Tick, u32)], candidate: (Tick, u32)) {
    let Some(last) = oldest.last() else { return };
    if candidate.0 >= last.0 {
        return;
    }
    let at = oldest.partition_point(|o| o.0 <= candidate.0);
    let end = oldest.len() - 1;
    oldest.copy_within(at..end, at + 1);
    oldest[at] = candidate;
}

fn control_of(draft: &Draft<'_>) -> Control {
    let control = Control::new(
        draft.kind,
        draft.flow.family,
        Family::of(draft.destination.address),
        draft.flow.protocol,
        draft.method,
        draft.state,
        draft.deadline,
    );
    let control = if draft.helped { control.helped() } else { control };
    match draft.call_id {
        Some(_) => control.with_call_id(),
        None => control,
    }
}

/// Destination to client, of a NAT connection; `None` for all others.
pub(super) fn reply_key(entry: EntryRef<'_>, control: Control) -> Option<FlowKey> {
    if control.method() != Method::Masq
        || control.kind_before() != Some(Kind::Connection)
        || control.client_family() != control.destination_family()
    {
        return None;
    }
    let ports = (entry.destination_port() as u32) << 16 | entry.client_port() as u32;
    let protocol = control.protocol();
    Some(match control.client_family() {
        Family::V4 => FlowKey::v4(protocol, entry.destination_v4(), entry.client_v4(), ports),
        Family::V6 => FlowKey::v6(protocol, entry.destination_v6(), entry.client_v6(), ports),
    })
}
