//! What `uvs explain` says against what then happens, on a director in memory.

use super::director::MemoryDirector;
use super::network::Network;
use super::tests::{CLIENT, VIP, tcp};
use crate::control::explain::{Explanation, HopReport, Question, Way};
use crate::control::protocol::Command;
use crate::packet::{Offload, Protocol};
use crate::scheduler;
use crate::table::InterfaceId;

const CLIENT_SIDE: InterfaceId = InterfaceId(0);
const SERVER_SIDE: InterfaceId = InterfaceId(1);

fn director(rules: &str) -> MemoryDirector {
    let mut director = MemoryDirector::new(Network::recorded(), 1024, 2048).unwrap();
    director.ipvsadm(rules).unwrap();
    director
}

fn ask(director: &MemoryDirector, client: &str, vip: &str) -> Explanation {
    let before = (
        director.destinations(),
        director.connections(),
        director.counts().clone(),
    );
    let answer = director.explain(&Question::parse("tcp", client, vip).unwrap());
    let after = (
        director.destinations(),
        director.connections(),
        director.counts().clone(),
    );
    assert_eq!(before, after, "asking changes nothing");
    let json = serde_json::to_string(&answer).unwrap();
    assert_eq!(serde_json::from_str::<Explanation>(&json).unwrap(), answer, "{json}");
    answer
}

fn sysctl(director: &mut MemoryDirector, name: &str) {
    let (name, value) = (name.to_owned(), "1".to_owned());
    director.apply(&[Command::SetSysctl { name, value }]).unwrap();
}

const C1: &str = "198.51.100.7:20001";
const SERVICE: &str = "10.200.1.1:80";

#[test]
fn each_way_is_told_with_its_reason() {
    let mut d = director("");
    let answer = ask(&d, C1, SERVICE);
    assert_eq!(
        (answer.way, answer.why.as_str()),
        (Way::LocalStack, "there is no service at all")
    );

    d.ipvsadm("-A -t 10.200.1.1:80 -s rr").unwrap();
    let answer = ask(&d, C1, "10.200.1.1:81");
    assert_eq!(
        (answer.way, answer.why.as_str()),
        (Way::LocalStack, "no service has TCP 10.200.1.1:81")
    );
    assert_eq!(ask(&d, C1, "10.200.1.9:80").way, Way::Kernel);
    let answer = ask(&d, C1, SERVICE);
    assert_eq!(
        (answer.way, answer.drop_reason.as_deref()),
        (Way::Dropped, Some("no_destination"))
    );

    d.ipvsadm(
        "-a -t 10.200.1.1:80 -r 172.16.0.11:8080 -m -x 1; -a -t 10.200.1.1:80 -r 172.16.0.12:8080 -m -w 0;
         -a -t 10.200.1.1:80 -r 172.16.0.13:8080 -m",
    )
    .unwrap();
    let answer = ask(&d, C1, SERVICE);
    let server = answer.server.clone().unwrap();
    assert_eq!(
        (answer.way, server.server.to_string().as_str()),
        (Way::Scheduler, "172.16.0.13:8080")
    );
    let HopReport::Hop {
        interface,
        to,
        source,
        mtu,
    } = &server.next_hop
    else {
        panic!("{server:?}")
    };
    assert_eq!(
        (interface.as_str(), to.as_str(), source.to_string().as_str(), *mtu),
        ("d1", "02:00:00:00:00:a3", "172.16.0.1", 1500)
    );
    assert!(answer.notes[0].starts_with("only a SYN"), "{answer}");

    d.inject(CLIENT_SIDE, &tcp(CLIENT, VIP, (20001, 80), "S"), Offload::default());
    d.inject(CLIENT_SIDE, &tcp(CLIENT, VIP, (20002, 80), "S"), Offload::default());
    let answer = ask(&d, C1, SERVICE);
    let entry = answer.entry.clone().unwrap();
    assert_eq!(
        (answer.way, entry.state.as_str(), entry.expires_s),
        (Way::Connection, "SYN_RECV", 59)
    );
    let text = answer.to_string();
    for part in [
        "TCP 198.51.100.7:20001 > 10.200.1.1:80\nto the server of its connection: a known connection",
        "\nservice: TCP 10.200.1.1:80, scheduler rr\n",
        "\nserver: 172.16.0.13:8080 Masq, by d1 to 02:00:00:00:00:a3, from 172.16.0.1, MTU 1500\n",
        "\n  172.16.0.12:8080 Masq weight 0, 0 active, 0 inactive, not available: weight 0: quiesced\n",
        "\n  172.16.0.11:8080 Masq weight 1, 1 active, 0 inactive, not available: overloaded: thresholds -x 1 -y 0\n",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }

    let answer = ask(&d, "172.16.0.11:8080", "198.51.100.7:20002");
    assert_eq!(
        (answer.way, answer.service.as_deref()),
        (Way::Reply, Some("TCP 10.200.1.1:80"))
    );
    let answer = ask(&d, "172.16.0.11:8080", "198.51.100.7:20003");
    assert_eq!(
        (answer.way, answer.drop_reason.as_deref()),
        (Way::Dropped, Some("no_connection"))
    );

    d.ipvsadm("-d -t 10.200.1.1:80 -r 172.16.0.13:8080").unwrap();
    let answer = ask(&d, C1, SERVICE);
    assert_eq!(
        (answer.way, answer.drop_reason.as_deref()),
        (Way::Dropped, Some("destination_gone"))
    );
    sysctl(&mut d, "expire_nodest_conn");
    let answer = ask(&d, C1, SERVICE);
    assert_eq!(answer.drop_reason.as_deref(), Some("no_destination"), "{answer}");
    assert!(answer.notes[0].contains("expire_nodest_conn"), "{answer}");
}

#[test]
fn templates_and_their_end() {
    let mut d = director(
        "-A -t 10.200.1.1:80 -s rr -p 60 -M 255.255.255.0; -a -t 10.200.1.1:80 -r 172.16.0.11 -g; -a -t 10.200.1.1:80 -r 172.16.0.12 -g",
    );
    d.inject(CLIENT_SIDE, &tcp(CLIENT, VIP, (20001, 80), "S"), Offload::default());
    let answer = ask(&d, "198.51.100.99:1", SERVICE);
    assert_eq!(answer.way, Way::Template);
    assert_eq!(answer.entry.as_ref().unwrap().client.to_string(), "198.51.100.0:0");
    let first = answer.server.unwrap().server;
    assert_eq!(ask(&d, "198.51.101.99:1", SERVICE).way, Way::Scheduler);
    d.ipvsadm(&format!("-e -t 10.200.1.1:80 -r {first} -g -w 0")).unwrap();
    assert_eq!(
        ask(&d, "198.51.100.99:1", SERVICE).way,
        Way::Template,
        "quiesced, and still it wins"
    );
    sysctl(&mut d, "expire_quiescent_template");
    let answer = ask(&d, "198.51.100.99:1", SERVICE);
    assert_eq!(answer.way, Way::Scheduler);
    assert!(answer.server.unwrap().server != first && answer.notes[0].contains("holds no more"));
}

#[test]
fn a_closed_connection_may_begin_anew_and_lots_are_not_foretold() {
    let mut d = director(
        "-A -t 10.200.1.1:80 -s twos; -a -t 10.200.1.1:80 -r 172.16.0.11 -g; -a -t 10.200.1.1:80 -r 172.16.0.12 -g",
    );
    let answer = ask(&d, C1, SERVICE);
    assert_eq!((answer.way, answer.servers.len()), (Way::Chance, 2));
    d.inject(CLIENT_SIDE, &tcp(CLIENT, VIP, (20001, 80), "S"), Offload::default());
    let mut reset = tcp(CLIENT, VIP, (20001, 80), "A");
    reset[47] = 4;
    let sum = {
        reset[50..52].fill(0);
        let flow = crate::packet::FlowKey::v4(Protocol::TCP, u32::from_be_bytes(CLIENT), u32::from_be_bytes(VIP), 0);
        let sum = crate::packet::checksum::pseudo_header(&flow, 20) + crate::packet::checksum::sum(&reset[34..]);
        !crate::packet::checksum::fold(sum)
    };
    reset[50..52].copy_from_slice(&sum.to_be_bytes());
    d.inject(CLIENT_SIDE, &tcp(CLIENT, VIP, (20001, 80), "A"), Offload::default());
    d.inject(CLIENT_SIDE, &reset, Offload::default());
    let answer = ask(&d, C1, SERVICE);
    assert_eq!(answer.entry.as_ref().unwrap().state, "CLOSE");
    assert!(answer.notes[0].starts_with("a SYN begins it anew"), "{answer}");
}

/// How: with every scheduler that does not draw lots, two directors get the same clients and edits; one is asked before each
/// client. Goal: what it said happens, and both went the same way.
#[test]
fn what_is_foretold_happens_and_asking_moves_nothing() {
    for name in scheduler::NAMES.iter().filter(|name| **name != "twos") {
        let mut rules = format!("-A -t 10.200.1.1:80 -s {name};");
        for (server, weight) in [(11, 1), (12, 2), (13, 5), (14, 0)] {
            rules.push_str(&format!("-a -t 10.200.1.1:80 -r 172.16.0.{server} -g -w {weight};"));
        }
        let (mut asked, mut left_alone) = (director(&rules), director(&rules));
        for n in 0..60u16 {
            if n % 13 == 12 {
                let edit = format!("-e -t 10.200.1.1:80 -r 172.16.0.{} -g -w {}", 11 + n % 4, n % 3);
                asked.ipvsadm(&edit).unwrap();
                left_alone.ipvsadm(&edit).unwrap();
            }
            let client = [198, 51, 100, n as u8];
            let text = format!("198.51.100.{n}:{}", 3000 + n);
            for _ in 0..3 {
                ask(&asked, &text, SERVICE);
            }
            let foretold = ask(&asked, &text, SERVICE);
            let frame = tcp(client, VIP, (3000 + n, 80), "S");
            let outcome = asked.inject(CLIENT_SIDE, &frame, Offload::default());
            let other = left_alone.inject(CLIENT_SIDE, &frame, Offload::default());
            assert_eq!(
                outcome.sent.first().map(|s| s.1[5]),
                other.sent.first().map(|s| s.1[5]),
                "{name}, client {n}"
            );
            match foretold.server {
                Some(server) => {
                    let std::net::IpAddr::V4(address) = server.server.ip() else {
                        panic!()
                    };
                    let (interface, frame) = &outcome.sent[0];
                    assert_eq!(
                        (*interface, frame[5]),
                        (SERVER_SIDE, 0xa0 + address.octets()[3] - 10),
                        "{name}, client {n}"
                    );
                }
                None => assert_eq!(outcome.sent[0].0, CLIENT_SIDE, "{name}, client {n}: refused"),
            }
        }
    }
}

#[test]
fn a_question_that_makes_no_sense_is_refused() {
    for (protocol, client, vip, expected) in [
        ("icmp", C1, SERVICE, "PROTO: \"icmp\" is none of tcp, udp, sctp"),
        (
            "tcp",
            "198.51.100.7",
            SERVICE,
            "CLIENT:PORT: \"198.51.100.7\" is not ADDRESS:PORT",
        ),
        ("tcp", C1, "10.200.1.1:http", "VIP:PORT: \"10.200.1.1:http\" is not"),
        ("tcp", "[::1]:1", SERVICE, "are of two families"),
    ] {
        let error = Question::parse(protocol, client, vip).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    assert!(Question::parse("TCP", "[2001:db8::7]:1", "[fd00::1]:80").is_ok());
}

/// A firewall mark's service comes before that of the address, here as in the data plane.
#[test]
fn a_marked_flow_goes_to_the_service_of_its_mark() {
    let mut d = director("-A -t 10.200.1.1:80 -s rr; -A -f 7 -s rr; -a -f 7 -r 172.16.0.11:0 -m");
    let toml = "[[mark]]\nmark = 7\nprotocol = \"tcp\"\ndestination = \"10.200.1.1\"\ndestination_port = \"80\"\n";
    let config = crate::control::config::parse("marks".as_ref(), toml, |_| Ok(vec![])).unwrap();
    let rules = config.desired.marks().to_vec();
    d.apply(&[Command::SetMarks { rules }]).unwrap();
    let answer = ask(&d, C1, SERVICE);
    assert_eq!(
        (answer.way, answer.service.as_deref()),
        (Way::Scheduler, Some("FWM 7")),
        "{answer:?}"
    );
    // Unmarked: the address's service, which has no server.
    d.apply(&[Command::SetMarks { rules: vec![] }]).unwrap();
    let answer = ask(&d, C1, SERVICE);
    assert_eq!(answer.service.as_deref(), Some("TCP 10.200.1.1:80"), "{answer:?}");
}
