//! A frame in a buffer with headroom, as every driver hands it to the data plane.

/// The buffer ends before the wanted place: no headroom, or no tail room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

/// One Ethernet frame. Implemented by each driver's buffer type; the data plane is compiled once per driver.
pub trait Frame {
    /// The frame from its Ethernet header on. Valid frames only: at most 64 KiB.
    fn bytes(&self) -> &[u8];
    /// The same, to write.
    fn bytes_mut(&mut self) -> &mut [u8];
    /// Makes the frame start `n` bytes earlier; the new bytes hold anything. Drivers give at least
    /// [`HEADROOM_MIN`] bytes on frames received and allocated.
    fn grow_front(&mut self, n: usize) -> Result<(), NoRoom>;
    /// Makes the frame start `n` bytes later. Panics if it is shorter than that.
    fn shrink_front(&mut self, n: usize);
    /// Sets the length: cuts at the tail, or grows there by bytes that hold anything.
    fn set_len(&mut self, len: usize) -> Result<(), NoRoom>;
    /// What the driver said of checksums and segmentation.
    fn offload(&self) -> Offload;
    /// Says what the driver shall do on transmit. A driver that cannot segment or finish checksums never hands
    /// out frames that need it, so it may ignore what it never said.
    fn set_offload(&mut self, offload: Offload);
    /// Set when this is a datagram put together from fragments, which is cut again on its way out. Never on what a
    /// driver received.
    fn reassembled(&self) -> Option<Reassembled> {
        None
    }
}

/// What a datagram was put together from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reassembled {
    /// Length of the largest fragment as an IP packet.
    pub largest: u16,
    /// How many fragments there were; as many at least go out again, so that every frame is accounted for.
    pub pieces: u16,
}

/// Headroom that every driver guarantees: an IPv6 outer header (40) and room to spare for GUE and GRE.
pub const HEADROOM_MIN: usize = 64;

/// Per-frame metadata beside the bytes (virtio_net_hdr on packet sockets and tun; nothing on AF_XDP).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// State of the transport checksum.
    pub checksum: ChecksumOffload,
    /// Set when the frame is a super-frame that is cut into segments later (GSO).
    pub segmentation: Option<Segmentation>,
}

/// State of the transport (TCP, UDP, SCTP) checksum of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChecksumOffload {
    /// Nothing is known (AF_XDP; SCTP): the field is finished, or it holds the folded pseudo-header sum, SCTP's 0
    /// (a veth or virtio sender left it to hardware that does not exist). The data plane must look.
    #[default]
    Unknown,
    /// The field is final, or is to be forwarded as it is.
    Finished,
    /// The field at `start + offset` holds the pseudo-header sum only, and the driver finishes it on transmit
    /// by summing from `start` (both from the frame's first byte / from `start`, as in virtio_net_hdr). Never of SCTP.
    Unfinished {
        /// Where summing starts: the transport header, in bytes from the frame's start.
        start: u16,
        /// Where the field is, in bytes from `start`.
        offset: u16,
    },
}

/// How a super-frame is to be cut (virtio_net_hdr gso fields).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// Which protocol's rules.
    pub kind: SegmentationKind,
    /// Payload bytes of each segment (gso_size).
    pub size: u16,
    /// Bytes of all headers in front of the payload (hdr_len), from the frame's start.
    pub header_len: u16,
}

/// Protocol of a super-frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentationKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv4, with ECN CWR handling.
    TcpV4Ecn,
    /// TCP over IPv6.
    TcpV6,
    /// TCP over IPv6, with ECN CWR handling.
    TcpV6Ecn,
    /// UDP, cut into datagrams (VIRTIO_NET_HDR_GSO_UDP_L4).
    UdpL4,
}
