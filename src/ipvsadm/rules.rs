//! Rules as `ipvsadm -S` writes them: a command line without the program's name on each line.
//!
//! ```text
//! -A -t 10.0.0.1:80 -s wlc
//! -a -t 10.0.0.1:80 -r 10.1.0.1:80 -g -w 1
//! ```
//!
//! Words are separated by blanks; there is no quoting. A file may also hold empty lines and lines that begin with `#`,
//! which `ipvsadm-restore` takes out as well; `-R` itself takes `#` for a word, as ipvsadm does.

use super::invocation::Invocation;
use super::names::{Names, SystemNames};
use super::parse::parse;
use crate::control::config::RulesError;
use crate::control::protocol::Command;

/// Reads a file of rules: each command with its line (a [`RulesParser`](crate::control::config::RulesParser)). Names
/// are this machine's.
pub fn parse_file(text: &str) -> Result<Vec<(usize, Command)>, RulesError> {
    parse_with(text, &SystemNames::default())
}

/// The words of one line. The word `ipvsadm` is passed over, so that scripts can be fed in.
pub(super) fn words(line: &str) -> Vec<String> {
    let words = line
        .split([' ', '\t', '\r'])
        .filter(|word| !word.is_empty() && *word != "ipvsadm");
    words.map(str::to_owned).collect()
}

/// Without the comment lines, as `ipvsadm-restore` feeds them to `-R`.
pub(super) fn without_comments(text: &str) -> String {
    text.split_inclusive('\n')
        .filter(|line| !line.starts_with('#'))
        .collect()
}

fn parse_with(text: &str, names: &dyn Names) -> Result<Vec<(usize, Command)>, RulesError> {
    let mut commands = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let words = words(line);
        if words.is_empty() || words[0].starts_with('#') {
            continue;
        }
        let error = |message: &str| RulesError {
            line: number,
            reason: format!("{message} (in `{}')", line.trim()),
        };
        match parse("ipvsadm", &words, names) {
            Ok(Invocation::Change(command)) => commands.push((number, command)),
            Ok(_) => {
                return Err(error(
                    "only rules that change the table can stand here, such as -A and -a",
                ));
            }
            Err(fault) => return Err(error(fault.message.trim_end())),
        }
    }
    Ok(commands)
}

#[cfg(test)]
mod tests {
    use super::super::names::testing::RecordedNames;
    use super::*;

    #[test]
    fn a_file_of_rules_becomes_commands() {
        let text = "# saved\n\n-A -t 10.0.0.1:80 -s rr\r\n  -a -t 10.0.0.1:80 -r rs1.example.com:http -m\n\
                    ipvsadm -A -f 7\n   # indented\n--set 1 2 3";
        let commands = parse_with(text, &RecordedNames::new()).unwrap();
        assert_eq!(commands.len(), 4);
        assert!(matches!(&commands[0], (3, Command::AddService(service)) if service.scheduler == "rr"));
        assert!(matches!(&commands[1], (4, Command::AddDestination { destination, .. }) if destination.key.port == 80));
        assert!(matches!(&commands[3], (7, Command::SetTimeouts(timeouts)) if timeouts.udp == 3));
    }

    fn fault(text: &str) -> String {
        let error = parse_with(text, &RecordedNames::new()).unwrap_err();
        format!("{}: {}", error.line, error.reason)
    }

    #[test]
    fn a_fault_names_line_and_reason() {
        for (text, expected) in [
            (
                "-C\n-A -t 1.2.3.4 -s rr",
                "2: Zero port specified for non-persistent service (in `-A -t 1.2.3.4 -s rr')",
            ),
            (
                "-A -t 1.2.3.4:80 -q",
                "1: -q: unknown option (in `-A -t 1.2.3.4:80 -q')",
            ),
            (
                "foo",
                "1: Try `ipvsadm -h' or 'ipvsadm --help' for more information. (in `foo')",
            ),
            (
                "-L",
                "1: only rules that change the table can stand here, such as -A and -a (in `-L')",
            ),
            ("-A -6 -f 7", "1: -6 used before -f (in `-A -6 -f 7')"),
        ] {
            assert_eq!(fault(text), expected);
        }
    }
}
