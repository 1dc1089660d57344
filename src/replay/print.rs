//! A replay for people.

use std::io::{self, Write};

use super::why::{Account, Fate};
use super::{Event, Summary};

/// Before the frames of a case.
pub fn case_begin(out: &mut dyn Write, name: &str) -> io::Result<()> {
    writeln!(out, "case {name}")
}

/// After them.
pub fn case_end(out: &mut dyn Write, as_recorded: Option<bool>) -> io::Result<()> {
    writeln!(
        out,
        "{}\n",
        match as_recorded {
            Some(true) => "as recorded",
            Some(false) => "DIFFERENT from what was recorded",
            None => "nothing was recorded to compare with",
        }
    )
}

/// One frame.
pub fn event(out: &mut dyn Write, event: &Event) -> io::Result<()> {
    writeln!(
        out,
        "{:>6} {:>11.6}  {} < {}",
        event.frame, event.time_s, event.interface, event.packet
    )?;
    if let Some(reason) = &event.skipped {
        writeln!(out, "{INDENT}not put in: {reason}")?;
    }
    if let Some(account) = &event.account {
        fate(out, account)?;
    }
    if let Some(difference) = &event.difference {
        writeln!(
            out,
            "{INDENT}DIFFERENT: {}",
            difference.replace('\n', &format!("\n{INDENT}"))
        )?;
    }
    Ok(())
}

/// The last line.
pub fn summary(out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
    let Summary {
        frames,
        skipped,
        cases,
        different,
    } = summary;
    write!(out, "{frames} frames")?;
    if *skipped > 0 {
        write!(out, ", {skipped} more not put in")?;
    }
    if *cases > 0 {
        write!(out, ", {cases} cases, {different} different from what was recorded")?;
    }
    writeln!(out)
}

const INDENT: &str = "                    ";

fn fate(out: &mut dyn Write, account: &Account) -> io::Result<()> {
    for left in &account.left {
        writeln!(out, "{INDENT}{} > {} to {}", left.interface, left.packet, left.to)?;
    }
    let what = match (account.fate, account.drop_reason) {
        (Fate::Sent, _) => String::new(),
        (Fate::Held, _) => String::new(),
        (Fate::HandedBack, _) => "handed back: ".to_owned(),
        (Fate::Dropped, reason) => format!("dropped, {}: ", reason.unwrap_or("for no reason")),
    };
    writeln!(out, "{INDENT}{what}{}", account.why)?;
    let state = match (account.state_before, account.state, account.expires_s) {
        (Some(before), Some(after), Some(seconds)) if before != after => {
            Some(format!("{before} -> {after}, {seconds} s"))
        }
        (_, Some(state), Some(seconds)) => Some(format!("{state}, {seconds} s")),
        _ => None,
    };
    let server = match (account.server, account.method) {
        (Some(server), Some(method)) => Some(format!("server {server} {method}")),
        _ => None,
    };
    let service = account.service.as_ref().map(|service| match &account.scheduler {
        Some(scheduler) => format!("service {service} {scheduler}"),
        None => format!("service {service}"),
    });
    let known: Vec<String> = [service, server, state].into_iter().flatten().collect();
    if !known.is_empty() {
        writeln!(out, "{INDENT}{}", known.join(", "))?;
    }
    Ok(())
}
