//! `tests/kernel/schedulers.json`: 42 services, 1422 connections, and the real server that the kernel gave each.

use super::*;

const VIP: &str = "10.200.1.1";

/// Here the recording lost a SYN: its own listing at the end counts 47 of the 48 connections.
const LOST: (&str, usize) = ("ipvs-sched/fo/w321/srcs", 6);

#[test]
fn every_recorded_decision() {
    let text = include_str!("../../../tests/kernel/schedulers.json");
    let file: serde_json::Value = serde_json::from_str(text).unwrap();
    let (mut services, mut connections) = (0, 0);
    for vector in file["vectors"].as_array().unwrap() {
        services += 1;
        connections += replay(vector);
    }
    assert_eq!(
        (services, connections),
        (42, 1422),
        "the recorded file lost or gained vectors"
    );
}

fn replay(vector: &serde_json::Value) -> usize {
    let name = vector["name"].as_str().unwrap();
    let flags: Vec<&str> = vector["extra"]
        .as_str()
        .unwrap()
        .split(' ')
        .filter(|f| f.contains("sh-") || f.contains("mh-"))
        .collect();
    let mut model = Model::new(vector["scheduler"].as_str().unwrap(), &flags);
    for real in vector["reals"].as_array().unwrap() {
        model.add(real[0].as_str().unwrap(), real[1].as_u64().unwrap() as u32);
    }
    let protocol = match vector["proto"].as_str().unwrap() {
        "t" => Protocol::TCP,
        _ => Protocol::UDP,
    };
    let flows = vector["flows"].as_array().unwrap();
    for (n, flow) in flows.iter().enumerate() {
        if (name, n) == LOST {
            continue;
        }
        for command in vector["mid"]
            .get(n.to_string())
            .and_then(|c| c.as_array())
            .into_iter()
            .flatten()
        {
            edit(&mut model, command.as_str().unwrap());
        }
        let client = (
            flow[0].as_str().unwrap().parse().unwrap(),
            flow[1].as_u64().unwrap() as u16,
        );
        let picked = model.connect(protocol, client, VIP.parse().unwrap());
        let picked = picked.map(|c| c.key.address.to_string());
        assert_eq!(picked.as_deref(), flow[2].as_str(), "{name}, connection {n}: {flow}");
    }
    flows.len()
}

/// `-e -t VIP:80 -r ADDRESS:80 -g -w W -x X -y Y`.
fn edit(model: &mut Model, command: &str) {
    let words: Vec<&str> = command.split(' ').collect();
    let value = |option: &str| {
        let at = words.iter().position(|w| *w == option);
        at.map_or(0, |n| words[n + 1].parse::<u32>().unwrap())
    };
    assert_eq!(words[0], "-e");
    let real = words[words.iter().position(|w| *w == "-r").unwrap() + 1];
    model.edit(real.split(':').next().unwrap(), |c| {
        c.weight = value("-w");
        c.upper_threshold = value("-x");
        c.lower_threshold = value("-y");
    });
}
