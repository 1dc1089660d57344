//! Commands against the kernel's answers, refusals included.

use super::*;
use crate::service::{TransportProtocol, Tunnel};

fn key(address: &str, port: u16) -> ServiceKey {
    ServiceKey::Address {
        protocol: TransportProtocol::Tcp,
        address: address.parse().unwrap(),
        port,
    }
}

fn service(key: ServiceKey, scheduler: &str) -> Service {
    Service {
        key,
        scheduler: scheduler.to_owned(),
        scheduler_flags: vec![],
        persistence: None,
        one_packet: false,
        persistence_engine: None,
    }
}

fn destination(address: &str, port: u16, method: Method) -> Destination {
    Destination {
        key: DestinationKey {
            address: address.parse().unwrap(),
            port,
        },
        method,
        weight: 1,
        upper_threshold: 0,
        lower_threshold: 0,
        tunnel: Tunnel::default(),
    }
}

fn add(service: ServiceKey, destination: Destination) -> Command {
    Command::AddDestination { service, destination }
}

fn with(commands: &[Command]) -> State {
    let applied = State::default().apply_all(commands, false);
    assert_eq!(applied.results, vec![None; commands.len()]);
    applied.state
}

fn addresses(state: &State, service: &ServiceKey) -> Vec<String> {
    let entry = state.service(service).unwrap();
    entry
        .destinations()
        .map(|d| format!("{}:{}", d.key.address, d.key.port))
        .collect()
}

#[test]
fn destinations_are_newest_first_and_edits_keep_their_place() {
    let web = key("10.0.0.1", 80);
    let mut commands = vec![Command::AddService(service(web, "rr"))];
    for n in 1..=3 {
        commands.push(add(web, destination(&format!("10.1.0.{n}"), 80, Method::Masq)));
    }
    let mut heavier = destination("10.1.0.2", 80, Method::Masq);
    heavier.weight = 9;
    commands.push(Command::EditDestination {
        service: web,
        destination: heavier,
    });
    let state = with(&commands);
    assert_eq!(addresses(&state, &web), ["10.1.0.3:80", "10.1.0.2:80", "10.1.0.1:80"]);
    assert_eq!(state.service(&web).unwrap().destinations().nth(1).unwrap().weight, 9);

    let gone = Command::DeleteDestination {
        service: web,
        destination: destination("10.1.0.1", 80, Method::Masq).key,
    };
    let (state, _) = state.apply(&gone).unwrap();
    let (state, _) = state
        .apply(&add(web, destination("10.1.0.1", 80, Method::Masq)))
        .unwrap();
    assert_eq!(addresses(&state, &web), ["10.1.0.1:80", "10.1.0.3:80", "10.1.0.2:80"]);
    assert_eq!(state.destinations_count(), 3);
}

#[test]
fn the_kernels_refusals() {
    let web = key("10.0.0.1", 80);
    let state = with(&[
        Command::AddService(service(web, "wlc")),
        add(web, destination("10.1.0.1", 80, Method::Route)),
    ]);
    let refused = |command: Command| state.apply(&command).unwrap_err();
    let other = key("10.0.0.2", 80);
    let there = destination("10.1.0.9", 80, Method::Masq);

    use CommandError::*;
    assert_eq!(refused(Command::AddService(service(web, "rr"))), ServiceExists);
    assert_eq!(refused(Command::EditService(service(other, "rr"))), NoSuchService);
    assert_eq!(refused(Command::DeleteService { service: other }), NoSuchService);
    assert_eq!(refused(Command::Zero { service: Some(other) }), NoSuchService);
    assert_eq!(
        refused(Command::AddService(service(other, "nonsense"))),
        NoSuchScheduler
    );
    assert_eq!(refused(Command::EditService(service(web, "nonsense"))), NoSuchScheduler);
    assert_eq!(refused(add(other, there.clone())), NoSuchService);
    // Route has the service's port, so 8080 is the same server once more.
    assert_eq!(
        refused(add(web, destination("10.1.0.1", 8080, Method::Route))),
        DestinationExists
    );
    assert_eq!(
        refused(add(web, destination("10.1.0.1", 80, Method::Tunnel))),
        DestinationExists
    );
    assert_eq!(
        refused(Command::EditDestination {
            service: web,
            destination: there.clone()
        }),
        NoSuchDestination
    );
    assert_eq!(
        refused(Command::DeleteDestination {
            service: web,
            destination: there.key
        }),
        NoSuchDestination
    );
    for (weight, upper, lower) in [(1, 5, 6), (1, 0, 1), (WEIGHT_MAX + 1, 0, 0)] {
        let mut bad = there.clone();
        (bad.weight, bad.upper_threshold, bad.lower_threshold) = (weight, upper, lower);
        assert_eq!(refused(add(web, bad)), OutOfRange);
    }
}

#[test]
fn bad_values_are_refused_with_their_reason() {
    let web = key("10.0.0.1", 80);
    let state = with(&[Command::AddService(service(web, "wlc"))]);
    let reason = |command: Command| match state.apply(&command) {
        Err(CommandError::Invalid(reason)) => reason,
        other => panic!("{command:?} gave {other:?}"),
    };
    let mark = ServiceKey::FwMark { mark: 0, ipv6: false };
    assert!(reason(Command::AddService(service(mark, "rr"))).contains("mark"));
    assert!(reason(Command::AddService(service(key("10.0.0.1", 0), "rr"))).contains("port 0"));
    let mut flagged = service(key("10.0.0.1", 81), "rr");
    flagged.scheduler_flags.push("rr-fast".to_owned());
    assert!(reason(Command::AddService(flagged)).contains("rr-fast"));
    for (address, timeout_s, mask, word) in [
        ("10.0.0.1", 0, 24, "timeout"),
        ("10.0.0.1", 2_678_401, 24, "timeout"),
        ("2001:db8::1", 300, 0, "prefix"),
        ("2001:db8::1", 300, 129, "prefix"),
    ] {
        let mut persistent = service(key(address, 443), "rr");
        persistent.persistence = Some(Persistence { timeout_s, mask });
        assert!(reason(Command::AddService(persistent)).contains(word));
    }
    for address in ["224.0.0.1", "255.255.255.255", "0.0.0.0"] {
        assert!(reason(add(web, destination(address, 80, Method::Masq))).contains(address));
    }
    assert!(reason(add(web, destination("2001:db8::5", 80, Method::Masq))).contains("family"));
    assert!(reason(add(web, destination("fe80::5", 80, Method::Tunnel))).contains("fe80::5"));
    let mut gue = destination("10.1.0.1", 80, Method::Tunnel);
    gue.tunnel.kind = TunnelKind::Gue;
    assert!(reason(add(web, gue)).contains("GUE"));
    let sysctl = Command::SetSysctl {
        name: "nonsense".to_owned(),
        value: "1".to_owned(),
    };
    assert!(reason(sysctl).contains("net.ipv4.vs.nonsense"));
}

#[test]
fn other_families_by_tunnel_and_marks_keep_ports() {
    let web = key("10.0.0.1", 80);
    let mark = ServiceKey::FwMark { mark: 7, ipv6: false };
    let state = with(&[
        Command::AddService(service(web, "wlc")),
        Command::AddService(service(mark, "wlc")),
        add(web, destination("2001:db8::9", 8080, Method::Tunnel)),
        add(mark, destination("10.1.0.2", 8080, Method::Route)),
        add(web, destination("127.0.0.1", 8080, Method::Route)),
    ]);
    assert_eq!(addresses(&state, &web), ["127.0.0.1:80", "2001:db8::9:80"]);
    assert_eq!(addresses(&state, &mark), ["10.1.0.2:8080"]);
}

#[test]
fn set_keeps_zeroes_and_all_or_nothing_undoes() {
    let timeouts = |tcp, tcp_fin, udp| Command::SetTimeouts(Timeouts { tcp, tcp_fin, udp });
    let state = with(&[timeouts(100, 0, 30)]);
    assert_eq!(
        state.timeouts,
        Timeouts {
            tcp: 100,
            tcp_fin: 120,
            udp: 30
        }
    );
    assert!(state.apply(&timeouts(2_678_401, 0, 0)).is_err());

    let web = key("10.0.0.1", 80);
    let batch = [
        Command::AddService(service(web, "rr")),
        Command::AddService(service(web, "rr")),
        Command::Zero { service: None },
    ];
    let applied = state.apply_all(&batch, true);
    assert_eq!(applied.results, [None, Some(CommandError::ServiceExists)]);
    assert_eq!((applied.state, applied.effects), (state.clone(), vec![]));
    let applied = state.apply_all(&batch, false);
    assert_eq!(applied.results, [None, Some(CommandError::ServiceExists), None]);
    assert_eq!(applied.effects, [Effect::Zero(None)]);
    assert!(applied.state.service(&web).is_some());
}

#[test]
fn commands_make_the_same_state_again() {
    let (web, mail) = (key("10.0.0.2", 80), key("10.0.0.1", 25));
    let state = with(&[
        Command::AddService(service(web, "rr")),
        Command::AddService(service(mail, "rr")),
        Command::DeleteService { service: web },
        Command::AddService(service(web, "sh")),
        add(web, destination("10.1.0.1", 80, Method::Masq)),
        add(web, destination("10.1.0.2", 80, Method::Masq)),
        Command::SetSysctl {
            name: "sloppy_tcp".to_owned(),
            value: "1".to_owned(),
        },
        Command::SetTimeouts(Timeouts {
            tcp: 0,
            tcp_fin: 60,
            udp: 0,
        }),
    ]);
    let again = with(&state.commands());
    assert_eq!(again.commands(), state.commands());
    assert_eq!(addresses(&again, &web), ["10.1.0.2:80", "10.1.0.1:80"]);
    assert_eq!(again.services().map(|e| e.service.key).collect::<Vec<_>>(), [mail, web]);
    let (empty, _) = again.apply(&Command::Clear).unwrap();
    assert_eq!((empty.services().len(), empty.destinations_count()), (0, 0));
    assert_eq!(empty.timeouts.tcp_fin, 60);
}

/// 1,000 services with 10 destinations each in one batch, then one weight among them.
#[test]
fn a_large_restore_and_one_edit_are_quick() {
    let mut commands = Vec::new();
    for n in 0..1000u32 {
        let vip = IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a00_0000 + n)).to_string();
        commands.push(Command::AddService(service(key(&vip, 80), "wlc")));
        for server in 1..=10 {
            commands.push(add(
                key(&vip, 80),
                destination(&format!("10.1.0.{server}"), 80, Method::Masq),
            ));
        }
    }
    let start = std::time::Instant::now();
    let state = with(&commands);
    let restore = start.elapsed();
    assert_eq!((state.services().len(), state.destinations_count()), (1000, 10_000));

    let mut edited = destination("10.1.0.5", 80, Method::Masq);
    edited.weight = 7;
    let edit = Command::EditDestination {
        service: key("10.0.1.44", 80),
        destination: edited,
    };
    let start = std::time::Instant::now();
    let (after, _) = state.apply(&edit).unwrap();
    println!("11,000 commands: {restore:?}; one weight: {:?}", start.elapsed());
    let shared = state
        .services()
        .zip(after.services())
        .filter(|(a, b)| Arc::ptr_eq(a, b))
        .count();
    assert_eq!(shared, 999);
}

proptest::proptest! {
    /// Goal: what two states do not share is found. How: both come from one by commands of their own, so that services were deleted,
    /// added again under the same name or number, edited and cleared on either side; compared with a search for each.
    #[test]
    fn services_changed_are_those_that_are_not_shared(
        draw in proptest::collection::vec((0usize..3, 0u8..5, 1u16..6), 0..60),
    ) {
        let mut states = [State::default(), State::default()];
        for (which, what, port) in draw {
            let key = key("10.0.0.1", port);
            let command = match what {
                0 => Command::DeleteService { service: key },
                1 => Command::EditService(service(key, "wlc")),
                2 if port == 1 => Command::Clear,
                _ => Command::AddService(service(key, "rr")),
            };
            // Refused ones change nothing. The third draw is of a history that both have.
            match states.get_mut(which) {
                Some(state) => *state = state.apply_all(&[command], false).state,
                None => {
                    let common = states[0].apply_all(&[command], false).state;
                    states = [common.clone(), common];
                }
            }
        }
        for (a, b) in [(&states[0], &states[1]), (&states[1], &states[0])] {
            let is_shared = |entry: &&Arc<ServiceEntry>| b.services().any(|there| Arc::ptr_eq(there, entry));
            let expected: Vec<_> = a.services().filter(|entry| !is_shared(entry)).map(Arc::as_ptr).collect();
            let found: Vec<_> = a.services_changed(b).map(Arc::as_ptr).collect();
            proptest::prop_assert_eq!(found, expected);
        }
    }
}
