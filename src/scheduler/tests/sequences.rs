//! Orders recorded from the kernel with three servers, added in the order r1, r2, r3, and one client.

use super::*;

/// What happens between picks.
enum Step {
    /// So many new connections that stay open.
    Open(usize),
    Delete(&'static str),
    Add(&'static str, u32),
    Weight(&'static str, u32),
    /// `-E -s NAME`.
    Switch(&'static str),
    /// `-E` with the same scheduler.
    Edit,
}
use Step::*;

fn address(name: &str) -> String {
    name.replace('r', "10.1.0.")
}

fn model(name: &str, weights: [u32; 3]) -> Model {
    let mut model = Model::new(name, &[]);
    for (n, weight) in weights.into_iter().enumerate() {
        model.add(&format!("10.1.0.{}", n + 1), weight);
    }
    model
}

/// Opens connections; `-` where there is no destination.
fn open(model: &Model, count: usize, protocol: Protocol) -> String {
    let mut picks = Vec::new();
    for _ in 0..count {
        let client = ("10.9.0.2".parse().unwrap(), 40_000);
        let picked = model.connect(protocol, client, "192.0.2.1".parse().unwrap());
        picks.push(picked.map_or("-".to_owned(), |c| c.key.address.to_string().replace("10.1.0.", "r")));
    }
    picks.join(" ")
}

#[track_caller]
fn check(name: &str, weights: [u32; 3], steps: &[Step], expected: &str) {
    let mut model = model(name, weights);
    let mut picks = Vec::new();
    for step in steps {
        match *step {
            Open(count) => picks.push(open(&model, count, Protocol::TCP)),
            Delete(server) => model.remove(&address(server)),
            Add(server, weight) => model.add(&address(server), weight),
            Weight(server, weight) => model.edit(&address(server), |c| c.weight = weight),
            Switch(name) => model.switch(name),
            Edit => model.rebuild(|_| ()),
        }
    }
    assert_eq!(picks.join(" | "), expected, "{name} {weights:?}");
}

#[test]
fn rr() {
    check("rr", [1, 1, 1], &[Open(12)], "r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1");
    check("rr", [1, 5, 9], &[Open(12)], "r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1");
    check("rr", [1, 0, 1], &[Open(8)], "r3 r1 r3 r1 r3 r1 r3 r1");
    check("rr", [0, 0, 0], &[Open(2)], "- -");
}

#[test]
fn rr_keeps_its_position_over_changes() {
    let one = [1, 1, 1];
    check(
        "rr",
        one,
        &[Open(4), Delete("r2"), Open(4), Add("r2", 1), Open(7)],
        "r3 r2 r1 r3 | r1 r3 r1 r3 | r1 r2 r3 r1 r2 r3 r1",
    );
    check("rr", one, &[Open(2), Delete("r3"), Open(4)], "r3 r2 | r1 r2 r1 r2");
    check("rr", one, &[Open(1), Delete("r3"), Open(4)], "r3 | r2 r1 r2 r1");
    check(
        "rr",
        one,
        &[Open(2), Weight("r1", 0), Open(4), Weight("r1", 1), Open(4)],
        "r3 r2 | r3 r2 r3 r2 | r1 r3 r2 r1",
    );
    check("rr", one, &[Open(2), Edit, Open(4)], "r3 r2 | r1 r3 r2 r1");
    check(
        "rr",
        one,
        &[Open(2), Switch("wrr"), Switch("rr"), Open(4)],
        "r3 r2 | r3 r2 r1 r3",
    );
}

#[test]
fn wrr() {
    for (weights, expected) in [
        (
            [1, 2, 3],
            "r3 r2 r1 r3 r3 r2 r3 r2 r1 r3 r3 r2 r3 r2 r1 r3 r3 r2 r3 r2 r1 r3 r3 r2",
        ),
        (
            [3, 2, 1],
            "r3 r2 r1 r1 r2 r1 r3 r2 r1 r1 r2 r1 r3 r2 r1 r1 r2 r1 r3 r2 r1 r1 r2 r1",
        ),
        ([1, 1, 1], "r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1"),
        ([4, 2, 2], "r3 r2 r1 r1 r3 r2 r1 r1 r3 r2 r1 r1 r3 r2 r1 r1"),
        (
            [5, 1, 1],
            "r3 r2 r1 r1 r1 r1 r1 r3 r2 r1 r1 r1 r1 r1 r3 r2 r1 r1 r1 r1 r1",
        ),
        (
            [10, 20, 30],
            "r3 r2 r1 r3 r3 r2 r3 r2 r1 r3 r3 r2 r3 r2 r1 r3 r3 r2 r3 r2 r1 r3 r3 r2",
        ),
        (
            [1, 7, 3],
            "r3 r2 r1 r2 r2 r2 r2 r3 r2 r3 r2 r3 r2 r1 r2 r2 r2 r2 r3 r2 r3 r2 r3 r2 r1 r2 r2 r2 r2 r3 r2 r3 r2",
        ),
        ([0, 1, 2], "r3 r2 r3 r3 r2 r3 r3 r2 r3"),
        ([2, 0, 2], "r3 r1 r3 r1 r3 r1 r3 r1"),
        ([100, 1, 1], "r3 r2 r1 r1 r1 r1 r1 r1 r1 r1 r1 r1"),
        (
            [6, 10, 15],
            "r3 r2 r1 r3 r3 r3 r3 r3 r3 r2 r3 r2 r3 r2 r3 r2 r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1",
        ),
        ([65535, 1, 1], "r3 r2 r1 r1 r1 r1"),
        ([0, 0, 0], "- -"),
    ] {
        check("wrr", weights, &[Open(expected.split(' ').count())], expected);
    }
}

#[test]
fn wrr_goes_on_over_changes() {
    check(
        "wrr",
        [1, 2, 3],
        &[Open(5), Weight("r1", 4), Open(18)],
        "r3 r2 r1 r3 r3 | r3 r2 r1 r3 r2 r1 r1 r3 r1 r3 r2 r1 r3 r2 r1 r1 r3 r1",
    );
    check(
        "wrr",
        [1, 2, 3],
        &[Open(5), Delete("r3"), Open(9), Add("r3", 3), Open(12)],
        "r3 r2 r1 r3 r3 | r2 r2 r1 r2 r2 r1 r2 r2 r1 | r3 r2 r1 r3 r3 r2 r3 r2 r1 r3 r3 r2",
    );
    check("wrr", [1, 2, 3], &[Open(2), Edit, Open(4)], "r3 r2 | r1 r3 r3 r2");
}

#[test]
fn wrr_made_at_once_is_as_made_step_by_step() {
    let by_steps = model("wrr", [6, 10, 15]);
    let mut at_once = model("wrr", [6, 10, 15]);
    at_once.scheduler = build("wrr", &[], &at_once.candidates, None).unwrap();
    assert_eq!(open(&by_steps, 62, Protocol::TCP), open(&at_once, 62, Protocol::TCP));
}

/// The kernel walks every mark; here marks that nobody reaches are jumped over. Both must come to the same.
#[test]
fn wrr_jumps_as_the_kernel_walks() {
    let mut model = model("wrr", [1000, 3, 5]);
    model.edit("10.1.0.1", |c| {
        c.load.overloaded.store(true, std::sync::atomic::Ordering::Relaxed)
    });
    assert_eq!(open(&model, 9, Protocol::TCP), "r3 r2 r3 r3 r3 r2 r3 r2 r3");
    model.edit("10.1.0.1", |c| {
        c.load.overloaded.store(false, std::sync::atomic::Ordering::Relaxed)
    });
    assert_eq!(open(&model, 1000 + 8, Protocol::TCP).matches("r1").count(), 1000);
}

#[test]
fn least_connections_held_open() {
    for (name, weights, expected) in [
        ("lc", [1, 1, 1], "r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1"),
        ("lc", [1, 2, 3], "r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1"),
        ("lc", [0, 1, 2], "r3 r2 r3 r2 r3 r2 r3 r2 r3 r2 r3 r2 r3 r2 r3 r2 r3 r2"),
        (
            "lc",
            [1, 4, 10],
            "r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1",
        ),
        (
            "wlc",
            [1, 1, 1],
            "r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1",
        ),
        (
            "wlc",
            [1, 2, 3],
            "r3 r2 r1 r3 r2 r3 r3 r2 r1 r3 r2 r3 r3 r2 r1 r3 r2 r3",
        ),
        (
            "wlc",
            [3, 2, 1],
            "r3 r2 r1 r1 r2 r1 r3 r2 r1 r1 r2 r1 r3 r2 r1 r1 r2 r1",
        ),
        (
            "wlc",
            [0, 1, 2],
            "r3 r2 r3 r3 r2 r3 r3 r2 r3 r3 r2 r3 r3 r2 r3 r3 r2 r3",
        ),
        (
            "wlc",
            [1, 4, 10],
            "r3 r2 r1 r3 r3 r2 r3 r3 r3 r2 r3 r3 r2 r3 r3 r3 r2 r1",
        ),
        (
            "sed",
            [1, 1, 1],
            "r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1",
        ),
        (
            "sed",
            [1, 2, 3],
            "r3 r2 r3 r3 r2 r1 r3 r2 r3 r3 r2 r1 r3 r2 r3 r3 r2 r1",
        ),
        (
            "sed",
            [3, 2, 1],
            "r1 r2 r1 r3 r2 r1 r1 r2 r1 r3 r2 r1 r1 r2 r1 r3 r2 r1",
        ),
        (
            "sed",
            [0, 1, 2],
            "r3 r3 r2 r3 r3 r2 r3 r3 r2 r3 r3 r2 r3 r3 r2 r3 r3 r2",
        ),
        (
            "sed",
            [1, 4, 10],
            "r3 r3 r2 r3 r3 r3 r2 r3 r3 r2 r3 r3 r3 r2 r1 r3 r3 r2",
        ),
        ("nq", [1, 1, 1], "r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1"),
        ("nq", [1, 2, 3], "r3 r2 r1 r3 r3 r2 r3 r2 r3 r3 r2 r1 r3 r2 r3 r3 r2 r1"),
        ("nq", [3, 2, 1], "r3 r2 r1 r1 r2 r1 r1 r2 r1 r3 r2 r1 r1 r2 r1 r3 r2 r1"),
        ("nq", [0, 1, 2], "r3 r2 r3 r3 r3 r2 r3 r3 r2 r3 r3 r2 r3 r3 r2 r3 r3 r2"),
        (
            "nq",
            [1, 4, 10],
            "r3 r2 r1 r3 r3 r3 r3 r2 r3 r3 r2 r3 r3 r3 r2 r3 r3 r2",
        ),
    ] {
        check(name, weights, &[Open(18)], expected);
    }
}

/// The first six of 18 were closed: they still count, as inactive.
#[test]
fn least_connections_after_closing_six() {
    for (name, weights, loads, expected) in [
        ("lc", [1, 4, 10], [(4, 2), (4, 2), (4, 2)], "r3 r2 r1 r3 r2 r1"),
        ("lc", [0, 1, 2], [(0, 0), (6, 3), (6, 3)], "r3 r2 r3 r2 r3 r2"),
        ("wlc", [1, 2, 3], [(2, 1), (4, 2), (6, 3)], "r3 r2 r1 r3 r2 r3"),
        ("wlc", [3, 2, 1], [(6, 3), (4, 2), (2, 1)], "r3 r2 r1 r1 r2 r1"),
        ("wlc", [1, 4, 10], [(1, 1), (3, 2), (8, 3)], "r2 r3 r3 r3 r2 r1"),
        ("sed", [1, 2, 3], [(2, 1), (4, 2), (6, 3)], "r3 r2 r3 r3 r2 r1"),
        ("sed", [1, 4, 10], [(1, 0), (4, 1), (7, 5)], "r3 r3 r3 r3 r3 r2"),
        ("nq", [1, 4, 10], [(0, 1), (4, 1), (8, 4)], "r1 r3 r3 r3 r3 r2"),
    ] {
        let model = model(name, weights);
        for (candidate, (active, inactive)) in model.candidates.iter().rev().zip(loads) {
            (0..active).for_each(|_| candidate.load.add(0, true, 0));
            (0..inactive).for_each(|_| candidate.load.add(0, false, 0));
        }
        assert_eq!(open(&model, 6, Protocol::TCP), expected, "{name} {weights:?}");
    }
}

/// Each connection is closed before the next: only inactive ones count. As for UDP, which is never active.
#[test]
fn least_connections_closed_one_by_one() {
    for (name, weights, expected) in [
        ("lc", [1, 1, 1], "r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1"),
        ("lc", [1, 2, 3], "r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1"),
        ("wlc", [1, 1, 1], "r3 r2 r1 r3 r2 r1 r3 r2 r1 r3 r2 r1"),
        ("wlc", [1, 2, 3], "r3 r2 r1 r3 r2 r3 r3 r2 r1 r3 r2 r3"),
        ("sed", [1, 1, 1], "r3 r3 r3 r3 r3 r3 r3 r3 r3 r3 r3 r3"),
        ("nq", [1, 2, 3], "r3 r3 r3 r3 r3 r3 r3 r3 r3 r3 r3 r3"),
    ] {
        assert_eq!(
            open(&model(name, weights), 12, Protocol::UDP),
            expected,
            "{name} {weights:?}"
        );
    }
}

#[test]
fn lc_takes_one_active_for_256_inactive() {
    for (inactive, expected) in [(255, "r2"), (256, "r3"), (257, "r1")] {
        let mut model = model("lc", [1, 1, 1]);
        model.remove("10.1.0.2");
        let [r3, r1] = &model.candidates[..] else { panic!() };
        (0..inactive).for_each(|_| r3.load.add(0, false, 0));
        r1.load.add(0, true, 0);
        let expected = if expected == "r2" { "r3" } else { expected };
        assert_eq!(open(&model, 1, Protocol::TCP), expected, "{inactive}");
    }
}

#[test]
fn fo_and_ovf() {
    check("fo", [1, 1, 1], &[Open(6)], "r3 r3 r3 r3 r3 r3");
    check("fo", [3, 2, 1], &[Open(6)], "r1 r1 r1 r1 r1 r1");
    check("fo", [2, 2, 1], &[Open(6)], "r2 r2 r2 r2 r2 r2");
    check(
        "fo",
        [1, 2, 3],
        &[Open(3), Weight("r3", 0), Open(3)],
        "r3 r3 r3 | r2 r2 r2",
    );
    check("ovf", [1, 2, 3], &[Open(12)], "r3 r3 r3 r3 r2 r2 r2 r1 r1 - - -");
    check("ovf", [3, 3, 3], &[Open(12)], "r3 r3 r3 r3 r2 r2 r2 r2 r1 r1 r1 r1");
    check("ovf", [2, 4, 1], &[Open(12)], "r2 r2 r2 r2 r2 r1 r1 r1 r3 r3 - -");
    check("ovf", [0, 1, 2], &[Open(12)], "r3 r3 r3 r2 r2 - - - - - - -");
}

#[test]
fn lblc_moves_and_lblcr_grows() {
    check(
        "lblc",
        [4, 4, 4],
        &[Open(20)],
        "r3 r3 r3 r3 r3 r2 r2 r2 r2 r2 r1 r1 r1 r1 r1 r1 r1 r1 r1 r1",
    );
    check(
        "lblcr",
        [4, 4, 4],
        &[Open(20)],
        "r3 r3 r3 r3 r3 r2 r2 r2 r2 r2 r1 r1 r1 r1 r1 r1 r2 r3 r1 r2",
    );
}

/// What is remembered names destinations, not places in the list.
#[test]
fn lblc_remembers_over_changes() {
    for name in ["lblc", "lblcr"] {
        let steps = [
            Open(1),
            Add("r4", 1),
            Open(1),
            Delete("r2"),
            Open(1),
            Weight("r3", 0),
            Open(1),
        ];
        check(name, [4, 4, 4], &steps, "r3 | r3 | r3 | r4");
    }
}

#[test]
fn hashes_by_one_client_to_one_address() {
    check("sh", [1, 1, 1], &[Open(6)], "r3 r3 r3 r3 r3 r3");
    check("dh", [1, 1, 1], &[Open(6)], "r1 r1 r1 r1 r1 r1");
    check("mh", [1, 1, 1], &[Open(6)], "r3 r3 r3 r3 r3 r3");
}

/// The client's bucket stays that of a quiesced destination, which refuses it.
#[test]
fn hashes_refuse_for_a_quiesced_destination() {
    check("sh", [1, 1, 1], &[Open(1), Weight("r3", 0), Open(1)], "r3 | -");
    check("mh", [1, 1, 1], &[Open(1), Weight("r3", 0), Open(1)], "r3 | -");
    check("dh", [1, 1, 1], &[Open(1), Weight("r1", 0), Open(1)], "r1 | -");
}

#[test]
fn thresholds() {
    let mut model = model("rr", [1, 1, 1]);
    for (server, upper, lower) in [("10.1.0.1", 2, 1), ("10.1.0.2", 3, 0), ("10.1.0.3", 2, 0)] {
        model.edit(server, |c| (c.upper_threshold, c.lower_threshold) = (upper, lower));
    }
    assert_eq!(open(&model, 9, Protocol::TCP), "r3 r2 r1 r3 r2 r1 r2 - -");
}

#[test]
fn unknown_and_empty() {
    assert_eq!(build("nonsense", &[], &[], None).unwrap_err(), NoSuchScheduler);
    let flow = FlowKey::v4(Protocol::TCP, 1, 2, 3);
    for name in NAMES {
        let scheduler = build(name, &[], &[], None).unwrap();
        assert_eq!(scheduler.pick(&[], &flow, &mut Batch::default()), None, "{name}");
    }
}

/// Several workers pick at once: the shares come out as with one.
#[test]
fn workers_share_one_cursor() {
    for (name, weights, shares) in [
        ("rr", [1, 1, 1], [3000, 3000, 3000]),
        ("wrr", [1, 2, 3], [1500, 3000, 4500]),
    ] {
        let model = model(name, weights);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| open(&model, 3000, Protocol::TCP));
            }
        });
        let active: Vec<u32> = model.candidates.iter().rev().map(|c| c.load.active()).collect();
        assert_eq!(active, shares, "{name}");
    }
}

/// Goal: a server of which more was taken off than has been counted, for a moment, has nothing to do, not less: the first of equals
/// wins. How: equal weights, which are compared in another way, and different ones.
#[test]
fn less_than_nothing_is_nothing() {
    for name in ["lc", "wlc", "sed", "nq"] {
        for weights in [[1, 1, 1], [2, 1, 1]] {
            let mut model = Model::new(name, &[]);
            for (address, weight) in ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
                .into_iter()
                .zip(weights.into_iter().rev())
            {
                model.add(address, weight);
            }
            let [first, second, third] = &model.candidates[..] else {
                panic!("three were added");
            };
            second.load.remove(0, true, 0, 0);
            third.load.remove(0, false, 0, 0);
            let flow = FlowKey::v4(Protocol::TCP, 1, 2, 1024 << 16 | 80);
            let picked = model.pick(&flow).expect("all are there");
            assert_eq!(picked.key, first.key, "{name}, {weights:?}");
        }
    }
}
