//! The candidates as a walk over all of them wants them: close together, quiesced ones left out. Among 1,000 servers such a walk
//! takes two thirds of the time of one over the candidates themselves.
//!
//! An index over the numbers would be faster still, but every new connection and every end of one would write to it, on every
//! worker: one more cache line that workers take from each other, also with the ten servers that a service usually has.

use std::sync::Arc;

use super::{Candidate, Load};

/// In the list's order.
#[derive(Debug)]
pub(super) struct Packed(Box<[Server]>);

#[derive(Debug)]
struct Server {
    /// Its place in the list.
    index: u32,
    /// Above 0.
    weight: u32,
    load: Arc<Load>,
}

impl Packed {
    pub fn new(candidates: &[Candidate]) -> Packed {
        let all = candidates.iter().zip(0..).filter(|(c, _)| c.weight > 0);
        let server = |(candidate, index): (&Candidate, u32)| Server {
            index,
            weight: candidate.weight,
            load: candidate.load.clone(),
        };
        Packed(all.map(server).collect())
    }

    /// The first that is not overloaded, and of which `is_it` holds.
    #[inline]
    pub fn first(&self, is_it: impl Fn(&Load) -> bool) -> Option<usize> {
        let mut all = self.0.iter();
        all.find(|server| !server.load.is_overloaded() && is_it(&server.load))
            .map(|server| server.index as usize)
    }

    /// The one that is not overloaded and has the smallest cost; the first of equals.
    #[inline]
    pub fn least(&self, cost: impl Fn(&Load) -> u64) -> Option<usize> {
        self.least_by(cost, |_| 1)
    }

    /// The same for cost / weight.
    #[inline]
    pub fn least_for_weight(&self, cost: impl Fn(&Load) -> u64) -> Option<usize> {
        self.least_by(cost, |server| server.weight as u64)
    }

    #[inline(always)]
    fn least_by(&self, cost: impl Fn(&Load) -> u64, weight: impl Fn(&Server) -> u64) -> Option<usize> {
        // 1 / 0: more than any.
        let (mut least, mut least_cost, mut least_weight) = (None, 1, 0);
        for server in &self.0 {
            let (cost, weight) = (cost(&server.load), weight(server));
            // a / b > c / d as a * d > c * b, without fractions. 41 and 31 bits: at 2^33 connections it would overflow.
            if least_cost * weight > cost * least_weight && !server.load.is_overloaded() {
                (least, least_cost, least_weight) = (Some(server.index as usize), cost, weight);
            }
        }
        least
    }
}
