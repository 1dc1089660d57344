//! Traffic numbers of services and destinations: sums over the workers, `-Z`, and rates.
//!
//! Workers only ever count up. An [`Account`] remembers where the counters stood at the last `-Z` and at the
//! estimator's last tick, so nothing is ever written back to a worker.

use std::sync::atomic::Ordering;

use super::protocol::TrafficStatistics;
use crate::table::Counters;

/// The estimator ticks this often (ip_vs_est of Linux 6.1).
pub const ESTIMATOR_PERIOD_MS: u64 = 2000;

/// Connections, packets in, packets out, bytes in, bytes out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals([u64; 5]);

/// How many of [`Totals`] are connections and packets; the rest are bytes, which are scaled otherwise.
const NOT_BYTES: usize = 3;

impl Totals {
    /// What all workers counted.
    pub fn sum(counters: &[Counters]) -> Totals {
        let mut totals = Totals::default();
        for worker in counters {
            let cells = [
                &worker.connections,
                &worker.packets_in,
                &worker.packets_out,
                &worker.bytes_in,
                &worker.bytes_out,
            ];
            for (sum, cell) in totals.0.iter_mut().zip(cells) {
                *sum = sum.wrapping_add(cell.load(Ordering::Relaxed));
            }
        }
        totals
    }

    /// What came since `before`.
    pub fn since(self, before: Totals) -> Totals {
        Totals(std::array::from_fn(|n| self.0[n].wrapping_sub(before.0[n])))
    }

    /// Adds what came.
    pub fn add(&mut self, more: Totals) {
        for (sum, n) in self.0.iter_mut().zip(more.0) {
            *sum = sum.wrapping_add(n);
        }
    }
}

/// The numbers of one service or destination.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    totals: Totals,
    zeroed_at: Totals,
    ticked_at: Totals,
    /// Rates times 1024 (connections, packets) or 32 (bytes).
    rates: [u64; 5],
}

/// What the estimator multiplies a difference with (rate scale / period of 2 s), what it divides by to read the
/// rate, and what it adds before that.
fn scale(index: usize) -> (u32, u32, u64) {
    if index < NOT_BYTES { (9, 10, 0x1ff) } else { (4, 5, 0xf) }
}

impl Account {
    /// Adds traffic.
    pub fn add(&mut self, more: Totals) {
        self.totals.add(more);
    }

    /// `-Z`: totals and rates start again.
    pub fn zero(&mut self) {
        self.zeroed_at = self.totals;
        self.ticked_at = self.totals;
        self.rates = [0; 5];
    }

    /// One tick of the estimator: the rate moves a quarter of the way to what the last period had.
    pub fn tick(&mut self) {
        let period = self.totals.since(self.ticked_at);
        self.ticked_at = self.totals;
        for (index, (rate, came)) in self.rates.iter_mut().zip(period.0).enumerate() {
            let (shift, _, _) = scale(index);
            let now = came.saturating_mul(1 << shift).min(i64::MAX as u64);
            // Arithmetic shift of the signed difference, as the kernel does it: small rates fall to 0 exactly.
            *rate = rate.wrapping_add_signed((now as i64).wrapping_sub(*rate as i64) >> 2);
        }
    }

    /// As `ipvsadm --stats` and `--rate` print them.
    pub fn statistics(&self) -> TrafficStatistics {
        let totals = self.totals.since(self.zeroed_at).0;
        let rate = |index: usize| {
            let (_, shift, round) = scale(index);
            (self.rates[index] + round) >> shift
        };
        TrafficStatistics {
            connections: totals[0],
            packets_in: totals[1],
            packets_out: totals[2],
            bytes_in: totals[3],
            bytes_out: totals[4],
            connections_per_s: rate(0),
            packets_in_per_s: rate(1),
            packets_out_per_s: rate(2),
            bytes_in_per_s: rate(3),
            bytes_out_per_s: rate(4),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_tick_as_recorded_from_the_kernel() {
        // cli.json 16 and 17 of the recordings: 2 connections, 2 packets, 96 bytes show as 0, 0 and 12 B/s.
        let mut account = Account::default();
        account.add(Totals([2, 2, 0, 96, 0]));
        account.tick();
        let seen = account.statistics();
        assert_eq!((seen.connections, seen.packets_in, seen.bytes_in), (2, 2, 96));
        assert_eq!(
            (seen.connections_per_s, seen.packets_in_per_s, seen.bytes_in_per_s),
            (0, 0, 12)
        );
    }

    #[test]
    fn rates_settle_and_decay_to_nothing() {
        let mut account = Account::default();
        for _ in 0..60 {
            account.add(Totals([20, 2000, 200, 2_000_000, 20_000]));
            account.tick();
        }
        let seen = account.statistics();
        assert_eq!(
            (seen.connections_per_s, seen.packets_in_per_s, seen.packets_out_per_s),
            (10, 1000, 100)
        );
        assert_eq!((seen.bytes_in_per_s, seen.bytes_out_per_s), (1_000_000, 10_000));
        for _ in 0..80 {
            account.tick();
        }
        assert_eq!(account.statistics().bytes_in_per_s, 0);
    }

    #[test]
    fn zero_forgets_totals_and_rates_only_once() {
        let mut account = Account::default();
        account.add(Totals([1, 10, 5, 1000, 500]));
        account.tick();
        account.zero();
        assert_eq!(account.statistics(), TrafficStatistics::default());
        account.add(Totals([0, 1, 0, 40, 0]));
        account.tick();
        let seen = account.statistics();
        assert_eq!((seen.packets_in, seen.bytes_in, seen.bytes_in_per_s), (1, 40, 5));
    }

    #[test]
    fn sums_over_workers_and_wraps() {
        let workers: Vec<Counters> = (0..3).map(|_| Counters::default()).collect();
        workers[0].packets_in.store(5, Ordering::Relaxed);
        workers[2].packets_in.store(u64::MAX, Ordering::Relaxed);
        let sum = Totals::sum(&workers);
        assert_eq!(sum.0, [0, 4, 0, 0, 0]);
        assert_eq!(Totals([0, 1, 0, 0, 0]).since(Totals([0, u64::MAX, 0, 0, 0])).0[1], 2);
    }
}
