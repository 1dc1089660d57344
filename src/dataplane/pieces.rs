//! Frames that become one, and one that becomes many: IP fragments held and cut, super-frames cut for tunnels.
//!
//! However often a datagram is put together and cut, the accounting stays true to the frame: what was put together
//! counts as all its fragments, and every piece beyond those as generated.

use super::counters::FrameCounts;
use super::driver::Driver;
use super::round::{Round, Teller, Verdict};
use crate::conn::Guess;
use crate::forward::fragment::{Datagram, Inserted, Reassembly, Splitter};
use crate::forward::{Cut, Outcome, tunnel};
use crate::packet::parse::{Fragment, Packet, parse};
use crate::packet::segment::segment;
use crate::packet::{DropReason, Frame, NoRoom, Offload, Parsed};
use crate::table::{Destination, InterfaceId};

/// Where pieces go.
#[derive(Clone, Copy)]
pub(super) enum Exit {
    /// Out at an interface.
    Interface(InterfaceId),
    /// To the local stack.
    LocalStack,
}

/// Counts fragments held and dropped. Once a batch.
#[inline]
pub(super) fn count_fragments(counts: &mut FrameCounts, reassembly: &mut Reassembly) {
    let dropped = reassembly.take_dropped();
    counts.drop_many(DropReason::Fragment, dropped.fragment);
    counts.drop_many(DropReason::FragmentMemory, dropped.memory);
    counts.held = reassembly.held();
}

impl<D: Driver> Round<'_, D> {
    /// Keeps a fragment until its datagram is whole, and then goes on with that.
    #[cold]
    pub(super) fn fragment(
        &mut self,
        frame: D::Frame,
        interface: InterfaceId,
        fragment: &Fragment,
        reassembly: &mut Reassembly,
    ) {
        let inserted = reassembly.insert(frame.bytes(), fragment, self.now_ns);
        self.driver.free(frame);
        if let Inserted::Complete(mut datagram) = inserted {
            self.datagram(&mut datagram, interface);
            reassembly.release(datagram);
        }
    }

    /// A datagram put together.
    fn datagram(&mut self, datagram: &mut Datagram, interface: InterfaceId) {
        let Some(whole) = datagram.reassembled() else { return };
        let verdict = match parse(datagram.bytes(), datagram.offload()) {
            Ok(Packet::Flow(parsed)) => {
                let hash = self.connections.hash(&parsed.flow);
                self.flow(datagram, interface, &parsed, hash, Guess::NONE)
            }
            Ok(Packet::IcmpError(parsed)) => self.related(datagram, interface, &parsed),
            Ok(Packet::Secured(parsed)) => self.secured(datagram, interface, &parsed),
            Ok(Packet::Other) => Verdict::HandBack,
            // A fragment header within a fragment.
            Ok(Packet::Fragment(_)) => Verdict::Drop(DropReason::Fragment),
            Err(reason) => Verdict::Drop(reason),
        };
        let frames = whole.pieces as u64;
        let as_received = Cut::even(whole.largest);
        match verdict {
            // An atomic fragment (RFC 6946): the kernel leaves its header out, and so do we.
            Verdict::Transmit(exit) if frames == 1 => self.send_whole(datagram, Exit::Interface(exit)),
            Verdict::HandBack if frames == 1 => self.send_whole(datagram, Exit::LocalStack),
            Verdict::Transmit(exit) => self.send_pieces(datagram, as_received, Exit::Interface(exit), frames),
            Verdict::TransmitCut(exit, cut) => self.send_pieces(datagram, cut, Exit::Interface(exit), frames),
            Verdict::HandBack => self.send_pieces(datagram, as_received, Exit::LocalStack, frames),
            Verdict::Drop(reason) => self.counts.drop_many(reason, frames),
            // Only super-frames are, and those are no fragments.
            Verdict::Segmented => self.counts.drop_many(DropReason::Fragment, frames),
        }
    }

    /// Sends a copy of a frame that counts as one. The frame stays the caller's.
    #[cold]
    fn send_whole<F: Frame>(&mut self, frame: &F, exit: Exit) {
        let copy = |piece: &mut D::Frame| {
            piece.set_len(frame.bytes().len())?;
            piece.bytes_mut().copy_from_slice(frame.bytes());
            piece.set_offload(frame.offload());
            Ok(())
        };
        match self.filled(copy) {
            Ok(piece) => self.leave(piece, exit),
            Err(reason) => self.counts.drop(reason),
        }
    }

    /// Cuts a frame that counts as `frames` into IP fragments and sends them. The frame stays the caller's.
    #[cold]
    pub(super) fn send_pieces<F: Frame>(&mut self, frame: &F, cut: Cut, exit: Exit, frames: u64) {
        let mut splitter = Splitter::new(frame, cut, self.ids);
        let all = splitter.pieces() as u64;
        let mut sent = 0;
        while !splitter.is_done() {
            match self.filled(|piece| splitter.write_next(piece)) {
                Ok(piece) => self.leave(piece, exit),
                Err(reason) => {
                    self.counts.drop_many(reason, all - sent);
                    break;
                }
            }
            sent += 1;
        }
        // `Cut` never makes fewer pieces than the sender did.
        self.counts.generated += all.saturating_sub(frames);
    }

    fn leave(&mut self, piece: D::Frame, exit: Exit) {
        match exit {
            Exit::Interface(interface) => {
                let sent = self.driver.transmit(interface, piece);
                self.counts.transmit(sent);
            }
            Exit::LocalStack => {
                let taken = self.driver.hand_back(piece);
                self.counts.hand_back(taken);
            }
        }
    }

    /// A new frame with what `write` puts into it.
    fn filled(&mut self, write: impl FnOnce(&mut D::Frame) -> Result<(), NoRoom>) -> Result<D::Frame, DropReason> {
        let mut frame = self.driver.allocate().ok_or(DropReason::NoBuffer)?;
        match write(&mut frame) {
            Ok(()) => Ok(frame),
            Err(NoRoom) => {
                self.driver.free(frame);
                Err(DropReason::TooBig)
            }
        }
    }

    /// A super-frame for a tunnel: no card finds the segments behind an outer header, so they are made here.
    #[cold]
    pub(super) fn segment_into_tunnel<F: Frame>(
        &mut self,
        frame: &F,
        interface: InterfaceId,
        parsed: &Parsed,
        outer: &tunnel::Outer<'_>,
        destination: &Destination,
    ) -> Verdict {
        let Some(segmentation) = frame.offload().segmentation else {
            return Verdict::Drop(DropReason::NoHeadroom);
        };
        let len = segmentation.header_len as u32 + segmentation.size as u32 - parsed.l3 as u32;
        let mtu = outer.hop.mtu.saturating_sub(outer.overhead());
        if len > mtu as u32 {
            let teller = Teller::Service(Some(destination));
            return self.conclude(
                frame,
                parsed,
                interface,
                outer.hop.interface,
                Outcome::TooBig { mtu },
                teller,
            );
        }
        let mut segments = 0;
        let cut = segment(frame.bytes(), segmentation, |header, payload| {
            segments += 1;
            self.send_segment(header, payload, interface, outer, destination);
        });
        match cut {
            Ok(_) => {
                self.counts.generated += segments - 1;
                Verdict::Segmented
            }
            Err(reason) => Verdict::Drop(reason),
        }
    }

    fn send_segment(
        &mut self,
        header: &[u8],
        payload: &[u8],
        interface: InterfaceId,
        outer: &tunnel::Outer<'_>,
        destination: &Destination,
    ) {
        let teller = Teller::Service(Some(destination));
        let write = |frame: &mut D::Frame| {
            frame.set_len(header.len() + payload.len())?;
            let (front, back) = frame.bytes_mut().split_at_mut(header.len());
            front.copy_from_slice(header);
            back.copy_from_slice(payload);
            frame.set_offload(Offload {
                checksum: crate::packet::ChecksumOffload::Finished,
                segmentation: None,
            });
            Ok(())
        };
        let mut frame = match self.filled(write) {
            Ok(frame) => frame,
            Err(reason) => return self.counts.drop(reason),
        };
        let verdict = match parse(frame.bytes(), frame.offload()) {
            Ok(Packet::Flow(parsed)) => {
                let outcome = tunnel::forward(&mut frame, &parsed, outer, self.ids);
                self.conclude(&frame, &parsed, interface, outer.hop.interface, outcome, teller)
            }
            Ok(_) => Verdict::Drop(DropReason::NoHeadroom),
            Err(reason) => Verdict::Drop(reason),
        };
        self.settle(frame, verdict);
    }
}
