//! TCP states as IPVS keeps them: not the endpoints' state machine (RFC 9293), but what one in the middle can tell.
//!
//! A NAT connection is seen from both sides; Route and Tunnel show the client's packets only, and have a table of
//! their own. Neither checks sequence numbers.

use super::State::{
    Close as CL, CloseWait as CW, Established as ES, FinWait as FW, LastAck as LA, Listen as LI, SynAck as SA,
    SynRecv as SR, SynSent as SS, TimeWait as TW,
};
use super::state::{Sides, State};
use crate::packet::TcpFlags;
use crate::service::Method;

/// What of a segment matters, strongest first: RST, SYN, FIN, ACK.
const SYN: usize = 0;
const FIN: usize = 1;
const ACK: usize = 2;
const RST: usize = 3;
const NOTHING: usize = 4;
const SYN_EVENT: u8 = SYN as u8;
const FIN_EVENT: u8 = FIN as u8;
const ACK_EVENT: u8 = ACK as u8;
const RST_EVENT: u8 = RST as u8;

/// Event by the low five flag bits (PSH is among them and changes nothing).
const EVENTS: [u8; 32] = {
    let mut events = [NOTHING as u8; 32];
    let mut flags = 0;
    while flags < 32 {
        let f = flags as u8;
        events[flags] = if f & TcpFlags::RST != 0 {
            RST as u8
        } else if f & TcpFlags::SYN != 0 {
            SYN as u8
        } else if f & TcpFlags::FIN != 0 {
            FIN as u8
        } else if f & TcpFlags::ACK != 0 {
            ACK as u8
        } else {
            NOTHING as u8
        };
        flags += 1;
    }
    events
};

const STATES: usize = 11;

/// Next state by side, event and state (None, Established, SynSent, SynRecv, FinWait, TimeWait, Close, CloseWait,
/// LastAck, Listen, SynAck). The states that the recorded matrix reaches are checked against it.
#[rustfmt::skip]
const NEXT: [[[State; STATES]; 5]; 3] = [
    // Client, two-sided.
    [
        /* SYN  */ [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR],
        /* FIN  */ [CL, CW, SS, TW, TW, TW, CL, CW, LA, LI, TW],
        /* ACK  */ [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
        /* RST  */ [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, SR],
        /* none */ [CL; STATES],
    ],
    // Server.
    [
        /* SYN  */ [SS, ES, SS, SR, SS, SS, SS, SS, SS, LI, SR],
        /* FIN  */ [TW, FW, SS, TW, FW, TW, CL, TW, LA, LI, TW],
        /* ACK  */ [ES, ES, SS, ES, FW, TW, CL, CW, LA, ES, ES],
        /* RST  */ [CL, CL, SS, CL, CL, TW, CL, CL, CL, CL, CL],
        /* none */ [CL; STATES],
    ],
    // Client, one-sided.
    [
        /* SYN  */ [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR],
        /* FIN  */ [CL, FW, SS, TW, FW, TW, CL, CW, LA, LI, TW],
        /* ACK  */ [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
        /* RST  */ [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL],
        /* none */ [CL; STATES],
    ],
];

/// The state after a segment.
#[inline]
pub fn next(state: State, sides: Sides, flags: TcpFlags) -> State {
    let event = EVENTS[(flags.0 & 31) as usize];
    let row = &NEXT[sides as usize][event as usize];
    match row.get(state as usize) {
        Some(next) => *next,
        None => State::Close, // a UDP state: no such entry exists
    }
}

/// The same with `secure_tcp`: what a client alone sends establishes nothing where its server is seen too. The server's
/// SYN makes SYN_RECV a SYNACK, and only its next segment ends that (or the client's RST). Where the server is not seen, a SYN
/// leads to SYNACK at once.
#[inline]
pub fn next_secure(state: State, sides: Sides, flags: TcpFlags) -> State {
    let event = EVENTS[(flags.0 & 31) as usize];
    match (sides, event, state) {
        (Sides::Client, ACK_EVENT, SR) => SR,
        (Sides::Client, SYN_EVENT | FIN_EVENT | ACK_EVENT, SA) => SA,
        (Sides::Client, RST_EVENT, SA) => CL,
        (Sides::Server, SYN_EVENT, SR | SA) => SA,
        (Sides::ClientOnly, SYN_EVENT, SR | ES | SS) => next(state, sides, flags),
        (Sides::ClientOnly, SYN_EVENT, _) => SA,
        _ => next(state, sides, flags),
    }
}

/// A segment of an unknown connection makes an entry: SYN without RST.
#[inline]
pub fn may_create(flags: TcpFlags) -> bool {
    flags.any(TcpFlags::SYN) && !flags.any(TcpFlags::RST)
}

/// The same with `sloppy_tcp`: anything but RST.
#[inline]
pub fn may_create_sloppy(flags: TcpFlags) -> bool {
    !flags.any(TcpFlags::RST)
}

/// A SYN on an entry in this state starts a new connection, which is scheduled anew; the caller removes the entry first.
/// `conn_reuse_mode` 0: never; 1: on TIME_WAIT and CLOSE; with bit 2 also on FIN_WAIT seen one-sided. The caller
/// does not ask for entries that a persistence template controls: those always keep their destination.
#[inline]
pub fn reusable(state: State, method: Method, flags: TcpFlags, conn_reuse_mode: i32) -> bool {
    if conn_reuse_mode == 0 || !may_create(flags) {
        return false;
    }
    match state {
        State::TimeWait | State::Close => true,
        State::FinWait => conn_reuse_mode & 2 != 0 && method != Method::Masq,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::Direction;

    /// Why: the recorded matrix is the law. How: `tests/kernel/tcp-states.txt` holds the kernel's answers, one start
    /// state a heading (reached by the segments in its parentheses), one event a line.
    const RECORDED: &str = include_str!("../../tests/kernel/tcp-states.txt");

    fn state(name: &str) -> State {
        *State::ALL
            .iter()
            .find(|s| s.name() == name)
            .unwrap_or_else(|| panic!("no state {name}"))
    }

    fn flags(letters: &str) -> TcpFlags {
        letters.chars().fold(TcpFlags(0), |f, c| {
            TcpFlags(
                f.0 | match c {
                    'S' => TcpFlags::SYN,
                    'A' => TcpFlags::ACK,
                    'F' => TcpFlags::FIN,
                    'R' => TcpFlags::RST,
                    'P' => 0x08,
                    other => panic!("no flag {other}"),
                },
            )
        })
    }

    /// `s:FA` with the method that was recorded.
    fn segment(text: &str, method: Method) -> (Sides, TcpFlags) {
        let (who, letters) = text.split_once(':').expect("side:flags");
        let direction = if who == "s" {
            Direction::Reply
        } else {
            Direction::Forward
        };
        (Sides::of(method, direction), flags(letters))
    }

    /// `ESTABLISHED(900)@13` to the state and its seconds.
    fn outcome(text: &str) -> (State, u32) {
        let (name, rest) = text.split_once('(').expect("STATE(seconds)");
        let seconds = rest.split(')').next().expect("closed").parse().expect("seconds");
        (state(name), seconds)
    }

    #[test]
    fn every_recorded_transition_and_timeout() {
        let (mut method, mut matrix, mut now, mut checked) = (Method::Masq, false, State::None, 0);
        for line in RECORDED.lines() {
            if let Some(title) = line.strip_prefix("##### ") {
                matrix = title.contains("transition matrix");
                method = match title {
                    t if t.starts_with("DR") => Method::Route,
                    t if t.starts_with("TUN") => Method::Tunnel,
                    _ => Method::Masq,
                };
                now = State::None;
            } else if let Some((_, start)) = line.split_once("start=") {
                now = outcome(start).0;
            } else if let Some((event, after)) = line.split_once("->") {
                let (sides, flags) = segment(event.trim(), method);
                let (expected, seconds) = outcome(after.trim());
                let got = next(now, sides, flags);
                assert_eq!(got, expected, "{method:?} {now:?} {event}");
                assert_eq!(got.timeout_default_s(), seconds, "{got:?}");
                checked += 1;
                if !matrix {
                    now = got;
                }
            }
        }
        assert_eq!(checked, 160, "the recorded file lost or gained lines");
    }

    #[test]
    fn every_recorded_state_with_secure_tcp() {
        const OPEN: &str = "c:S s:SA c:A";
        let mut checked = 0;
        for line in RECORDED.lines() {
            let Some((how, after)) = line
                .trim()
                .strip_prefix("secure_tcp=3: ")
                .and_then(|rest| rest.split_once(' '))
            else {
                continue;
            };
            let segments = match how {
                "SYN_RECV(S)" => "c:S".to_owned(),
                "SYN_RECV(S,SA)" => "c:S s:SA".to_owned(),
                "ESTABLISHED" => OPEN.to_owned(),
                "CLOSE_WAIT?(cFIN)" => format!("{OPEN} c:FA"),
                "FIN_WAIT?(sFIN)" => format!("{OPEN} s:FA"),
                "TIME_WAIT(cFIN,sFIN)" => format!("{OPEN} c:FA s:FA"),
                "TIME_WAIT(sFIN,cFIN)" => format!("{OPEN} s:FA c:FA"),
                "CLOSE(cRST)" => format!("{OPEN} c:R"),
                other => panic!("{other}"),
            };
            let expected = outcome(after.trim());
            let got = segments.split(' ').fold(State::None, |now, text| {
                let (sides, flags) = segment(text, Method::Masq);
                next_secure(now, sides, flags)
            });
            assert_eq!((got, got.timeout_default_s()), expected, "{how}");
            checked += 1;
        }
        assert_eq!(checked, 8, "the recorded file lost or gained lines");
    }

    #[test]
    fn secure_tcp_ends_in_established_all_the_same() {
        for (method, segments) in [
            (Method::Masq, "c:S s:SA c:A s:A"),
            (Method::Route, "c:S c:A"),
            (Method::Tunnel, "c:S c:S c:A"),
        ] {
            let end = segments.split(' ').fold(State::None, |now, text| {
                let (sides, flags) = segment(text, method);
                next_secure(now, sides, flags)
            });
            assert_eq!(end, State::Established, "{method:?}");
        }
    }

    #[test]
    fn plain_segments_leave_established_alone() {
        for bits in 0..=255 {
            let f = TcpFlags(bits);
            for sides in [Sides::Client, Sides::Server, Sides::ClientOnly] {
                if f.is_plain() {
                    assert_eq!(next(State::Established, sides, f), State::Established);
                    assert_eq!(next_secure(State::Established, sides, f), State::Established);
                }
            }
        }
        assert!(flags("PA").is_plain() && !flags("").is_plain() && !flags("SA").is_plain());
    }

    #[test]
    fn who_may_create() {
        for (letters, strict, sloppy) in [
            ("S", true, None),
            ("SA", true, Some(State::SynRecv)),
            ("SF", true, Some(State::SynRecv)),
            ("A", false, Some(State::Established)),
            ("PA", false, Some(State::Established)),
            ("FA", false, Some(State::Close)),
            ("", false, None),
        ] {
            let f = flags(letters);
            assert_eq!(may_create(f), strict, "{letters}");
            if let Some(expected) = sloppy {
                assert!(may_create_sloppy(f));
                assert_eq!(next(State::None, Sides::Client, f), expected, "{letters}");
            }
        }
        assert!(!may_create(flags("R")) && !may_create_sloppy(flags("R")));
        assert!(!may_create(flags("SR")));
    }

    #[test]
    fn reuse_by_mode() {
        let syn = flags("S");
        let reused = |mode, method| -> Vec<_> {
            let all = State::ALL.iter().copied();
            all.filter(|s| reusable(*s, method, syn, mode)).collect()
        };
        assert_eq!(reused(0, Method::Masq), []);
        assert_eq!(reused(1, Method::Masq), [State::TimeWait, State::Close]);
        assert_eq!(reused(2, Method::Masq), [State::TimeWait, State::Close]);
        assert_eq!(
            reused(2, Method::Route),
            [State::FinWait, State::TimeWait, State::Close]
        );
        assert!(!reusable(State::Close, Method::Masq, flags("A"), 1));
    }
}
