//! The outside: AF_XDP and packet sockets, tun devices, memory queues, netlink, network namespaces, and the small
//! system calls they share.
//!
//! | module | what |
//! |---|---|
//! | `afxdp` | the driver on AF_XDP sockets once more, over the crate of that name (feature) |
//! | [`bpf`] | bpf(2): assembler, maps, programs and where they are attached |
//! | [`buffer`] | a heap frame with headroom, and the pool that counts them |
//! | [`decap`] | IP in IP for real servers whose kernel has none |
//! | [`ethtool`] | queues in use, offloads |
//! | [`filter`] | which frames are ours: the program in front of the kernel, and what it looks for |
//! | [`free_memory`] | how much memory the machine has left |
//! | [`guardian`] | cleaning up after a process that is killed |
//! | [`liveness`] | which interfaces a living uvs serves |
//! | [`memory`] | the driver without an outside: tests, fuzzing, benches |
//! | [`mmsg`] | batches of frames through a packet socket |
//! | [`names`] | host names of addresses |
//! | [`netlink`] | links, addresses, routes, neighbours |
//! | [`netns`] | named network namespaces |
//! | [`packet_socket`] | one packet socket on one interface |
//! | [`poll`] | sleeping on file descriptors, and waking who sleeps |
//! | [`process`] | child processes that cannot be left behind |
//! | [`raw`] | the driver over packet sockets |
//! | [`start`] | the first steps of the program |
//! | [`stream`] | TCP connections from a chosen address |
//! | [`tap`] | whole frames past the local stack, for tests |
//! | [`tun`] | frames for the local stack |
//! | [`unix`] | peers of Unix sockets, file locks |
//! | [`virtio`] | what packet sockets and tun devices say of checksums and segmentation |
//! | [`xdp`] | the driver on AF_XDP sockets |

#[cfg(feature = "afxdp")]
pub mod afxdp;
pub mod bpf;
pub mod buffer;
pub mod clock;
pub mod decap;
pub mod ethtool;
pub mod filter;
pub mod free_memory;
pub mod guardian;
pub mod liveness;
pub mod memory;
pub mod mmsg;
pub mod names;
pub mod netlink;
pub mod netns;
pub mod packet_socket;
pub mod poll;
pub mod process;
pub mod raw;
pub mod start;
pub mod stream;
pub mod tap;
#[cfg(test)]
pub(crate) mod testing;
pub mod tun;
pub mod unix;
pub mod virtio;
pub mod xdp;
