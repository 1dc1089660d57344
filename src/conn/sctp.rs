//! SCTP states as IPVS keeps them: what one in the middle can tell of an association (RFC 9260 section 4) by the chunk that
//! counts of each packet.
//!
//! ```text
//! client         server         NAT, seen from both sides     seen one-sided (Route, Tunnel)
//! INIT ────────►                INIT1 (INIT when repeated)    INIT1 (INIT)
//!       ◄──────── INIT ACK      C-SENT
//! COOKIE ECHO ─►                C-REPLIED                     ESTABLISHED
//!       ◄──────── COOKIE ACK    ESTABLISHED
//! SHUTDOWN ────►                S-RECEIVED                    S-RECEIVED
//!       ◄──── SHUTDOWN ACK      S-ACK-SENT
//! SHUTDOWN COMPLETE ►           CLOSED                        CLOSED
//! ```
//!
//! A server may begin too (C-WAIT, COOKIE, C-ECHOED), and end it (S-SENT). An INIT that is answered by ABORT leads to
//! REJECTED. Verification tags are not checked.

use super::State::{
    self, None as NO, SctpClosed as CL, SctpCookie as CO, SctpCookieEchoed as CE, SctpCookieReplied as CR,
    SctpCookieSent as CS, SctpCookieWait as CW, SctpEstablished as ES, SctpInit as IN, SctpInit1 as I1,
    SctpRejected as RJ, SctpShutdownAckSent as SA, SctpShutdownReceived as SR, SctpShutdownSent as SS,
};
use super::state::Sides;
use crate::packet::ChunkType;

/// What of a chunk matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// Data, its acknowledgement, heartbeats, and what is not known.
    Traffic,
    Init,
    InitAck,
    CookieEcho,
    CookieAck,
    Shutdown,
    ShutdownAck,
    ShutdownComplete,
    Error,
    Abort,
}

impl Event {
    fn of(chunk: ChunkType) -> Event {
        match chunk {
            ChunkType::INIT => Event::Init,
            ChunkType::INIT_ACK => Event::InitAck,
            ChunkType::COOKIE_ECHO => Event::CookieEcho,
            ChunkType::COOKIE_ACK => Event::CookieAck,
            ChunkType::SHUTDOWN => Event::Shutdown,
            ChunkType::SHUTDOWN_ACK => Event::ShutdownAck,
            ChunkType::SHUTDOWN_COMPLETE => Event::ShutdownComplete,
            ChunkType::ERROR => Event::Error,
            ChunkType::ABORT => Event::Abort,
            _ => Event::Traffic,
        }
    }
}

/// The state after a packet with this chunk. Without one it stays.
pub fn next(state: State, sides: Sides, chunk: Option<ChunkType>) -> State {
    let Some(chunk) = chunk else { return state };
    let event = Event::of(chunk);
    let moved = match sides {
        Sides::Client => by_client(event, state),
        Sides::Server => by_server(event, state),
        Sides::ClientOnly => by_client_alone(event, state),
    };
    moved.unwrap_or(state)
}

/// A client's packet when the server's are seen too. `None`: it changes nothing.
fn by_client(event: Event, state: State) -> Option<State> {
    Some(match (event, state) {
        (Event::Traffic, NO) => ES,
        (Event::Init, NO) => I1,
        (Event::Init, I1 | IN | RJ | CL) => IN,
        (Event::InitAck, NO | I1 | IN) => CW,
        (Event::InitAck, CW) => CO,
        (Event::CookieEcho, NO | CS) => CR,
        (Event::CookieEcho, I1) => IN,
        (Event::CookieAck, NO | CE) => ES,
        (Event::Shutdown, NO | ES) => SR,
        (Event::ShutdownAck, NO | SS | SA) => CL,
        (Event::ShutdownAck, I1) => IN,
        (Event::ShutdownComplete, NO | I1 | IN | SA) => CL,
        (Event::Error, NO | CE) => CL,
        (Event::Abort, CW) => RJ,
        (Event::Abort, _) => CL,
        _ => return None,
    })
}

/// A server's packet.
fn by_server(event: Event, state: State) -> Option<State> {
    Some(match (event, state) {
        (Event::Traffic, NO) => ES,
        (Event::Init, ES) => return None,
        (Event::Init, _) => CW,
        (Event::InitAck, NO | I1 | IN) => CS,
        (Event::CookieEcho, NO | I1 | IN | CS | CR | CW | CO) => CE,
        (Event::CookieAck, NO | I1 | IN | CS | CR | CW | CO | CE) => ES,
        (Event::Shutdown, NO | I1 | IN | CS | CR | CW | CO | CE | ES) => SS,
        (Event::ShutdownAck, NO | I1 | IN | CS | CR | SS | SR) => SA,
        (Event::ShutdownComplete, NO) => CL,
        (Event::Error, NO | I1 | IN | CS | CR) => CL,
        (Event::Abort, I1) => RJ,
        (Event::Abort, _) => CL,
        _ => return None,
    })
}

/// A client's packet when only those are seen.
fn by_client_alone(event: Event, state: State) -> Option<State> {
    Some(match (event, state) {
        (Event::Traffic, NO | CW) => ES,
        (Event::Init, NO) => I1,
        (Event::Init, I1 | IN | CS | CR | CW | RJ | CL) => IN,
        (Event::InitAck, NO | I1 | IN | CS | CR | CW) => CE,
        (Event::CookieEcho, NO | I1 | IN | CS | CR | CW) => ES,
        (Event::CookieAck, NO | CS | CR | CO | CE) => ES,
        (Event::Shutdown, NO | ES) => SR,
        (Event::ShutdownAck, NO | ES | SS | SA) => CL,
        (Event::ShutdownAck, I1) => IN,
        (Event::ShutdownComplete, NO | I1 | IN | CS | CR | SR | SA) => CL,
        (Event::Error, NO) => CL,
        (Event::Abort, CW) => RJ,
        (Event::Abort, _) => CL,
        _ => return None,
    })
}

/// A packet of an unknown connection makes an entry: INIT, and with `sloppy_sctp` anything but ABORT.
pub fn may_create(chunk: ChunkType, sloppy: bool) -> bool {
    chunk == ChunkType::INIT || sloppy && chunk != ChunkType::ABORT
}

/// An INIT on an entry in this state starts a new connection, as [`super::tcp::reusable`] says of TCP.
pub fn reusable(state: State, chunk: Option<ChunkType>, conn_reuse_mode: i32) -> bool {
    conn_reuse_mode != 0 && chunk == Some(ChunkType::INIT) && state == State::SctpClosed
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCTP_STATES: [State; 14] = [NO, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL];

    /// Where each event leads, by side, for the states in the order above; `-`: it stays. As Linux 6.1 publishes it
    /// (`ip_vs_proto_sctp`), in the words of `ipvsadm -Lnc` cut to three letters.
    const MATRIX: &str = "
        from               NON IN1 INI CSE CRE CWA COO CEC EST SSE SRE SAC REJ CLO

        client  DATA       EST -   -   -   -   -   -   -   -   -   -   -   -   -
        client  INIT       IN1 INI -   -   -   -   -   -   -   -   -   -   INI INI
        client  INIT_ACK   CWA CWA CWA -   -   COO -   -   -   -   -   -   -   -
        client  C_ECHO     CRE INI -   CRE -   -   -   -   -   -   -   -   -   -
        client  C_ACK      EST -   -   -   -   -   -   EST -   -   -   -   -   -
        client  SHUTDOWN   SRE -   -   -   -   -   -   -   SRE -   -   -   -   -
        client  S_ACK      CLO INI -   -   -   -   -   -   -   CLO -   CLO -   -
        client  S_COMPLETE CLO CLO CLO -   -   -   -   -   -   -   -   CLO -   -
        client  ERROR      CLO -   -   -   -   -   -   CLO -   -   -   -   -   -
        client  ABORT      CLO CLO CLO CLO CLO REJ CLO CLO CLO CLO CLO CLO CLO -

        server  DATA       EST -   -   -   -   -   -   -   -   -   -   -   -   -
        server  INIT       CWA CWA CWA CWA CWA -   CWA CWA -   CWA CWA CWA CWA CWA
        server  INIT_ACK   CSE CSE CSE -   -   -   -   -   -   -   -   -   -   -
        server  C_ECHO     CEC CEC CEC CEC CEC CEC CEC -   -   -   -   -   -   -
        server  C_ACK      EST EST EST EST EST EST EST EST -   -   -   -   -   -
        server  SHUTDOWN   SSE SSE SSE SSE SSE SSE SSE SSE SSE -   -   -   -   -
        server  S_ACK      SAC SAC SAC SAC SAC -   -   -   -   SAC SAC -   -   -
        server  S_COMPLETE CLO -   -   -   -   -   -   -   -   -   -   -   -   -
        server  ERROR      CLO CLO CLO CLO CLO -   -   -   -   -   -   -   -   -
        server  ABORT      CLO REJ CLO CLO CLO CLO CLO CLO CLO CLO CLO CLO CLO -

        alone   DATA       EST -   -   -   -   EST -   -   -   -   -   -   -   -
        alone   INIT       IN1 INI -   INI INI INI -   -   -   -   -   -   INI INI
        alone   INIT_ACK   CEC CEC CEC CEC CEC CEC -   -   -   -   -   -   -   -
        alone   C_ECHO     EST EST EST EST EST EST -   -   -   -   -   -   -   -
        alone   C_ACK      EST -   -   EST EST -   EST EST -   -   -   -   -   -
        alone   SHUTDOWN   SRE -   -   -   -   -   -   -   SRE -   -   -   -   -
        alone   S_ACK      CLO INI -   -   -   -   -   -   CLO CLO -   CLO -   -
        alone   S_COMPLETE CLO CLO CLO CLO CLO -   -   -   -   -   CLO CLO -   -
        alone   ERROR      CLO -   -   -   -   -   -   -   -   -   -   -   -   -
        alone   ABORT      CLO CLO CLO CLO CLO REJ CLO CLO CLO CLO CLO CLO CLO -
    ";

    fn chunk(name: &str) -> ChunkType {
        match name {
            "DATA" => ChunkType::DATA,
            "INIT" => ChunkType::INIT,
            "INIT_ACK" => ChunkType::INIT_ACK,
            "C_ECHO" => ChunkType::COOKIE_ECHO,
            "C_ACK" => ChunkType::COOKIE_ACK,
            "SHUTDOWN" => ChunkType::SHUTDOWN,
            "S_ACK" => ChunkType::SHUTDOWN_ACK,
            "S_COMPLETE" => ChunkType::SHUTDOWN_COMPLETE,
            "ERROR" => ChunkType::ERROR,
            "ABORT" => ChunkType::ABORT,
            other => panic!("no chunk {other}"),
        }
    }

    /// `INIT1` is `IN1`, `S-ACK-SENT` is `SAC`.
    fn short(state: State) -> String {
        match state {
            State::SctpInit1 => "IN1".to_owned(),
            other => other.name().replace('-', "").chars().take(3).collect(),
        }
    }

    #[test]
    fn every_transition() {
        let mut lines = MATRIX.lines().map(str::trim).filter(|line| !line.is_empty());
        let heading: Vec<_> = lines.next().expect("a heading").split_whitespace().skip(1).collect();
        assert_eq!(heading, SCTP_STATES.map(short));
        let mut checked = 0;
        for line in lines {
            let words: Vec<_> = line.split_whitespace().collect();
            let sides = match words[0] {
                "client" => Sides::Client,
                "server" => Sides::Server,
                _ => Sides::ClientOnly,
            };
            assert_eq!(words.len(), 2 + SCTP_STATES.len(), "{line}");
            for (from, to) in SCTP_STATES.into_iter().zip(&words[2..]) {
                let got = next(from, sides, Some(chunk(words[1])));
                let expected = if *to == "-" { short(from) } else { (*to).to_owned() };
                assert_eq!(short(got), expected, "{line}: from {from:?}");
                checked += 1;
            }
        }
        assert_eq!(checked, 3 * 10 * 14);
    }

    #[test]
    fn chunks_that_say_nothing_are_as_data() {
        for sides in [Sides::Client, Sides::Server, Sides::ClientOnly] {
            for state in SCTP_STATES {
                let known = [1, 2, 6, 7, 8, 9, 10, 11, 14];
                for kind in (0..=255).filter(|kind| !known.contains(kind)) {
                    let as_data = next(state, sides, Some(ChunkType::DATA));
                    assert_eq!(next(state, sides, Some(ChunkType(kind))), as_data);
                }
                assert_eq!(next(state, sides, None), state);
            }
        }
    }

    #[test]
    fn names_timeouts_and_counts() {
        let listed = SCTP_STATES.map(|state| (state.name(), state.timeout_default_s()));
        // One second more than is listed of a fresh entry, as all of the kernel's.
        let expected = [
            ("NONE", 3),
            ("INIT1", 4),
            ("INIT", 61),
            ("C-SENT", 61),
            ("C-REPLIED", 61),
            ("C-WAIT", 61),
            ("COOKIE", 61),
            ("C-ECHOED", 61),
            ("ESTABLISHED", 900),
            ("S-SENT", 61),
            ("S-RECEIVED", 61),
            ("S-ACK-SENT", 61),
            ("REJECTED", 4),
            ("CLOSED", 61),
        ];
        assert_eq!(listed, expected);
        let active: Vec<_> = SCTP_STATES.into_iter().filter(|state| state.is_active()).collect();
        assert_eq!(active, [ES]);
        let giving_way: Vec<_> = SCTP_STATES.into_iter().filter(|state| state.gives_way()).collect();
        assert_eq!(giving_way, [I1, IN, CS, CR, CW, CO, CE, RJ, CL]);
    }

    #[test]
    fn who_may_create_and_reuse() {
        for kind in (0..=255).map(ChunkType) {
            assert_eq!(may_create(kind, false), kind == ChunkType::INIT);
            assert_eq!(may_create(kind, true), kind != ChunkType::ABORT);
            for state in SCTP_STATES {
                let expected = kind == ChunkType::INIT && state == CL;
                assert_eq!(reusable(state, Some(kind), 1), expected);
                assert!(!reusable(state, Some(kind), 0));
            }
        }
        assert!(!reusable(CL, None, 1));
    }
}
