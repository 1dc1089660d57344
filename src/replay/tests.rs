//! `uvs replay` as a whole: files in, text, JSON and a capture out.

use std::path::PathBuf;

use super::*;
use crate::packet::testing;

const RULES: &str = "-A -t 10.200.1.1:80 -s rr\n-a -t 10.200.1.1:80 -r 172.16.0.11:8080 -m\n";
const KERNEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernel/packets.json");

struct Files {
    folder: tempfile::TempDir,
    options: ReplayOptions,
}

impl Files {
    fn new() -> Files {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Files {
            folder,
            options: ReplayOptions::default(),
        };
        files.options.rules = Some(files.write("rules", RULES.as_bytes()));
        files
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// A capture with one frame every 100 ms.
    fn capture(&mut self, frames: &[Vec<u8>]) {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file).unwrap();
        for (n, frame) in (0..).zip(frames) {
            writer
                .frame(1_700_000_000_000_000_000 + n * 100_000_000, frame)
                .unwrap();
        }
        self.options.file = self.write("in.pcap", &file);
    }

    fn run(&self) -> (Result<Summary, String>, String) {
        let mut out = Vec::new();
        let result = run(&self.options, &mut out).map_err(|error| error.to_string());
        (result, String::from_utf8(out).unwrap())
    }

    fn events(&mut self) -> Vec<serde_json::Value> {
        self.options.json = true;
        let (result, text) = self.run();
        result.unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

pub(super) fn tcp(from: [u8; 4], to: [u8; 4], ports: (u16, u16), flags: &str) -> Vec<u8> {
    let ip = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0xc0], [2, 0, 0, 0, 0, 0xd0]).ipv4(from, to, 64);
    let mut tcp = ip.tcp(ports.0, ports.1, 1, 9000);
    if flags.contains('S') {
        tcp = tcp.syn();
    }
    if flags.contains('A') {
        tcp = tcp.ack(1);
    }
    let mut bytes = Vec::new();
    tcp.write(&mut bytes, &[]).unwrap();
    bytes
}

pub(super) const CLIENT: [u8; 4] = [198, 51, 100, 7];
pub(super) const VIP: [u8; 4] = [10, 200, 1, 1];
const SERVER: [u8; 4] = [172, 16, 0, 11];

#[test]
fn a_capture_tells_where_each_frame_goes_and_why() {
    let mut files = Files::new();
    let mut sent_by_us = tcp(VIP, CLIENT, (80, 20001), "SA");
    sent_by_us[..12].rotate_left(6);
    let mut broken = tcp(CLIENT, VIP, (20002, 80), "S");
    broken[24] ^= 0xff;
    files.capture(&[
        tcp(CLIENT, VIP, (20001, 80), "S"),
        tcp(SERVER, CLIENT, (8080, 20001), "SA"),
        tcp(CLIENT, VIP, (20001, 80), "A"),
        sent_by_us,
        tcp(CLIENT, VIP, (20003, 80), "A"),
        tcp(CLIENT, VIP, (20003, 81), "S"),
        broken,
        tcp(SERVER, CLIENT, (8080, 20009), "A"),
    ]);
    files.options.write = Some(files.folder.path().join("out.pcap"));
    let events = files.events();
    let facts: Vec<_> = events
        .iter()
        .map(|e| {
            let text = |key: &str| e[key].as_str().unwrap_or("-").to_owned();
            [text("fate"), text("drop_reason"), text("state_before"), text("state")].join(" ")
        })
        .collect();
    assert_eq!(
        facts,
        [
            "sent - - SYN_RECV",
            "sent - SYN_RECV SYN_RECV",
            "sent - SYN_RECV ESTABLISHED",
            "- - - -",
            "handed_back - - -",
            "handed_back - - -",
            "dropped bad_ip_checksum - -",
            "dropped no_connection - -",
        ]
    );
    assert_eq!(events[0]["why"], "new connection: rr chose 172.16.0.11:8080 (Masq)");
    assert_eq!(
        (&events[0]["service"], &events[0]["scheduler"], &events[0]["server"]),
        (&"TCP 10.200.1.1:80".into(), &"rr".into(), &"172.16.0.11:8080".into())
    );
    assert_eq!(events[1]["why"], "known connection, server to client");
    assert_eq!(events[3]["skipped"], "eth0 sent it");
    assert!(
        events[4]["why"].as_str().unwrap().starts_with("no SYN"),
        "{}",
        events[4]
    );
    assert!(
        events[5]["why"].as_str().unwrap().starts_with("no service has this"),
        "{}",
        events[5]
    );
    assert_eq!(events[2]["time_s"], 0.2);
    let mut reader = Reader::open(files.options.write.as_ref().unwrap()).unwrap();
    let mut left = Vec::new();
    while let Some(frame) = reader.next_frame().unwrap() {
        left.push((frame.time_ns % 1_000_000_000, summary::describe(&frame.bytes)));
    }
    assert_eq!(left.len(), 3);
    assert_eq!(
        left[1],
        (
            100_000_000,
            "TCP 10.200.1.1:80 > 198.51.100.7:20001 S., 40 bytes".to_owned()
        )
    );
    files.options.json = false;
    let (result, text) = files.run();
    let summary = result.unwrap();
    assert_eq!((summary.frames, summary.skipped), (7, 1));
    assert!(text.contains("SYN_RECV -> ESTABLISHED, 8"), "{text}");
    assert!(text.ends_with("7 frames, 1 more not put in\n"), "{text}");
}

/// How: a connection in SYN_RECV (60 s), and its client's next packet 70 s later in the capture. Goal: the file's clock is
/// the director's.
#[test]
fn time_passes_as_in_the_file() {
    let mut files = Files::new();
    let mut file = Vec::new();
    let mut writer = Writer::new(&mut file).unwrap();
    for (second, flags) in [(0, "S"), (59, "A"), (200, "A"), (1200, "A")] {
        writer
            .frame(second * 1_000_000_000, &tcp(CLIENT, VIP, (20001, 80), flags))
            .unwrap();
    }
    files.options.file = files.write("in.pcap", &file);
    let fates: Vec<_> = files.events().iter().map(|e| e["fate"].clone()).collect();
    assert_eq!(fates, ["sent", "sent", "sent", "handed_back"]);
}

#[test]
fn templates_fragments_and_one_packet_are_told() {
    let mut files = Files::new();
    files.options.rules = Some(files.write(
        "rules",
        b"-A -t 10.200.1.1:80 -s rr -p 60\n-a -t 10.200.1.1:80 -r 172.16.0.11 -g\n\
          -A -u 10.200.1.1:53 -s wlc -o\n-a -u 10.200.1.1:53 -r 172.16.0.12 -g\n",
    ));
    let mut dns = testing::udp(
        etherparse::PacketBuilder::ethernet2([2; 6], [2, 0, 0, 0, 0, 0xd0]).ipv4(CLIENT, VIP, 64),
        b"?",
    );
    dns[36..38].copy_from_slice(&53u16.to_be_bytes());
    let mut piece = dns.clone();
    piece[20] |= 0x20;
    piece.resize(14 + 20 + 8, 0);
    piece[16..18].copy_from_slice(&28u16.to_be_bytes());
    testing::fix_ipv4(&mut piece);
    files.capture(&[
        tcp(CLIENT, VIP, (20001, 80), "S"),
        tcp(CLIENT, VIP, (20002, 80), "S"),
        dns,
        piece,
    ]);
    let events = files.events();
    let why: Vec<_> = events.iter().map(|e| e["why"].as_str().unwrap()).collect();
    assert_eq!(
        why,
        [
            "new connection: rr chose 172.16.0.11:80 (Route), and a persistence template keeps the client there",
            "new connection: the client's persistence template leads to 172.16.0.11:80 (Route)",
            "one-packet scheduling, which leaves no connection",
            "a fragment, held until its datagram is whole",
        ]
    );
    assert_eq!(
        (&events[2]["server"], &events[3]["fate"]),
        (&"172.16.0.12:53".into(), &"held".into())
    );
}

#[test]
fn calls_are_told() {
    let mut files = Files::new();
    files.options.rules = Some(files.write(
        "rules",
        b"-A -u 10.200.1.1:5060 -s rr -p 60 --pe sip\n-a -u 10.200.1.1:5060 -r 172.16.0.11 -m\n",
    ));
    let packet = |from, to, ports: (u16, u16), payload: &[u8]| {
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [2, 0, 0, 0, 0, 0xd0]).ipv4(from, to, 64);
        let mut bytes = Vec::new();
        builder.udp(ports.0, ports.1).write(&mut bytes, payload).unwrap();
        bytes
    };
    let server = [172, 16, 0, 11];
    files.capture(&[
        packet(CLIENT, VIP, (20001, 5060), b"BYE\r\nCall-ID: one\r\n"),
        packet(CLIENT, VIP, (20002, 5060), b"BYE\r\nCall-ID: one\r\n"),
        packet(CLIENT, VIP, (20003, 5060), b"BYE\r\nCall-ID: two\r\n"),
        packet(CLIENT, VIP, (20004, 5060), b"BYE\r\n"),
        packet(server, CLIENT, (5060, 20005), b"BYE\r\nCall-ID: two\r\n"),
    ]);
    let events = files.events();
    let why: Vec<_> = events.iter().map(|e| e["why"].as_str().unwrap()).collect();
    let chosen = "new connection: rr chose 172.16.0.11:5060 (Masq), and a persistence template keeps the client there";
    assert_eq!(why[0], chosen);
    assert_eq!(
        why[1],
        "new connection: the client's persistence template leads to 172.16.0.11:5060 (Masq)"
    );
    assert_eq!(why[2], chosen);
    assert!(why[3].contains("has no Call-ID"), "{}", why[3]);
    assert_eq!(events[3]["drop_reason"], "no_call_id");
    assert!(why[4].starts_with("translated; "), "{}", why[4]);
}

/// How: the recorded cases with their expected outputs, as they are and with one byte of one changed. Goal: the verdict is
/// about the bytes.
#[test]
fn cases_are_compared_with_what_was_recorded() {
    let mut files = Files::new();
    files.options.rules = None;
    let mut all: serde_json::Value = serde_json::from_slice(&std::fs::read(KERNEL).unwrap()).unwrap();
    let vectors = all["vectors"].as_array_mut().unwrap();
    vectors.truncate(5);
    let text = serde_json::to_vec(&all).unwrap();
    files.options.file = files.write("good.json", &text);
    let (result, printed) = files.run();
    assert_eq!(result.unwrap().different, 0, "{printed}");
    assert!(printed.contains("case ipvs-oracle/dr/v4/tcp-syn\n"), "{printed}");
    let output = &mut all["vectors"][0]["steps"][0]["outputs"][0]["hex"];
    let changed = output.as_str().unwrap().replacen("0200000000a1", "0200000000a2", 1);
    *output = changed.into();
    files.options.file = files.write("bad.json", &serde_json::to_vec(&all).unwrap());
    let (result, printed) = files.run();
    let summary = result.unwrap();
    assert_eq!((summary.cases, summary.different), (5, 1));
    assert!(printed.contains("DIFFERENT: other bytes"), "{printed}");
    assert!(
        printed.ends_with(", 5 cases, 1 different from what was recorded\n"),
        "{printed}"
    );
}

/// How: two services' packets of 1400 bytes with Don't Fragment, before and after the way to the servers got smaller; a case that cannot
/// be done is between them.
#[test]
fn cases_change_settings_and_mtus_and_do_without_an_impossible_one() {
    let mut files = Files::new();
    let step = |port: u16| {
        let mut frame = tcp([198, 51, 100, 7], [10, 200, 1, 1], (port, 80), "S");
        frame.resize(14 + 1400, 0);
        (frame[16], frame[17], frame[20]) = (5, 120, 0x40);
        frame[24..26].fill(0);
        let checksum = crate::packet::checksum::of(&frame[14..34]).to_be_bytes();
        frame[24..26].copy_from_slice(&checksum);
        format!(
            r#"{{"inject_on": "client_side", "input_hex": "{}"}}"#,
            cases::hex(&frame)
        )
    };
    let text = format!(
        r#"{{"vectors": [
            {{"name": "c1", "pre": ["reboot"], "steps": [{}]}},
            {{"name": "c2", "pre": ["sysctl -qw net.ipv4.vs.sloppy_tcp=1 net.ipv4.vs.pmtu_disc=0; ip link set dev d1 mtu 1399"],
              "steps": [{}, {{"command": "ip link set d1 mtu 1400; ipvsadm -Z"}}, {}]}}]}}"#,
        step(1),
        step(2),
        step(3)
    );
    files.options.file = files.write("x.json", text.as_bytes());
    files.options.json = true;
    let (result, text) = files.run();
    assert!(result.unwrap_err().contains("case c1: pre: `reboot'"));
    let events: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = events.iter().map(|event| (&event["frame"], &event["fate"])).collect();
    assert_eq!(
        told,
        [(&1.into(), &"dropped".into()), (&3.into(), &"sent".into())],
        "{text}"
    );
}

#[test]
fn what_is_wrong_is_said_with_place_and_reason() {
    let mut files = Files::new();
    files.capture(&[tcp(CLIENT, VIP, (20001, 80), "S")]);
    let good = files.options.clone();
    let case = |steps: &str| format!(r#"{{"vectors": [{{"name": "c1", "steps": [{steps}]}}]}}"#);
    let frame = "00".repeat(14);
    let json = |text: String| files.write("x.json", text.as_bytes());
    let changes: Vec<(ReplayOptions, &str)> = vec![
        (
            ReplayOptions {
                rules: None,
                ..good.clone()
            },
            "a capture needs --rules FILE",
        ),
        (
            ReplayOptions {
                rules: Some("/nonexistent".into()),
                ..good.clone()
            },
            "/nonexistent: No such file",
        ),
        (
            ReplayOptions {
                rules: Some(files.write("r", b"-A -t 1.2.3.4:80 -s nonsense")),
                ..good.clone()
            },
            "/r:1: Scheduler",
        ),
        (
            ReplayOptions {
                file: "/nonexistent".into(),
                ..good.clone()
            },
            "/nonexistent: No such file",
        ),
        (
            ReplayOptions {
                interfaces: vec!["eth0,mtu=1".into()],
                ..good.clone()
            },
            "--interfaces: interface `eth0,mtu=1': mtu",
        ),
        (
            ReplayOptions {
                write: Some("/nonexistent/x".into()),
                ..good.clone()
            },
            "/nonexistent/x: No such file",
        ),
        (
            ReplayOptions {
                write: Some(good.file.clone()),
                ..good.clone()
            },
            "that is the file to be read",
        ),
        (
            ReplayOptions {
                file: files.write("e", b""),
                ..good.clone()
            },
            "/e: the file is empty",
        ),
    ];
    for (options, expected) in changes {
        let error = run(&options, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    for (text, expected) in [
        ("{\n\"vectors\": 1}".to_owned(), "expected a sequence at line 2"),
        (case("{}"), "case c1, step 1: neither a command nor input_hex"),
        (
            case(r#"{"input_hex": "00"}"#),
            "step 1: input_hex: 1 bytes are no Ethernet frame",
        ),
        (
            case(r#"{"input_hex": "0g"}"#),
            "input_hex: \"0g\" at 0 is no hexadecimal number",
        ),
        (case(&format!(r#"{{"input_hex": "{frame}"}}"#)), "inject_on is missing"),
        (
            case(&format!(r#"{{"input_hex": "{frame}", "inject_on": "moon"}}"#)),
            "case c1: step 1: there is no interface moon",
        ),
        (
            case(r#"{"command": "-A -t nonsense"}"#),
            "case c1: step 1: `-A -t nonsense': ",
        ),
        (
            r#"{"vectors": [{"name": "c1", "pre": ["reboot"], "steps": []}]}"#.to_owned(),
            "case c1: pre: `reboot': only ipvsadm, `sysctl",
        ),
    ] {
        let options = ReplayOptions {
            file: json(text),
            rules: None,
            ..good.clone()
        };
        let error = run(&options, &mut Vec::new()).unwrap_err().to_string();
        assert!(
            error.contains("x.json: ") && error.contains(expected),
            "{expected}: {error}"
        );
    }
}
