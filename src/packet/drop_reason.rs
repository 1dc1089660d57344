//! Why a frame went no further. One variant a reason; each is counted in one place and shown by `uvs stats`.

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:literal,)+) => {
        /// Why a frame was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[doc = $doc])+ $variant,)+ }

        impl DropReason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)+];

            /// The name in `uvs stats` and metrics.
            pub fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)+ }
            }

            /// What it means, for an operator.
            pub fn explanation(self) -> &'static str {
                match self { $(DropReason::$variant => concat!($($doc,)+).trim_ascii_start(),)+ }
            }
        }
    };
}

drop_reasons! {
    /// Shorter than its headers, or than the lengths in them.
    Truncated => "truncated",
    /// IPv4 header with a wrong version, header length or total length; IPv6 with a wrong payload length.
    BadIpHeader => "bad_ip_header",
    /// The IPv4 header checksum is wrong.
    BadIpChecksum => "bad_ip_checksum",
    /// TCP data offset below 5 or past the end of the packet.
    BadTcpHeader => "bad_tcp_header",
    /// UDP length below 8 or past the end of the packet.
    BadUdpHeader => "bad_udp_header",
    /// ICMP with a wrong checksum, or a quote too short to name a connection.
    BadIcmp => "bad_icmp",
    /// IPv4 source route option (RFC 7126 section 4.3).
    SourceRoute => "source_route",
    /// Not IPv4 or IPv6, or a VLAN tag where none is served.
    NotIp => "not_ip",
    /// A fragment whose datagram never became whole, or that overlaps another.
    Fragment => "fragment",
    /// No room to hold another fragment.
    FragmentMemory => "fragment_memory",
    /// TTL or hop limit used up; the sender got a time-exceeded.
    TtlExpired => "ttl_expired",
    /// A source address that no client can have: 0.0.0.0/8, loopback, multicast, broadcast, or the director's own.
    Martian => "martian",
    /// No usable destination: none, all of weight 0, or all over their threshold; the sender got port-unreachable, unless
    /// what it sent was an ICMP error (schedule_icmp).
    NoDestination => "no_destination",
    /// It would have begun a connection of a service with the persistence engine sip, and has no Call-ID: no SIP over UDP, or
    /// one that is longer than 255 bytes or does not end its line.
    NoCallId => "no_call_id",
    /// The connection's destination was removed from its service.
    DestinationGone => "destination_gone",
    /// No route to the destination; the sender got host-unreachable.
    NoRoute => "no_route",
    /// The next hop's link address is not known (yet).
    NoNeighbour => "no_neighbour",
    /// The route to the destination leaves by an interface that uvs was not given.
    ForeignInterface => "foreign_interface",
    /// NAT to another port of the director itself: its answers would never be translated back.
    LocalPort => "local_port",
    /// Larger than the MTU of its way; the sender got fragmentation-needed or packet-too-big.
    TooBig => "too_big",
    /// The connection table is full, and no connection in it is half-open or over (TIME_WAIT, CLOSE).
    TableFull => "table_full",
    /// It would have begun a connection, and drop_packet was at work.
    DropPacket => "drop_packet",
    /// A NAT destination's packet that belongs to no connection; never sent on with its private address. With
    /// nat_icmp_send the server got port-unreachable.
    NoConnection => "no_connection",
    /// A packet of an FTP control connection with a wrong checksum, or without room for the reply rewritten: what cannot
    /// be followed is not passed on.
    FtpControl => "ftp_control",
    /// An ICMP error about no known connection, or of a type that is not forwarded.
    IcmpUnrelated => "icmp_unrelated",
    /// No free frame buffer for what had to be sent.
    NoBuffer => "no_buffer",
    /// No headroom in front of the frame for an outer header.
    NoHeadroom => "no_headroom",
    /// The interface's transmit ring stayed full, or its driver refused the frame.
    TransmitFailed => "transmit_failed",
    /// The frame was for the local stack, and the tun device did not take it.
    HandBackFailed => "hand_back_failed",
}
