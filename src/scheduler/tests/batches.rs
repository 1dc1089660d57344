//! Why: what a worker takes ahead for a batch must not show where it need not. How: the same connections one by one and in batches.

use std::sync::Barrier;

use proptest::prelude::*;

use super::super::rr::Rr;
use super::*;

/// Draws lots.
const BY_CHANCE: &str = "twos";

fn flow(client: u32) -> FlowKey {
    FlowKey::v4(Protocol::TCP, client, 0xc000_0201, 40_000 << 16 | 80)
}

fn model(name: &str, weights: &[u32], workers: usize) -> Model {
    let mut model = Model::of_workers(name, workers);
    for (n, weight) in weights.iter().enumerate() {
        model.add(&format!("10.1.0.{}", n + 1), *weight);
    }
    model
}

impl Model {
    fn count(&self, worker: u16, picked: Option<usize>) -> Option<usize> {
        let candidate = &self.candidates[picked?];
        candidate.load.add(worker, true, candidate.upper_threshold);
        picked
    }

    fn one(&self, worker: u16, client: u32) -> Option<usize> {
        self.count(
            worker,
            self.scheduler
                .pick(&self.candidates, &flow(client), &mut Batch::default()),
        )
    }

    fn next_of<'s>(&'s self, worker: u16, client: u32, batch: &mut Batch<'s>) -> Option<usize> {
        let picked = self.scheduler.pick(&self.candidates, &flow(client), batch);
        self.count(worker, picked)
    }
}

fn weights() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0..5u32, 1..20)
}

proptest! {
    /// Goal: with one worker batches do not show, whichever scheduler, however long they are, and when a batch has connections of
    /// two services; and between them `peek` says who is next.
    #[test]
    fn one_worker_picks_as_without_batches(
        weights in weights(),
        batches in prop::collection::vec(prop::collection::vec(any::<bool>(), 0..70), 1..8),
    ) {
        for name in NAMES.iter().filter(|name| **name != BY_CHANCE) {
            let singly = [model(name, &weights, 1), model(name, &weights, 1)];
            let together = [model(name, &weights, 1), model(name, &weights, 1)];
            let mut client = 0;
            for services in &batches {
                let mut batch = Batch::new(0);
                for (n, service) in services.iter().map(|which| *which as usize).enumerate() {
                    client += 1;
                    let expected = singly[service].one(0, client);
                    let picked = together[service].next_of(0, client, &mut batch);
                    prop_assert_eq!(picked, expected, "{}, number {} of a batch", name, n);
                }
                drop(batch);
                for (a, b) in singly.iter().zip(&together) {
                    let next = |model: &Model| model.scheduler.peek(&model.candidates, &flow(client));
                    prop_assert_eq!(next(a), next(b), "{}", name);
                }
            }
        }
    }

    /// Goal: the same with several workers when each batch has one connection, as where few come.
    #[test]
    fn single_connections_of_workers_go_as_those_of_one(
        weights in weights(),
        workers in prop::collection::vec(0..3u16, 1..60),
    ) {
        for name in NAMES.iter().filter(|name| **name != BY_CHANCE) {
            let (one, several) = (model(name, &weights, 1), model(name, &weights, 3));
            for (client, worker) in (0..).zip(&workers) {
                let picked = several.next_of(*worker, client, &mut Batch::new(*worker));
                prop_assert_eq!(picked, one.one(0, client), "{}, connection {}", name, client);
            }
        }
    }

    /// Goal: nobody is refused while a server is available, and no threshold is passed. How: three workers whose batches begin and end
    /// at any time, servers quiesced and with thresholds.
    #[test]
    fn nobody_is_refused_while_a_server_is_available(
        weights in weights(),
        thresholds in prop::collection::vec(0..40u32, 20),
        steps in prop::collection::vec((0..3u16, prop::bool::weighted(0.2)), 1..300),
    ) {
        for name in ["rr", "wrr", "lc", "wlc", "sed", "nq"] {
            let mut model = model(name, &weights, 3);
            model.rebuild(|list| {
                list.iter_mut().zip(&thresholds).for_each(|(c, upper)| c.upper_threshold = *upper);
            });
            let mut batches = [0, 1, 2].map(Batch::new);
            for (worker, ends) in &steps {
                let batch = &mut batches[*worker as usize];
                if *ends {
                    *batch = Batch::new(*worker);
                }
                let picked = model.next_of(*worker, 1, batch);
                let available = model.candidates.iter().any(Candidate::is_available);
                prop_assert!(picked.is_some() || !available, "{} refuses", name);
                for c in model.candidates.iter().filter(|c| c.upper_threshold > 0) {
                    prop_assert!(c.load.total() <= c.upper_threshold, "{}: {}", name, c.load.total());
                }
            }
        }
    }

    /// Goal: no turn is taken twice, and a batch loses less than it may take ahead. How: two workers whose batches begin and end at
    /// any time.
    #[test]
    fn turns_are_taken_once(steps in prop::collection::vec((any::<bool>(), prop::bool::weighted(0.1)), 1..300)) {
        let rr = Rr::default();
        let mut batches = [Batch::new(0), Batch::new(1)];
        let mut turns = Vec::new();
        let mut ended = 0;
        for (which, ends) in steps {
            let batch = &mut batches[which as usize];
            if ends {
                *batch = Batch::new(which as u16);
                ended += 1;
            } else {
                turns.push(batch.turn(&rr));
            }
        }
        drop(batches);
        let (taken, last) = (turns.len() as u64, turns.iter().max().map_or(0, |last| last + 1));
        turns.sort_unstable();
        turns.dedup();
        prop_assert_eq!(turns.len() as u64, taken, "one was taken twice");
        prop_assert!(last - taken <= (ended + 2) * 15, "{} of {} are lost", last - taken, last);
    }
}

/// Goal: of two servers the one that is not quiesced is found, also by turns that are not next to each other.
#[test]
fn turns_apart_find_the_one_server() {
    let model = model("rr", &[1, 0], 2);
    let (mut first, mut second) = (Batch::new(0), Batch::new(1));
    let mut picks = vec![model.next_of(0, 0, &mut first), model.next_of(1, 0, &mut second)];
    drop(first);
    drop(second);
    picks.push(model.next_of(0, 0, &mut Batch::new(0)));
    assert_eq!(picks, [Some(1); 3]);
}

/// Goal: what is given back is taken next, by whoever comes.
#[test]
fn turns_given_back_come_next() {
    let rr = Rr::default();
    let batches = || (Batch::new(0), Batch::new(1));
    let (mut first, mut second) = batches();
    let turns = [first.turn(&rr), first.turn(&rr), second.turn(&rr)];
    assert_eq!(turns, [0, 1, 3]);
    drop(first);
    assert_eq!([second.turn(&rr), second.turn(&rr)], [2, 4]);
    drop(second);
    let (mut first, mut second) = batches();
    assert_eq!([first.turn(&rr), second.turn(&rr)], [5, 6]);
    // Each holds one more, 8 and 10; the second can give back as if nothing had been.
    assert_eq!([first.turn(&rr), second.turn(&rr)], [7, 9]);
    drop((second, first));
    let mut next = Batch::new(2);
    assert_eq!([next.turn(&rr), next.turn(&rr), next.turn(&rr)], [8, 10, 11]);
}

/// Goal: what workers see late evens out. How: three threads with batches of all lengths at once, ten servers.
#[test]
fn shares_of_workers_with_batches_are_even() {
    const EACH: u32 = 200_000;
    for (name, tolerance) in [("rr", EACH / 100), ("lc", 200), ("wlc", 200), ("sed", 200), ("nq", 200)] {
        let model = model(name, &[3; 10], 3);
        let begin = Barrier::new(3);
        std::thread::scope(|scope| {
            let (model, begin) = (&model, &begin);
            for worker in 0..3 {
                scope.spawn(move || {
                    begin.wait();
                    let mut left = EACH;
                    for length in (1..=64).cycle() {
                        let mut batch = Batch::new(worker);
                        for _ in 0..length.min(left) {
                            assert!(model.next_of(worker, left, &mut batch).is_some());
                        }
                        left = left.saturating_sub(length);
                        if left == 0 {
                            break;
                        }
                    }
                });
            }
        });
        for candidate in &model.candidates {
            let active = candidate.load.active();
            assert!(active.abs_diff(3 * (EACH / 10)) <= tolerance, "{name}: {active}");
        }
    }
}

/// Goal: of two workers in the midst of batches each sees its own connections at once and the other's from its next batch on.
#[test]
fn others_are_seen_at_the_next_batch() {
    let model = model("wlc", &[1, 1, 1], 2);
    let (mut first, mut second) = (Batch::new(0), Batch::new(1));
    let mut pick = |worker: u16| {
        let batch = if worker == 0 { &mut first } else { &mut second };
        model.next_of(worker, 0, batch)
    };
    let picks: Vec<_> = [0, 1, 0, 1, 1].map(&mut pick).into_iter().flatten().collect();
    // The second one looked when the first had begun one connection.
    assert_eq!(picks, [0, 1, 1, 2, 0]);
    assert_eq!(model.next_of(0, 0, &mut Batch::new(0)), Some(2));
}
