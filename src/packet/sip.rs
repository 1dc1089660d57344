//! The Call-ID of a SIP message (RFC 3261 section 20.8), which names a call: what the persistence engine `sip` goes by.
//!
//! ```text
//! INVITE sip:bob@example.com SIP/2.0\r\n      the first line is no header
//! Call-ID: f81d4fae@192.0.2.1\r\n             or `call-id :`, or compact, `i:`
//! ```
//!
//! The kernel's rules (`ip_vs_pe_sip`, `nf_conntrack_sip`), not all of the RFC's: blanks in front of the value may be
//! there, between it and the end of its line not; the first such header decides; headers are looked for in the body too.

/// Longest Call-ID that counts, in bytes: a longer one is as good as none.
pub const CALL_ID_LEN_MAX: usize = 255;

const NAME: &[u8] = b"call-id";

/// The Call-ID in the payload of a datagram.
pub fn call_id(payload: &[u8]) -> Option<&[u8]> {
    let mut rest = payload;
    loop {
        let line_end = rest.iter().position(|byte| is_line_end(*byte))?;
        rest = after_line_end(&rest[line_end..]);
        let Some(behind_name) = skip_name(rest) else { continue };
        let value = skip_blanks(skip_blanks(behind_name)?.strip_prefix(b":")?)?;
        let length = value_len(value);
        if length == 0 {
            continue;
        }
        let ends = value.get(length).is_some_and(|byte| is_line_end(*byte));
        return (ends && length <= CALL_ID_LEN_MAX).then(|| &value[..length]);
    }
}

/// Whether a text can be a Call-ID that counts.
pub fn is_call_id(text: &[u8]) -> bool {
    value_len(text) == text.len() && (1..=CALL_ID_LEN_MAX).contains(&text.len())
}

fn is_line_end(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

/// What follows CR LF, CR or LF, the first of which is there.
fn after_line_end(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\r\n").unwrap_or(&bytes[1..])
}

/// What follows the header's name. The compact one is no beginning of another's.
fn skip_name(line: &[u8]) -> Option<&[u8]> {
    match line.split_at_checked(NAME.len()) {
        Some((name, rest)) if name.eq_ignore_ascii_case(NAME) => Some(rest),
        _ => match line {
            [b'i' | b'I', rest @ ..] if rest.first().is_some_and(|next| !next.is_ascii_alphabetic()) => Some(rest),
            _ => None,
        },
    }
}

/// Also over the end of a line that the next one continues; `None`: the line ends.
fn skip_blanks(mut bytes: &[u8]) -> Option<&[u8]> {
    loop {
        let blanks = bytes.iter().take_while(|byte| **byte == b' ').count();
        bytes = &bytes[blanks..];
        if !bytes.first().is_some_and(|byte| is_line_end(*byte)) {
            return Some(bytes);
        }
        let next = after_line_end(bytes);
        let indent = next.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        if indent == 0 {
            return None;
        }
        bytes = &next[indent..];
    }
}

/// RFC 3261 section 25.1: `callid = word [ "@" word ]`. 0: it is none.
fn value_len(value: &[u8]) -> usize {
    let word = |bytes: &[u8]| bytes.iter().take_while(|byte| is_word(**byte)).count();
    let local = word(value);
    match value.get(local) {
        Some(b'@') if local != 0 => match word(&value[local + 1..]) {
            0 => 0,
            host => local + 1 + host,
        },
        _ => local,
    }
}

/// As the kernel has it: with a comma, without an apostrophe.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!\"%()*+,-./:<>?[\\]_`{}~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(headers: &str) -> Option<String> {
        let message = format!("OPTIONS sip:a@example.com SIP/2.0\r\nVia: SIP/2.0/UDP x\r\n{headers}");
        let id = call_id(message.as_bytes())?;
        Some(String::from_utf8(id.to_vec()).expect("ASCII"))
    }

    #[test]
    fn every_way_to_write_it() {
        for headers in [
            "Call-ID: a1@h\r\n",
            "call-id: a1@h\r\n",
            "CALL-ID:a1@h\r\nCSeq: 1\r\n",
            "Call-ID  :   a1@h\n",
            "Call-ID: a1@h\r",
            "i: a1@h\r\n",
            "I:a1@h\r\n",
            "Call-ID:\r\n  a1@h\r\n",
            "Call-ID\r\n\t: a1@h\r\n",
            "Subject: one\r\n Call-ID: folded@h\r\nCall-ID: a1@h\r\n",
            "Identity: other\r\nCall-ID: a1@h\r\n",
            "Call-ID: @h\r\nCall-ID: a1@h\r\n",
            "\r\nCall-ID: a1@h\r\n",
            "Call-ID: a1@h\r\nCall-ID: second@h\r\n",
        ] {
            assert_eq!(found(headers).as_deref(), Some("a1@h"), "{headers:?}");
        }
        let odd = "-.!%*_+`~()<>:\\\"/[]?{},09azAZ";
        assert_eq!(found(&format!("Call-ID: {odd}\r\n")).as_deref(), Some(odd));
    }

    #[test]
    fn what_is_none() {
        for headers in [
            "",
            "CSeq: 1 OPTIONS\r\n",
            "X-Call-ID: a1@h\r\n",
            "Call-ID: \r\n",
            "Call-ID:\r\nCSeq: 1\r\n",
            "Call-ID a1@h\r\n",
            "Call-IDs: a1@h\r\n",
            "Call-ID: a1@\r\n",
            "Call-ID: a1@h \r\n",
            "Call-ID: a b\r\n",
            "Call-ID: a'b\r\n",
            "Call-ID: a1@h@g\r\n",
            "Call-ID:\ta1@h\r\n",
            "in: a1@h\r\n",
            "i",
        ] {
            assert_eq!(found(headers), None, "{headers:?}");
        }
        assert_eq!(call_id(b""), None);
        assert_eq!(call_id(b"Call-ID: a1@h\r\n"), None, "the first line is no header");
        assert_eq!(call_id(b"\r\nCall-ID: a1@h\r\n"), Some(&b"a1@h"[..]));
    }

    /// How: a message cut off at every byte. Goal: nothing is read beyond the end, and a Call-ID counts only when its line has
    /// ended, as it may go on in what is not there.
    #[test]
    fn at_the_end_of_the_datagram() {
        let message = b"BYE sip:a@b SIP/2.0\r\nCall-ID: 12345@host\r\n";
        let ended = message.len() - 1;
        for end in 0..=message.len() {
            let wanted = (end >= ended).then_some(&b"12345@host"[..]);
            assert_eq!(call_id(&message[..end]), wanted, "{end} bytes");
        }
    }

    #[test]
    fn up_to_255_bytes() {
        for (length, counts) in [(1, true), (255, true), (256, false), (1400, false)] {
            let id = "x".repeat(length);
            assert_eq!(found(&format!("Call-ID: {id}\r\n")), counts.then_some(id), "{length}");
        }
    }
}
