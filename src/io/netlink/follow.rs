//! Hearing of changes: a thread that listens to the kernel's notifications and says "look again".
//!
//! The listener tells *that* something changed that can matter to a next hop, not what: whoever hears it asks the
//! kernel anew ([`super::Resolver::refresh`]). So a lost notification costs nothing but time, and a storm of them
//! (a routing daemon at work) becomes one event every [`SETTLE`]. Neighbours going through their usual states
//! (fresh, stale, probing, fresh) with the same link address are no change.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteFlags;

use super::{Error, Neighbour, NeighbourState, Netlink};
use crate::io::poll::{PollSet, Waker, Woken};
use crate::packet::Mac;

/// How long notifications are gathered before they are told as one.
pub const SETTLE: Duration = Duration::from_millis(20);

/// Neighbours that are remembered to tell changes from noise; beyond that each notification counts as a change.
const NEIGHBOURS_MAX: usize = 65_536;

/// Multicast groups: `RTNLGRP_LINK`, `NEIGH`, `IPV4_IFADDR`, `IPV4_ROUTE`, `IPV4_RULE`, `IPV6_IFADDR`, `IPV6_ROUTE`,
/// `IPV6_RULE` (linux/rtnetlink.h).
const GROUPS: [u32; 8] = [1, 3, 5, 7, 8, 9, 11, 19];

/// What the listener tells, as long as it can hear; then its channel closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkEvent {
    /// Links, addresses, routes or neighbours changed: look again.
    Changed,
}

/// The listening thread; it ends when this is dropped.
pub struct Follower {
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Starts listening to the network namespace of the calling thread. At most one event waits in the channel.
    pub fn start() -> Result<(Follower, Receiver<NetworkEvent>), Error> {
        let netlink = Netlink::with_groups(&GROUPS)?;
        let failed = |source| Error::refused("start the thread that follows the network", source);
        let waker = Waker::new().map_err(failed)?;
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let polls = PollSet::new(waker.clone(), &[netlink.as_raw_fd()]);
        let thread = thread::Builder::new()
            .name("uvs-network".to_owned())
            .spawn(move || listen(netlink, polls, &sender))
            .map_err(failed)?;
        let follower = Follower {
            waker,
            thread: Some(thread),
        };
        Ok((follower, receiver))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.waker.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that follows the network panicked");
        }
    }
}

fn listen(mut netlink: Netlink, mut polls: PollSet, sender: &Sender<NetworkEvent>) {
    const FOREVER: Duration = Duration::from_secs(3600);
    let mut filter = Filter::default();
    // When what was heard is told.
    let mut due: Option<Instant> = None;
    loop {
        let wait = due.map_or(FOREVER, |due| due.saturating_duration_since(Instant::now()));
        let woken = polls.wait(wait);
        if woken == Woken::Waker {
            return;
        }
        if woken == Woken::Ready {
            match hear(&mut netlink, &mut filter) {
                Ok(false) => {}
                Ok(true) => due = due.or_else(|| Some(Instant::now() + SETTLE)),
                Err(error) => {
                    // The channel closes: that tells that nothing will be heard any more.
                    log::error!("following the network: {error}");
                    return;
                }
            }
        }
        if due.is_some_and(|due| due <= Instant::now()) {
            due = None;
            // Full: the event that waits says the same.
            if let Err(TrySendError::Disconnected(_)) = sender.try_send(NetworkEvent::Changed) {
                return;
            }
        }
    }
}

/// Reads one datagram of notifications; whether something in it matters.
fn hear(netlink: &mut Netlink, filter: &mut Filter) -> std::io::Result<bool> {
    match netlink.receive() {
        Ok(messages) => Ok(messages.iter().fold(false, |matters, (_, payload)| match payload {
            NetlinkPayload::InnerMessage(message) => filter.matters(message) || matters,
            _ => matters,
        })),
        // Notifications came faster than we read them: whatever they were, look again.
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Tells changes that matter from noise.
#[derive(Default)]
struct Filter {
    /// Where each neighbour is, as last heard; none = unreachable.
    neighbours: HashMap<(u32, IpAddr), Option<Mac>>,
}

impl Filter {
    fn matters(&mut self, message: &RouteNetlinkMessage) -> bool {
        match message {
            RouteNetlinkMessage::NewNeighbour(message) => match Neighbour::from_message(message) {
                Some(neighbour) => self.neighbour_changed(&neighbour),
                None => false,
            },
            RouteNetlinkMessage::DelNeighbour(message) => match Neighbour::from_message(message) {
                Some(gone) => self
                    .neighbours
                    .remove(&(gone.link, gone.address))
                    .is_none_or(|mac| mac.is_some()),
                None => false,
            },
            // IPv6 caches exceptions (path MTU) as cloned routes.
            RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message) => {
                !message.header.flags.contains(RouteFlags::Cloned)
            }
            _ => true,
        }
    }

    fn neighbour_changed(&mut self, neighbour: &Neighbour) -> bool {
        if neighbour.address.is_multicast() {
            return false;
        }
        // Still asking: what was known before stands, and the outcome will be heard.
        if neighbour.state == NeighbourState::Incomplete {
            return false;
        }
        if self.neighbours.len() >= NEIGHBOURS_MAX {
            self.neighbours.clear();
        }
        let known = self
            .neighbours
            .insert((neighbour.link, neighbour.address), neighbour.mac);
        known != Some(neighbour.mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn neighbour(state: NeighbourState, mac: Option<Mac>) -> Neighbour {
        Neighbour {
            link: 3,
            address: IpAddr::from([10, 0, 0, 1]),
            mac,
            state,
        }
    }

    #[test]
    fn only_where_a_neighbour_is_matters_not_how_sure_the_kernel_is() {
        let mac = Some(Mac([2, 0, 0, 0, 0, 1]));
        let mut filter = Filter::default();
        assert!(!filter.neighbour_changed(&neighbour(NeighbourState::Incomplete, None)));
        assert!(
            filter.neighbour_changed(&neighbour(NeighbourState::Fresh, mac)),
            "found"
        );
        assert!(!filter.neighbour_changed(&neighbour(NeighbourState::Stale, mac)));
        assert!(!filter.neighbour_changed(&neighbour(NeighbourState::Probing, mac)));
        assert!(
            filter.neighbour_changed(&neighbour(NeighbourState::Failed, None)),
            "lost"
        );
        assert!(!filter.neighbour_changed(&neighbour(NeighbourState::Failed, None)));
        assert!(
            filter.neighbour_changed(&neighbour(NeighbourState::Fresh, Some(Mac([2; 6])))),
            "moved"
        );
    }
}
