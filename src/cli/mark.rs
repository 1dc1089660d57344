//! `uvs mark`: the rules of the classifier, over any [`Transport`].

use std::str::FromStr;

use super::ask::{AskError, applied, refused};
use crate::control::client::Transport;
use crate::control::protocol::{Command, Reply, Request, WhichMark};
use crate::options::{MarkAction, MarkMatch};
use crate::service::{MarkError, MarkRule, TransportProtocol};

/// Carries it out.
pub fn mark(action: &MarkAction, transport: &mut dyn Transport) -> Result<String, AskError> {
    let command = match action {
        MarkAction::List(options) => return list(options.json, transport),
        MarkAction::Add(options) => Command::AddMark {
            rule: rule(&options.mark, &options.matching)?,
            at: options.at,
        },
        MarkAction::Delete(options) => Command::DeleteMark {
            which: match (options.number, &options.mark) {
                (Some(number), _) => WhichMark::Number(number),
                (None, Some(mark)) => WhichMark::Rule(rule(mark, &options.matching)?),
                (None, None) => {
                    return Err(AskError::Usage(
                        "delete: the rule or its --number is missing".to_owned(),
                    ));
                }
            },
        },
        MarkAction::Clear(_) => Command::SetMarks { rules: Vec::new() },
    };
    applied(command, transport).map(|()| String::new())
}

fn rule(mark: &str, matching: &MarkMatch) -> Result<MarkRule, AskError> {
    let rule = MarkRule {
        mark: number(mark)?,
        protocol: protocol(matching.protocol.as_deref())?,
        source: part("--source", &matching.source)?,
        source_port: part("--source-port", &matching.source_port)?,
        destination: part("--destination", &matching.destination)?,
        destination_port: part("--destination-port", &matching.destination_port)?,
        interface: matching.interface.clone(),
    };
    rule.check().map_err(|error| AskError::Usage(error.to_string()))?;
    Ok(rule)
}

/// Decimal, or hexadecimal as iptables and nft print it.
fn number(text: &str) -> Result<u32, AskError> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| AskError::Usage(format!("{text:?} is no mark: 1 to 4294967295, or 0x1 to 0xffffffff")))
}

fn protocol(name: Option<&str>) -> Result<Option<TransportProtocol>, AskError> {
    match name {
        None | Some("any" | "all") => Ok(None),
        Some(name) => match TransportProtocol::from_str(name) {
            Ok(protocol) => Ok(Some(protocol)),
            Err(_) => Err(AskError::Usage(format!(
                "--protocol {name:?} is none of any, tcp, udp, sctp"
            ))),
        },
    }
}

fn part<T: FromStr<Err = MarkError>>(option: &str, text: &Option<String>) -> Result<Option<T>, AskError> {
    let parsed = text.as_ref().map(|text| text.parse()).transpose();
    parsed.map_err(|error| AskError::Usage(format!("{option} {error}")))
}

fn list(json: bool, transport: &mut dyn Transport) -> Result<String, AskError> {
    match transport.call(&Request::Marks)? {
        Reply::Marks { rules } if json => {
            let text = serde_json::to_string(&rules).expect("rules have no maps with keys that JSON lacks");
            Ok(format!("{text}\n"))
        }
        Reply::Marks { rules } => Ok(table(&rules)),
        reply => Err(refused(reply)),
    }
}

/// One row a rule, `any` where it names nothing.
fn table(rules: &[MarkRule]) -> String {
    let or_any = |word: Option<String>| word.unwrap_or_else(|| "any".to_owned());
    let heads = [
        "Num",
        "Mark",
        "Protocol",
        "Source",
        "Port",
        "Destination",
        "Port",
        "Interface",
    ];
    let mut rows = vec![heads.map(str::to_owned)];
    rows.extend(rules.iter().enumerate().map(|(place, rule)| {
        [
            (place + 1).to_string(),
            rule.mark.to_string(),
            or_any(rule.protocol.map(|protocol| protocol.to_string())),
            or_any(rule.source.map(|prefix| prefix.to_string())),
            or_any(rule.source_port.map(|ports| ports.to_string())),
            or_any(rule.destination.map(|prefix| prefix.to_string())),
            or_any(rule.destination_port.map(|ports| ports.to_string())),
            or_any(rule.interface.clone()),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let cells: Vec<String> = (row.iter().zip(&widths))
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        out += cells.join("  ").trim_end();
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::control::client::ClientError;
    use crate::control::state::State;
    use crate::options::MarkOptions;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: MarkOptions,
    }

    #[derive(Default)]
    struct Daemon(State);

    impl Transport for Daemon {
        fn call(&mut self, request: &Request) -> Result<Reply, ClientError> {
            // As it goes over the socket.
            let request = serde_json::from_str(&serde_json::to_string(request).unwrap()).unwrap();
            let reply = match request {
                Request::Marks => Reply::Marks {
                    rules: self.0.marks().to_vec(),
                },
                Request::Apply { commands, .. } => {
                    let applied = self.0.apply_all(&commands, true);
                    self.0 = applied.state;
                    Reply::Applied {
                        results: applied.results,
                        unsaved: None,
                    }
                }
                other => panic!("{other:?}"),
            };
            Ok(serde_json::from_str(&serde_json::to_string(&reply).unwrap()).unwrap())
        }
    }

    fn run(daemon: &mut Daemon, line: &str) -> Result<String, String> {
        let words = std::iter::once("mark").chain(line.split_ascii_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        mark(&line.options.action, daemon).map_err(|error| error.to_string())
    }

    #[test]
    fn rules_are_added_listed_and_deleted() {
        let daemon = &mut Daemon::default();
        assert_eq!(
            run(daemon, "list").unwrap(),
            "Num  Mark  Protocol  Source  Port  Destination  Port  Interface\n"
        );
        run(daemon, "add 7 -p tcp -d 192.0.2.1 --dport 80").unwrap();
        run(
            daemon,
            "add 7 --protocol tcp --destination 192.0.2.1/32 --destination-port 443",
        )
        .unwrap();
        run(
            daemon,
            "add 0xffffffff -s 2001:db8::/32 --sport 1024:65535 -i eth0 --at 1",
        )
        .unwrap();
        assert_eq!(
            run(daemon, "list").unwrap(),
            "Num  Mark        Protocol  Source         Port        Destination  Port  Interface\n\
             1    4294967295  any       2001:db8::/32  1024-65535  any          any   eth0\n\
             2    7           tcp       any            any         192.0.2.1    80    any\n\
             3    7           tcp       any            any         192.0.2.1    443   any\n"
        );
        run(daemon, "delete -n 1").unwrap();
        run(daemon, "delete 7 -p tcp -d 192.0.2.1 --dport 443").unwrap();
        assert_eq!(
            run(daemon, "list --json").unwrap(),
            "[{\"mark\":7,\"protocol\":\"tcp\",\"destination\":\"192.0.2.1\",\"destination_port\":\"80\"}]\n"
        );
        run(daemon, "clear").unwrap();
        assert_eq!(run(daemon, "list --json").unwrap(), "[]\n");
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        let daemon = &mut Daemon::default();
        run(daemon, "add 7 -p tcp -d 192.0.2.1 --dport 80").unwrap();
        for (line, part) in [
            ("add 0 -p tcp", "a firewall mark is 1 to 4294967295, not 0"),
            ("add seven", "\"seven\" is no mark: 1 to 4294967295"),
            ("add 7 -p gre", "--protocol \"gre\" is none of any, tcp, udp, sctp"),
            (
                "add 7 -d 192.0.2.1/24",
                "--destination \"192.0.2.1/24\": bits are set beyond the prefix",
            ),
            (
                "add 7 --dport 90-80",
                "--destination-port \"90-80\": the range ends before it begins",
            ),
            ("add 7 -s ::1 -d 192.0.2.1", "different address families"),
            ("add 7 -p tcp -d 192.0.2.1 --dport 80", "rule number 1 is the same"),
            ("add 8 --at 3", "a rule cannot be number 3: there are 1"),
            ("delete -n 2", "there is no rule number 2: there are 1"),
            ("delete 7", "there is no rule `7`"),
            ("delete", "required"),
            ("delete 7 -n 1", "cannot be used with"),
        ] {
            let error = run(daemon, line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
