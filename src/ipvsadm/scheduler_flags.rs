//! Scheduler flags (`-b`): three bits that `sh` and `mh` give names of their own.

use super::invocation::UsageError;
use crate::service::Service;

const PLAIN: [&str; 3] = ["flag-1", "flag-2", "flag-3"];
const NAMED: [(&str, [&str; 3]); 2] = [
    ("sh", ["sh-fallback", "sh-port", "flag-3"]),
    ("mh", ["mh-fallback", "mh-port", "flag-3"]),
];

/// The listed names of the three flags for a scheduler.
fn names_of(scheduler: &str) -> [&'static str; 3] {
    NAMED
        .iter()
        .find(|(name, _)| *name == scheduler)
        .map_or(PLAIN, |(_, names)| *names)
}

/// Reads a comma-separated list to listed names, in listing order.
pub fn parse(scheduler: &str, text: &str) -> Result<Vec<String>, UsageError> {
    let mut set = [false; 3];
    let mut words = text.split(',').filter(|word| !word.is_empty()).peekable();
    if words.peek().is_none() {
        // ipvsadm crashes here.
        return Err(UsageError::usage(format!("invalid scheduler flag `{text}'")));
    }
    for word in words {
        let plain = PLAIN.iter().position(|name| *name == word);
        let named = NAMED
            .iter()
            .find_map(|(of, names)| Some((*of, names.iter().position(|name| *name == word)?)));
        set[match (plain, named) {
            (Some(bit), _) => bit,
            (None, Some((of, bit))) if of == scheduler => bit,
            (None, Some(_)) => return Err(UsageError::usage(format!("incompatible scheduler flag `{word}'"))),
            (None, None) => return Err(UsageError::usage(format!("invalid scheduler flag `{word}'"))),
        }] = true;
    }
    let names = names_of(scheduler);
    Ok((0..3)
        .filter(|bit| set[*bit])
        .map(|bit| names[bit].to_owned())
        .collect())
}

/// The flags as listings and rules show them. `sh` and `mh` have no third flag: ipvsadm takes it and never shows it.
pub fn listed(service: &Service) -> Option<String> {
    let named = NAMED.iter().any(|(name, _)| *name == service.scheduler);
    let flags = service
        .scheduler_flags
        .iter()
        .map(String::as_str)
        .filter(|flag| !named || *flag != PLAIN[2]);
    let flags = flags.collect::<Vec<_>>().join(",");
    (!flags.is_empty()).then_some(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_have_the_schedulers_own_names() {
        for (scheduler, text, expected) in [
            ("sh", "sh-port,sh-fallback", Ok(vec!["sh-fallback", "sh-port"])),
            ("mh", "mh-port", Ok(vec!["mh-port"])),
            ("sh", "flag-1,flag-3", Ok(vec!["sh-fallback", "flag-3"])),
            ("rr", ",,flag-2,,flag-1", Ok(vec!["flag-1", "flag-2"])),
            ("rr", "sh-port", Err("incompatible scheduler flag `sh-port'")),
            ("mh", "flag-1,sh-port", Err("incompatible scheduler flag `sh-port'")),
            ("rr", "foo", Err("invalid scheduler flag `foo'")),
            ("rr", ",", Err("invalid scheduler flag `,'")),
        ] {
            let found = parse(scheduler, text).map_err(|error| error.message);
            let expected = expected.map(|names| names.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(found, expected.map_err(str::to_owned), "{scheduler} {text}");
        }
    }
}
