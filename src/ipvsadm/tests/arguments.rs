//! Arguments against the calls that ipvsadm 1.31 was recorded to make of them (`tests/kernel/usage.json`).

use super::*;

#[derive(Deserialize)]
struct Usage {
    vectors: Vec<UsageVector>,
}

#[derive(Deserialize)]
struct UsageVector {
    args: Vec<String>,
    #[serde(default)]
    stdin: String,
    rc: u8,
    stdout: String,
    stderr: String,
    calls: Vec<serde_json::Value>,
}

/// Accepts every change, as the recording did, and has an empty table.
#[derive(Default)]
struct YesMan(Vec<Command>);

impl Transport for YesMan {
    fn call(&mut self, request: &Request) -> Result<Reply, ClientError> {
        if let Request::Apply { commands, .. } = request {
            self.0.extend(commands.iter().cloned());
            return Ok(Reply::Applied {
                results: vec![None; commands.len()],
                unsaved: None,
            });
        }
        InMemory::default().call(request)
    }
}

#[test]
fn arguments_mean_what_they_mean_to_ipvsadm() {
    let usage: Usage = serde_json::from_str(include_str!("../../../tests/kernel/usage.json")).unwrap();
    assert!(usage.vectors.len() > 300);
    for vector in usage.vectors {
        let mut control = YesMan::default();
        let (arguments, stdin) = (&vector.args, &mut vector.stdin.as_bytes());
        let found = run(
            Program::Ipvsadm,
            "ipvsadm",
            arguments,
            stdin,
            &mut control,
            &RecordedNames::new(),
        );
        let line = format!("ipvsadm {arguments:?} < {:?}", vector.stdin);
        // The recording's table had no service at all, so its listing of one failed; that is another test's business.
        assert_eq!(found, outcome(&vector.stdout, &vector.stderr, vector.rc), "{line}");
        let calls: Vec<_> = control.0.iter().map(call).collect();
        assert_eq!(calls, vector.calls, "{line}");
    }
}

/// A command as the recording shows IPVS calls.
fn call(command: &Command) -> serde_json::Value {
    use serde_json::json;
    let plain = |key: &ServiceKey| {
        service_of(&Service {
            key: *key,
            scheduler: String::new(),
            scheduler_flags: Vec::new(),
            persistence: None,
            one_packet: false,
            persistence_engine: None,
        })
    };
    let server = |destination: &crate::service::Destination| {
        json!({
            "address": destination.key.address, "port": destination.key.port,
            "method": match destination.method { Method::Route => "route", Method::Masq => "masq", Method::Tunnel => "tunnel" },
            "weight": destination.weight,
            "upper_threshold": destination.upper_threshold, "lower_threshold": destination.lower_threshold,
        })
    };
    match command {
        Command::AddService(service) => json!({"call": "add_service", "service": service_of(service)}),
        Command::EditService(service) => json!({"call": "edit_service", "service": service_of(service)}),
        Command::DeleteService { service } => json!({"call": "delete_service", "service": plain(service)}),
        Command::Clear => json!({"call": "clear"}),
        Command::AddDestination { service, destination } => {
            json!({"call": "add_destination", "service": plain(service), "destination": server(destination)})
        }
        Command::EditDestination { service, destination } => {
            json!({"call": "edit_destination", "service": plain(service), "destination": server(destination)})
        }
        Command::DeleteDestination {
            service,
            destination: key,
        } => json!({
            "call": "delete_destination", "service": plain(service),
            "destination": {"address": key.address, "port": key.port, "method": "route", "weight": 1,
                            "upper_threshold": 0, "lower_threshold": 0},
        }),
        Command::Zero { service: Some(service) } => json!({"call": "zero", "service": plain(service)}),
        Command::Zero { service: None } => json!({"call": "zero", "service": {
            "protocol": 0, "address": "0.0.0.0", "port": 0, "fwmark": 0, "scheduler": "", "flags": 0, "timeout": 0,
            "netmask": "255.255.255.255"}}),
        Command::SetTimeouts(t) => json!({"call": "set_timeouts", "timeouts": [t.tcp, t.tcp_fin, t.udp]}),
        Command::SetSysctl { .. } | Command::SetMssClamp { .. } => unreachable!("ipvsadm sets no such"),
        Command::AddMark { .. } | Command::DeleteMark { .. } | Command::SetMarks { .. } => {
            unreachable!("ipvsadm has no classifier")
        }
    }
}

fn service_of(service: &Service) -> serde_json::Value {
    let (protocol, address, port, mark) = match service.key {
        ServiceKey::Address {
            protocol,
            address,
            port,
        } => (protocol.number().0, address, port, 0),
        ServiceKey::FwMark { mark, .. } => (6, IpAddr::from([0; 4]), 0, mark),
    };
    let names = [
        ["flag-1", "sh-fallback", "mh-fallback"],
        ["flag-2", "sh-port", "mh-port"],
        ["flag-3"; 3],
    ];
    let bit = |flag: &String| 8 << names.iter().position(|names| names.contains(&flag.as_str())).unwrap();
    let flags: u32 = service.scheduler_flags.iter().map(bit).sum();
    let mask = service.persistence.map_or(u32::MAX, |persistence| persistence.mask);
    serde_json::json!({
        "protocol": protocol, "address": address, "port": port, "fwmark": mark, "scheduler": service.scheduler,
        "flags": flags + u32::from(service.persistence.is_some()) + 4 * u32::from(service.one_packet),
        "timeout": service.persistence.map_or(0, |persistence| persistence.timeout_s),
        "netmask": std::net::Ipv4Addr::from_bits(mask),
    })
}
