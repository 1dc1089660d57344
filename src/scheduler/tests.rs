//! Why: the order of picks is the contract, and the kernel's recorded decisions are the law.
//! How: a model service (destinations newest first, loads counted as connections come and go) replays them.

mod batches;
mod recorded;
mod sequences;

use std::net::IpAddr;
use std::sync::Arc;

use super::*;
use crate::packet::Protocol;

/// A service without packets: commands as an operator gives them, new connections, their ends.
struct Model {
    name: String,
    flags: Vec<String>,
    candidates: Vec<Candidate>,
    scheduler: Scheduler,
    loads: Loads,
}

impl Model {
    fn new(name: &str, flags: &[&str]) -> Model {
        let flags: Vec<String> = flags.iter().map(|f| f.to_string()).collect();
        let scheduler = build(name, &flags, &[], None).unwrap();
        Model {
            name: name.to_owned(),
            flags,
            candidates: Vec::new(),
            scheduler,
            loads: Loads::new(1),
        }
    }

    /// The same for so many workers; nothing was added yet.
    fn of_workers(name: &str, workers: usize) -> Model {
        let loads = Loads::new(workers);
        Model {
            loads,
            ..Model::new(name, &[])
        }
    }

    fn rebuild(&mut self, change: impl FnOnce(&mut Vec<Candidate>)) {
        let before = self.candidates.clone();
        change(&mut self.candidates);
        let previous: Previous<'_> = (&self.scheduler, &before);
        self.scheduler = build(&self.name, &self.flags, &self.candidates, Some(previous)).unwrap();
    }

    fn add(&mut self, address: &str, weight: u32) {
        let candidate = Candidate {
            key: DestinationKey {
                address: address.parse().unwrap(),
                port: 80,
            },
            weight,
            upper_threshold: 0,
            lower_threshold: 0,
            last_weight: weight,
            edits: 0,
            load: Arc::new(self.loads.make()),
        };
        self.rebuild(|list| list.insert(0, candidate));
    }

    fn remove(&mut self, address: &str) {
        let address: IpAddr = address.parse().unwrap();
        self.rebuild(|list| list.retain(|c| c.key.address != address));
    }

    fn edit(&mut self, address: &str, change: impl FnOnce(&mut Candidate)) {
        let address: IpAddr = address.parse().unwrap();
        self.rebuild(|list| {
            let candidate = list.iter_mut().find(|c| c.key.address == address).unwrap();
            change(candidate);
            if candidate.weight > 0 {
                candidate.last_weight = candidate.weight;
            }
            list.iter_mut().for_each(|c| c.edits += 1);
        });
    }

    /// `-E -s`.
    fn switch(&mut self, name: &str) {
        self.name = name.to_owned();
        self.rebuild(|_| ());
    }

    fn pick(&self, flow: &FlowKey) -> Option<&Candidate> {
        let n = self.scheduler.pick(&self.candidates, flow, &mut Batch::default())?;
        Some(&self.candidates[n])
    }

    /// A new connection of this client is open (TCP) or counted as inactive (UDP).
    fn connect(&self, protocol: Protocol, client: (IpAddr, u16), vip: IpAddr) -> Option<&Candidate> {
        let flow = FlowKey::new(protocol, client, (vip, 80));
        let picked = self.pick(&flow)?;
        picked.load.add(0, protocol == Protocol::TCP, picked.upper_threshold);
        Some(picked)
    }
}
