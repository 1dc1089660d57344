//! Taking the interfaces into service: which driver they get, its filter in front, a worker thread over each share.
//!
//! A daemon has one driver, as a frame that came in by one can leave only by the same one. `auto` takes `xdp` when
//! every interface can do it natively, else `raw`, and says why.

use std::sync::{Arc, Mutex};

use crossbeam_channel::unbounded;

use super::director::{ServedFilter, ServedInterface, WorkerHandle};
use super::run_error::RunError;
use crate::conn::{ConnectionTable, WorkerId};
use crate::dataplane::counters::WorkerShared;
use crate::dataplane::driver::Driver;
use crate::dataplane::pipeline::Pipeline;
use crate::dataplane::worker::{Worker, WorkerTable};
use crate::forward::Identifications;
use crate::io::bpf::BpfError;
use crate::io::bpf::xdp_link::AttachMode;
use crate::io::filter::attach;
use crate::io::filter::{Filter, FilterCounters, FilterMaps, Flavour};
use crate::io::netlink::Netlink;
use crate::io::poll::Waker;
use crate::io::raw::{self, RawDriver, RawInterface, RawWorker};
use crate::io::tun::Tun;
use crate::io::xdp::{self, QueueBinding, Rings, XdpConfig, XdpInterface, XdpRings, XskDriver};
use crate::io::{clock, ethtool};
use crate::options::DriverChoice;
use crate::packet::{ETHERNET_HEADER_LEN, Mac};
use crate::random::random;
use crate::table::{Hops, Interface, InterfaceId, Table};

use std::os::fd::AsFd;

/// Empty rounds of a worker before it sleeps. Few: on packet sockets each is a system call an interface, and what it takes is
/// taken from whoever shares the CPU, for each frame that comes alone (acknowledgements do).
const SPIN_ROUNDS: u32 = 2;

/// What all workers share.
pub struct Shared {
    /// The connections.
    pub connections: Arc<ConnectionTable>,
    /// Hops to clients.
    pub hops: Arc<Hops>,
    /// The first table.
    pub table: Arc<Table>,
    /// The way to the local stack.
    pub tun: Tun,
}

/// Interfaces in service, and who serves them.
pub type Running = (Vec<ServedInterface>, Vec<WorkerHandle>);

/// How many workers there will be: as wanted, or one a CPU, but never more than the fewest queues. Refuses a driver that
/// this uvs does not have.
pub fn workers(wanted: Option<u16>, choice: DriverChoice, interfaces: &[Interface]) -> Result<usize, RunError> {
    if choice == DriverChoice::Afxdp && !cfg!(feature = "afxdp") {
        return Err(RunError::NoAfxdp);
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    if choice == DriverChoice::Raw {
        return Ok(wanted.map_or(cpus, usize::from));
    }
    let mut fewest: Option<(usize, &str)> = None;
    for interface in interfaces {
        let queues = queues(&interface.name)? as usize;
        if fewest.is_none_or(|(n, _)| queues < n) {
            fewest = Some((queues, &interface.name));
        }
    }
    let (fewest, name) = fewest.unwrap_or((1, ""));
    match wanted.map(usize::from) {
        Some(wanted) if wanted > fewest => Err(RunError::TooManyWorkers {
            wanted,
            queues: fewest,
            interface: name.to_owned(),
        }),
        Some(wanted) => Ok(wanted),
        None => Ok(cpus.min(fewest)),
    }
}

fn queues(interface: &str) -> Result<u32, RunError> {
    let failed = |source| RunError::Queues {
        interface: interface.to_owned(),
        source,
    };
    if let Some(channels) = ethtool::channels(interface).map_err(failed)? {
        return Ok(channels.rx);
    }
    // The driver does not say; the kernel knows how many it made.
    let links = Netlink::open()?.links()?;
    let link = links.iter().find(|link| link.name == interface);
    Ok(link.map_or(1, |link| link.rx_queues.max(1)))
}

/// Takes the interfaces into service. Frames flow from here on.
pub fn start(
    choice: DriverChoice,
    interfaces: &[Interface],
    maps: &FilterMaps,
    workers: usize,
    shared: &Shared,
) -> Result<Running, RunError> {
    let running = match choice {
        DriverChoice::Raw => start_raw(interfaces, maps, workers, shared)?,
        DriverChoice::Afxdp => start_afxdp(interfaces, maps, workers, shared)?,
        DriverChoice::Xdp => {
            let attached = attach_all(interfaces, maps, None)?;
            start_xdp::<XdpRings>("xdp", attached, interfaces, workers, shared)?
        }
        DriverChoice::Auto => {
            let native = attach_all(interfaces, maps, Some(AttachMode::Native))
                .and_then(|attached| start_xdp::<XdpRings>("xdp", attached, interfaces, workers, shared));
            match native {
                Ok(running) => running,
                Err(error) if raw_may_do(&error) => {
                    log::info!("driver raw, because xdp is not possible: {error}");
                    start_raw(interfaces, maps, workers, shared)?
                }
                Err(error) => return Err(error),
            }
        }
    };
    for served in &running.0 {
        log::info!(
            "interface {}: driver {}, {}",
            served.interface.name,
            served.driver,
            served.mode
        );
    }
    Ok(running)
}

/// Where AF_XDP fails for such a reason packet sockets may do. Not behind another's XDP program: that one may have taken
/// the frames.
fn raw_may_do(error: &RunError) -> bool {
    matches!(
        error,
        RunError::Filter(attach::AttachError::Kernel(_)) | RunError::Xdp(_)
    )
}

/// Takes its filters off again when it is dropped before [`Attached::stay`]: a failed start leaves nothing that was not
/// there before. One that was there (of a daemon that died) stays in its place and goes on dropping.
#[derive(Default)]
struct Attached {
    new: Vec<(u32, Detach)>,
}

type Detach = fn(u32) -> Result<usize, BpfError>;

impl Attached {
    fn note(&mut self, ifindex: u32, was_there: bool, detach: Detach) {
        if !was_there {
            self.new.push((ifindex, detach));
        }
    }

    /// The start went well.
    fn stay(mut self) {
        self.new.clear();
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        for (ifindex, detach) in &self.new {
            detach(*ifindex).map_or_else(|error| log::error!("{error}"), |_| ());
        }
    }
}

/// Attaches XDP filters to all interfaces, or to none.
fn attach_all(
    interfaces: &[Interface],
    maps: &FilterMaps,
    mode: Option<AttachMode>,
) -> Result<(Vec<XdpInterface>, Attached), RunError> {
    let mut attached = Attached::default();
    let mut filters = Vec::with_capacity(interfaces.len());
    for interface in interfaces {
        let was_there = attach::query_xdp(interface.index).is_ok_and(|found| found.iter().any(attach::Found::is_ours));
        filters.push(XdpInterface::attach(interface.index, maps, mode, Some(interface.mac))?);
        attached.note(interface.index, was_there, attach::detach_xdp);
    }
    Ok((filters, attached))
}

#[cfg(feature = "afxdp")]
fn start_afxdp(
    interfaces: &[Interface],
    maps: &FilterMaps,
    workers: usize,
    shared: &Shared,
) -> Result<Running, RunError> {
    let attached = attach_all(interfaces, maps, None)?;
    start_xdp::<crate::io::afxdp::AfxdpRings>("afxdp", attached, interfaces, workers, shared)
}

#[cfg(not(feature = "afxdp"))]
fn start_afxdp(_: &[Interface], _: &FilterMaps, _: usize, _: &Shared) -> Result<Running, RunError> {
    Err(RunError::NoAfxdp)
}

fn start_xdp<R: Rings + 'static>(
    driver: &'static str,
    (filters, attached): (Vec<XdpInterface>, Attached),
    interfaces: &[Interface],
    workers: usize,
    shared: &Shared,
) -> Result<Running, RunError>
where
    XskDriver<R>: Send,
{
    let mut drivers = Vec::with_capacity(workers);
    let mtu = interfaces.iter().map(|interface| interface.mtu as usize).max();
    let frame_len = mtu.unwrap_or(0) + ETHERNET_HEADER_LEN;
    let packet_len_max = xdp::frame_len_max(frame_len) - ETHERNET_HEADER_LEN;
    let mut modes: Vec<(String, Option<String>)> = vec![Default::default(); interfaces.len()];
    for worker in 0..workers {
        let waker = Waker::new().map_err(RunError::Waker)?;
        let config = XdpConfig {
            queues: queues_of(worker, workers, &filters, interfaces)?,
            frames_spare: xdp::FRAMES_SPARE_DEFAULT,
            frame_len,
            tun: shared.tun.queue()?,
            waker: waker.clone(),
        };
        let opened = XskDriver::<R>::open(config)?;
        for bound in opened.sockets() {
            let number = bound.binding.interface.0 as usize;
            filters[number]
                .add_socket(bound.binding.queue, bound.socket)
                .map_err(attach::AttachError::from)?;
            modes[number] = (bound.mode.to_string(), bound.reason);
        }
        drivers.push((opened, waker));
    }
    let handles = spawn_all(drivers, shared)?;
    attached.stay();
    let served = filters.into_iter().zip(interfaces).zip(modes);
    let served = served.map(|((filter, interface), (mode, reason))| {
        filter
            .reasons()
            .iter()
            .chain(&reason)
            .for_each(|reason| log::info!("interface {}: {reason}", interface.name));
        if filter.attached() == AttachMode::Generic {
            log::warn!(
                "interface {}: generic mode loses super-frames larger than a frame (TCP of virtual peers stalls): \
                 switch the peer's TSO and GSO off, or use --driver raw",
                interface.name
            );
        }
        detach_other(interface.index, attach::detach_tc);
        let served = ServedInterface {
            interface: interface.clone(),
            driver,
            mode,
            filter: Box::new(filter),
            packet_len_max,
            gone: false,
        };
        served.check_mtu(interface.mtu);
        served
    });
    Ok((served.collect(), handles))
}

/// Worker i of N owns queue q of every interface when q mod N = i.
fn queues_of(
    worker: usize,
    workers: usize,
    filters: &[XdpInterface],
    interfaces: &[Interface],
) -> Result<Vec<QueueBinding>, RunError> {
    let mut bindings = Vec::new();
    for (number, (filter, interface)) in filters.iter().zip(interfaces).enumerate() {
        let all = queues(&interface.name)?;
        bindings.extend(
            (0..all)
                .filter(|q| *q as usize % workers == worker)
                .map(|queue| QueueBinding {
                    interface: InterfaceId(number as u8),
                    ifindex: interface.index,
                    name: interface.name.clone(),
                    queue,
                    native: filter.attached() == AttachMode::Native,
                }),
        );
    }
    Ok(bindings)
}

fn start_raw(
    interfaces: &[Interface],
    maps: &FilterMaps,
    workers: usize,
    shared: &Shared,
) -> Result<Running, RunError> {
    let silences = interfaces
        .iter()
        .map(|_| Filter::load(Flavour::TcIngress, maps))
        .collect::<Result<Vec<_>, _>>()
        .map_err(attach::AttachError::from)?;
    // The kernel is silenced first, so that it never answers what a socket has taken.
    let mut attached = Attached::default();
    for (interface, silence) in interfaces.iter().zip(&silences) {
        let was_there = attach::query_tc(interface.index).is_ok_and(|found| !found.is_empty());
        attach::attach_tc(interface.index, silence)?;
        attached.note(interface.index, was_there, attach::detach_tc);
    }
    let drivers = open_raw(interfaces, maps, workers, shared)?;
    let handles = spawn_all(drivers, shared)?;
    attached.stay();
    let served = interfaces.iter().zip(silences).map(|(interface, silence)| {
        detach_other(interface.index, attach::detach_xdp);
        ServedInterface {
            interface: interface.clone(),
            driver: "raw",
            mode: "packet socket".to_owned(),
            filter: Box::new(silence),
            packet_len_max: usize::MAX,
            gone: false,
        }
    });
    Ok((served.collect(), handles))
}

fn open_raw(
    interfaces: &[Interface],
    maps: &FilterMaps,
    workers: usize,
    shared: &Shared,
) -> Result<Vec<(RawDriver, Waker)>, RunError> {
    let filter = Filter::load(Flavour::Socket, maps).map_err(attach::AttachError::from)?;
    let opened: Vec<RawInterface<'_>> = interfaces
        .iter()
        .map(|interface| RawInterface {
            name: &interface.name,
            index: interface.index,
            filter: filter.program().as_fd(),
        })
        .collect();
    let wakers = (0..workers)
        .map(|_| Waker::new().map_err(RunError::Waker))
        .collect::<Result<Vec<_>, _>>()?;
    let raw_workers = wakers
        .iter()
        .map(|waker| {
            Ok(RawWorker {
                waker: waker.clone(),
                tun: shared.tun.queue()?,
            })
        })
        .collect::<Result<Vec<_>, RunError>>()?;
    let drivers = raw::open(&opened, raw_workers, raw::BUFFERS_DEFAULT)?;
    Ok(drivers.into_iter().zip(wakers).collect())
}

impl ServedFilter for XdpInterface {
    fn counters(&self) -> Result<FilterCounters, BpfError> {
        XdpInterface::counters(self)
    }

    fn set_link_address(&self, address: Mac) -> Result<(), BpfError> {
        XdpInterface::set_link_address(self, address)
    }
}

/// At tc ingress.
impl ServedFilter for Filter {
    fn counters(&self) -> Result<FilterCounters, BpfError> {
        Filter::counters(self)
    }

    /// There the kernel has told frames apart already.
    fn set_link_address(&self, _: Mac) -> Result<(), BpfError> {
        Ok(())
    }
}

/// What a daemon with another driver has left there is not needed any more.
fn detach_other(ifindex: u32, detach: Detach) {
    match detach(ifindex) {
        Ok(0) => {}
        Ok(_) => log::info!("the filter of the driver used before is detached"),
        Err(error) => log::debug!("{error}"),
    }
}

fn spawn_all<D: Driver + Send + 'static>(
    drivers: Vec<(D, Waker)>,
    shared: &Shared,
) -> Result<Vec<WorkerHandle>, RunError> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let mut handles = Vec::with_capacity(drivers.len());
    for (number, (driver, waker)) in drivers.into_iter().enumerate() {
        let (commands, orders) = unbounded();
        let numbers = Arc::new(WorkerShared::default());
        let table = WorkerTable::new(Mutex::new(shared.table.clone()));
        let ids = Identifications::new(random() as u32);
        let worker_id = WorkerId(number as u16);
        let pipeline = Pipeline::new(shared.connections.clone(), shared.hops.clone(), worker_id, ids);
        let worker = Worker::new(
            driver,
            pipeline,
            table.clone(),
            orders,
            numbers.clone(),
            clock::boot_ns,
            SPIN_ROUNDS,
        );
        let core = cores.get(number % cores.len().max(1)).copied();
        let run = move || {
            if core.is_none_or(|core| !core_affinity::set_for_current(core)) {
                log::warn!("worker {number} is not pinned to a CPU");
            }
            worker.run();
        };
        let thread = std::thread::Builder::new()
            .name(format!("uvs-worker-{number}"))
            .spawn(run);
        handles.push(WorkerHandle {
            commands,
            waker,
            table,
            shared: numbers,
            thread: thread.map_err(|source| RunError::Thread {
                what: "a worker",
                source,
            })?,
        });
    }
    Ok(handles)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A start that fails takes off what it attached, and only that. How: a detacher that notes whom it was called for.
    #[test]
    fn a_failed_start_leaves_only_what_was_there() {
        static TAKEN_OFF: Mutex<Vec<u32>> = Mutex::new(Vec::new());
        let detach: Detach = |ifindex| {
            TAKEN_OFF.lock().unwrap().push(ifindex);
            Ok(1)
        };
        let attached = || {
            let mut attached = Attached::default();
            for (ifindex, was_there) in [(3, false), (4, true), (5, false)] {
                attached.note(ifindex, was_there, detach);
            }
            attached
        };
        drop(attached());
        assert_eq!(std::mem::take(&mut *TAKEN_OFF.lock().unwrap()), [3, 5]);
        attached().stay();
        assert!(TAKEN_OFF.lock().unwrap().is_empty());
    }
}
