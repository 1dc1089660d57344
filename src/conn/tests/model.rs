//! Any sequence of operations comes to the same as on a plain map.

use std::collections::HashMap;

use proptest::prelude::*;

use super::basic::*;
use crate::conn::*;
use crate::packet::{FlowKey, TcpFlags};
use crate::service::{DestinationKey, Method};

#[derive(Clone, Copy, Debug)]
enum Step {
    Insert {
        client: u32,
        server: u32,
        v6: bool,
        method: u8,
    },
    /// A packet of the client, or of the server.
    Packet {
        client: u32,
        v6: bool,
        reply: bool,
        flags: u8,
    },
    Remove {
        client: u32,
        v6: bool,
    },
    /// Time goes on by so many ticks, then the sweep.
    Sweep {
        ticks: u32,
    },
    Boundary,
}

fn step() -> impl Strategy<Value = Step> {
    let client = 0..24u32;
    prop_oneof![
        4 => (client.clone(), 0..3u32, any::<bool>(), 0..3u8)
            .prop_map(|(client, server, v6, method)| Step::Insert { client, server, v6, method }),
        6 => (client.clone(), any::<bool>(), any::<bool>(), 0..32u8)
            .prop_map(|(client, v6, reply, flags)| Step::Packet { client, v6, reply, flags }),
        1 => (client, any::<bool>()).prop_map(|(client, v6)| Step::Remove { client, v6 }),
        2 => (0..3000u32).prop_map(|ticks| Step::Sweep { ticks }),
        1 => Just(Step::Boundary),
    ]
}

/// What is known of a connection without a table.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Known {
    server: DestinationKey,
    method: Method,
    state: State,
    deadline: Tick,
}

struct Run {
    table: ConnectionTable,
    map: HashMap<FlowKey, Known>,
    now: Tick,
    timeouts: TimeoutTable,
}

impl Run {
    fn step(&mut self, step: Step) {
        match step {
            Step::Insert {
                client,
                server: n,
                v6,
                method,
            } => {
                let method = [Method::Route, Method::Masq, Method::Tunnel][method as usize];
                self.insert(new(flow(v6, client), server(v6, n), method));
            }
            Step::Packet {
                client,
                v6,
                reply,
                flags,
            } => self.packet(flow(v6, client), reply, TcpFlags(flags)),
            Step::Remove { client, v6 } => {
                let found = lookup(&self.table, &flow(v6, client));
                let removed = found.and_then(|hit| self.table.remove(hit.entry));
                assert_eq!(removed.is_some(), self.map.remove(&flow(v6, client)).is_some());
            }
            Step::Sweep { ticks } => self.sweep(ticks),
            Step::Boundary => self.table.quiescent(W),
        }
    }

    fn insert(&mut self, new: NewConnection<'static>) {
        let inserted = self
            .table
            .insert(W, self.table.hash(&new.flow), &new, self.now, &mut none);
        match (inserted, self.map.contains_key(&new.flow)) {
            (Ok(_), false) => {
                let known = Known {
                    server: new.destination,
                    method: new.method,
                    state: new.state,
                    deadline: self.now.after(new.timeout_ticks),
                };
                self.map.insert(new.flow, known);
            }
            (Err(InsertError::Exists(there)), true) => assert_eq!(there.flow(), new.flow),
            (other, there) => panic!("{other:?} although there is {there}"),
        }
    }

    fn packet(&mut self, flow: FlowKey, as_reply: bool, flags: TcpFlags) {
        let Some(known) = self.map.get_mut(&flow) else {
            assert!(lookup(&self.table, &flow).is_none());
            return;
        };
        let (key, direction) = match as_reply {
            true => (reply(&flow, &known.server), Direction::Reply),
            false => (flow, Direction::Forward),
        };
        let Some(hit) = lookup(&self.table, &key) else {
            assert!(as_reply && known.method != Method::Masq, "{flow:?} is lost");
            return;
        };
        assert_eq!((hit.direction, hit.entry.flow()), (direction, flow));
        let change = hit.entry.touch(direction, flags, self.now, &self.timeouts);
        let to = known.state.next(flow.protocol, known.method, direction, flags);
        let expected = (to != known.state).then_some(StateChange { from: known.state, to });
        assert_eq!(change, expected);
        let deadline = self.now.after(self.timeouts.ticks(to));
        if expected.is_some() || deadline < known.deadline || deadline.0 - known.deadline.0 >= 8 {
            (known.state, known.deadline) = (to, deadline);
        }
        assert_eq!((hit.entry.state(), hit.entry.deadline()), (known.state, known.deadline));
    }

    fn sweep(&mut self, ticks: u32) {
        self.now = self.now.after(ticks);
        let mut gone = Vec::new();
        let report = self.table.sweep(self.now, usize::MAX, &mut |c| {
            gone.push(FlowKey::new(c.protocol, c.client, c.virtual_address));
        });
        assert!(report.complete);
        for flow in &gone {
            assert!(
                self.map.remove(flow).is_some_and(|known| known.deadline <= self.now),
                "{flow:?}"
            );
        }
        assert!(
            self.map.values().all(|known| known.deadline > self.now),
            "someone was forgotten"
        );
    }

    fn check(&self) {
        assert_eq!(self.table.used(), self.map.len() as u64);
        let mut listed = 0;
        self.table.for_each(|c| {
            listed += 1;
            let known = self.map[&FlowKey::new(c.protocol, c.client, c.virtual_address)];
            let server = DestinationKey {
                address: c.destination.0,
                port: c.destination.1,
            };
            let seen = Known {
                server,
                method: c.method,
                state: c.state,
                deadline: c.deadline,
            };
            assert_eq!(seen, known);
        });
        assert_eq!(listed, self.map.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn as_a_plain_map(steps in prop::collection::vec(step(), 1..200)) {
        let table = ConnectionTable::anonymous(200, 1).unwrap();
        table.online(W);
        let mut run = Run { table, map: HashMap::new(), now: Tick(1000), timeouts: TimeoutTable::default() };
        for step in steps {
            run.step(step);
        }
        run.check();
        run.table.quiescent(W);
        run.sweep(u32::MAX / 2);
        assert_eq!((run.table.used(), run.table.index.references(), run.table.index.control_sum()), (0, 0, 0));
    }
}
