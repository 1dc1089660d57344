//! The XDP filter by itself: BPF_PROG_TEST_RUN, which needs root and no interface.

use std::io;
use std::net::Ipv4Addr;

use uvs::io::bpf::asm::{Assembler, R0};
use uvs::io::bpf::{Program, ProgramType};
use uvs::io::filter::{Filter, FilterMaps, Flavour, Rule};
use uvs::packet::{FlowKey, Mac, Protocol};
use uvs::service::TransportProtocol;

use super::driver::{VIP, packet};

const REPEAT: u32 = 2_000_000;
const XDP_DROP: i32 = 1;
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 11);

/// Nanoseconds for a client's frame to a service, for the reply of a NAT destination, for a frame of the kernel's, and of a
/// program that only drops: what the run itself takes.
pub fn measure() -> Result<[f64; 4], io::Error> {
    let mut maps = FilterMaps::new().map_err(io::Error::other)?;
    let protocol = TransportProtocol::Tcp;
    let rules = [
        Rule::Local(VIP.into()),
        Rule::Service {
            protocol,
            address: VIP.into(),
            port: 80,
        },
        Rule::NatDestination {
            protocol,
            address: SERVER.into(),
            port: 8080,
        },
    ];
    for rule in rules {
        maps.insert(rule).map_err(io::Error::other)?;
    }
    let filter = Filter::load(Flavour::Xdp, &maps).map_err(io::Error::other)?;
    // That of the frames below.
    filter
        .set_link_address(Mac([2, 0, 0, 0, 0, 0xd0]))
        .map_err(io::Error::other)?;
    let frame = |from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)| {
        packet(&FlowKey::new(
            Protocol::TCP,
            (from.0.into(), from.1),
            (to.0.into(), to.1),
        ))
    };
    let ns = |program: &Program, frame: &[u8]| {
        let spent = program.run_timed(frame, REPEAT)?;
        Ok::<f64, io::Error>(spent.as_nanos() as f64 / REPEAT as f64)
    };
    let text = {
        let mut text = Assembler::new();
        text.mov_imm(R0, XDP_DROP);
        text.exit();
        text.finish()
    };
    let nothing = Program::load(ProgramType::Xdp, "perf_drop", &text).map_err(io::Error::other)?;
    let service = frame((CLIENT, 40_000), (VIP, 80));
    Ok([
        ns(filter.program(), &service)?,
        ns(filter.program(), &frame((SERVER, 8080), (CLIENT, 40_000)))?,
        ns(filter.program(), &frame((CLIENT, 40_000), (VIP, 22)))?,
        ns(&nothing, &service)?,
    ])
}
