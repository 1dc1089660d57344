//! Where frames end: a program that counts and drops them.

use uvs::demo::cluster::{Error, Host};
use uvs::io::bpf::asm::{Assembler, If, Operation, R0, R1, R2, R10, Width};
use uvs::io::bpf::map::MapType;
use uvs::io::bpf::xdp_link::{self, AttachMode};
use uvs::io::bpf::{Map, Program, ProgramType, tcx};

use crate::rig::wrong;

const HELPER_MAP_LOOKUP: i32 = 1;
/// `XDP_DROP`, and `TC_ACT_SHOT` in tcx.
const XDP_DROP: i32 = 1;
const TCX_DROP: i32 = 2;

/// Counts what reaches an interface, and drops it at tc ingress: whoever sent it, it costs the same here.
pub struct Sink {
    counter: Map,
    _program: Program,
}

impl Sink {
    /// On that interface of the host.
    pub fn attach(host: &mut Host, interface: &str) -> Result<Sink, Error> {
        let counter = Map::create(MapType::PerCpuArray, "sink", 4, 8, 1).map_err(wrong)?;
        let program =
            Program::load(ProgramType::SchedCls, "perf_sink", &counting(&counter, TCX_DROP)).map_err(wrong)?;
        let index = host.link(interface)?.index;
        host.namespace()
            .run(|| tcx::attach(index, &program, None))?
            .map_err(wrong)?;
        Ok(Sink {
            counter,
            _program: program,
        })
    }

    /// Frames so far.
    pub fn count(&self) -> Result<u64, Error> {
        self.counter.sum(0).map_err(wrong)
    }
}

/// Has the interface drop everything as early as a driver's program can.
pub fn drop_at_xdp(host: &mut Host, interface: &str) -> Result<Program, Error> {
    let mut a = Assembler::new();
    a.mov_imm(R0, XDP_DROP);
    a.exit();
    let program = Program::load(ProgramType::Xdp, "perf_drop", &a.finish()).map_err(wrong)?;
    let index = host.link(interface)?.index;
    host.namespace()
        .run(|| xdp_link::attach(index, AttachMode::Native, &program, None))?
        .map_err(wrong)?;
    Ok(program)
}

fn counting(counter: &Map, verdict: i32) -> Vec<uvs::io::bpf::Instruction> {
    use std::os::fd::AsRawFd;
    let mut a = Assembler::new();
    let out = a.label();
    a.store_imm(Width::B4, R10, -4, 0);
    a.load_map(R1, counter.as_raw_fd());
    a.mov(R2, R10);
    a.alu_imm(Operation::Add, R2, -4);
    a.call(HELPER_MAP_LOOKUP);
    a.jump_if_imm(R0, If::Equal, 0, out);
    a.load(Width::B8, R1, R0, 0);
    a.alu_imm(Operation::Add, R1, 1);
    a.store(Width::B8, R0, 0, R1);
    a.bind(out);
    a.mov_imm(R0, verdict);
    a.exit();
    a.finish()
}
