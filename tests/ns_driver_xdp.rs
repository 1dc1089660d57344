//! The AF_XDP drivers between two network namespaces: `c0` of a client, `d0` of a director.
//!
//! How: a forwarder on nothing but the Driver trait echoes UDP to a VIP. Goal: frames go through in each mode, are
//! accounted for to the frame, and stay away from the kernel when the forwarder dies.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use uvs::dataplane::driver::{BATCH_MAX, Driver, InterfaceStatistics};
use uvs::io::bpf::xdp_link::AttachMode;
use uvs::io::filter::attach::{attach_tc, detach_tc, query_xdp};
use uvs::io::filter::{Filter, FilterMaps, Flavour, Rule};
use uvs::io::netlink::Netlink;
use uvs::io::netlink::link::{Link, VethEnd};
use uvs::io::netlink::route::Route;
use uvs::io::netns::{Namespace, can_test};
use uvs::io::poll::Waker;
use uvs::io::raw::{self, RawInterface, RawWorker};
use uvs::io::tun::{self, Tun};
use uvs::io::xdp::{
    FRAMES_SPARE_DEFAULT, QueueBinding, Rings, XdpConfig, XdpError, XdpInterface, XdpMode, XdpRings, XskDriver,
    frame_len_max,
};
use uvs::packet::frame::HEADROOM_MIN;
use uvs::packet::{ChecksumOffload, ETHERNET_HEADER_LEN, Frame, Offload};
use uvs::service::TransportProtocol;
use uvs::table::InterfaceId;

const VIP: &str = "10.77.1.1";
/// Port that is echoed.
const ECHO: u16 = 7;
/// Port that is handed back to the local stack.
const LOCAL: u16 = 9;
const INTERFACE: InterfaceId = InterfaceId(0);

/// Both namespaces; gone when dropped.
struct Lab {
    client: Namespace,
    director: Namespace,
}

impl Lab {
    /// `None` where namespace tests cannot run; it says so loudly then.
    fn new(queues: u32) -> Option<Lab> {
        if !can_test() {
            return None;
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = |end| format!("uvsx{}-{number}-{end}", std::process::id());
        let lab = Lab {
            client: Namespace::create(&name('c')).unwrap(),
            director: Namespace::create(&name('d')).unwrap(),
        };
        let end = |name, namespace| VethEnd {
            name,
            namespace: Some(namespace),
            mac: None,
        };
        let mut client = Netlink::open_in(&lab.client).unwrap();
        client
            .create_veth([end("c0", &lab.client), end("d0", &lab.director)], queues)
            .unwrap();
        let mut director = Netlink::open_in(&lab.director).unwrap();
        let (c0, d0) = (client.link("c0").unwrap().index, director.link("d0").unwrap().index);
        client.add_address(c0, ip("10.77.0.2"), 24).unwrap();
        director.add_address(d0, ip("10.77.0.1"), 24).unwrap();
        director.add_address(d0, ip(VIP), 32).unwrap();
        client.set_up(c0, true).unwrap();
        director.set_up(d0, true).unwrap();
        client.add_route(&Route::via(ip(VIP), 32, ip("10.77.0.1"))).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while !director.link("d0").unwrap().running {
            assert!(Instant::now() < deadline, "d0 gets no carrier");
        }
        lab.director.set_sysctl("net.ipv4.conf.all.rp_filter", "0").unwrap();
        Some(lab)
    }

    /// At both ends.
    fn set_mtu(&self, mtu: u32) {
        for (namespace, name) in [(&self.client, "c0"), (&self.director, "d0")] {
            let mut netlink = Netlink::open_in(namespace).unwrap();
            let index = netlink.link(name).unwrap().index;
            netlink.set_mtu(index, mtu).unwrap();
        }
    }

    fn d0(&self) -> Link {
        Netlink::open_in(&self.director).unwrap().link("d0").unwrap()
    }

    /// A socket of the client, connected to a port of the VIP.
    fn client(&self, port: u16) -> UdpSocket {
        self.client
            .run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.connect((VIP, port)).unwrap();
                socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
                socket
            })
            .unwrap()
    }
}

/// Runs a test in the director's namespace, with its interface; nothing where namespace tests cannot run.
fn in_lab(queues: u32, test: impl FnOnce(&Lab, Link) + Send) {
    let Some(lab) = Lab::new(queues) else { return };
    let d0 = lab.d0();
    lab.director.run(|| test(&lab, d0)).unwrap();
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A driver on `d0` with the filter in front.
struct Station<R: Rings> {
    interface: XdpInterface,
    _maps: FilterMaps,
    driver: XskDriver<R>,
    mode: XdpMode,
    reason: Option<String>,
}

fn filter_maps() -> FilterMaps {
    let mut maps = FilterMaps::new().unwrap();
    for port in [ECHO, LOCAL] {
        let (protocol, address) = (TransportProtocol::Udp, ip(VIP));
        let rule = Rule::Service {
            protocol,
            address,
            port,
        };
        maps.insert(rule).unwrap();
    }
    maps
}

/// To be called in the director's namespace.
fn open<R: Rings>(mode: Option<AttachMode>, d0: &Link, queues: u32) -> Station<R> {
    let maps = filter_maps();
    let interface = XdpInterface::attach(d0.index, &maps, mode, d0.mac).unwrap();
    let driver = XskDriver::<R>::open(config(d0, queues, interface.attached() == AttachMode::Native)).unwrap();
    let bound = driver.sockets();
    for queue in &bound {
        interface.add_socket(queue.binding.queue, queue.socket).unwrap();
    }
    Station {
        mode: bound[0].mode,
        reason: bound[0].reason.clone(),
        interface,
        _maps: maps,
        driver,
    }
}

fn config(d0: &Link, queues: u32, native: bool) -> XdpConfig {
    let binding = |queue| QueueBinding {
        interface: INTERFACE,
        ifindex: d0.index,
        name: d0.name.clone(),
        queue,
        native,
    };
    XdpConfig {
        queues: (0..queues).map(binding).collect(),
        frames_spare: FRAMES_SPARE_DEFAULT,
        frame_len: ETHERNET_HEADER_LEN + d0.mtu as usize,
        tun: Tun::create(tun::NAME).unwrap().queue().unwrap(),
        waker: Waker::new().unwrap(),
    }
}

/// What became of the frames.
#[derive(Debug, Default, PartialEq, Eq)]
struct Done {
    received: u64,
    transmitted: u64,
    refused: u64,
    handed_back: u64,
}

/// Echoes until told to stop.
fn forward(driver: &mut impl Driver, stop: &AtomicBool) -> Done {
    let (mut done, mut batch) = (Done::default(), Vec::with_capacity(BATCH_MAX));
    while !stop.load(Ordering::Relaxed) {
        if driver.receive(&mut batch) == 0 {
            driver.wait(Duration::from_millis(20));
        }
        for mut received in batch.drain(..) {
            done.received += 1;
            let bytes = received.frame.bytes_mut();
            if u16::from_be_bytes([bytes[36], bytes[37]]) == LOCAL {
                received.frame.set_offload(Offload {
                    checksum: ChecksumOffload::Unfinished { start: 34, offset: 6 },
                    segmentation: None,
                });
                done.handed_back += driver.hand_back(received.frame) as u64;
                continue;
            }
            echo(bytes);
            received.frame.set_offload(Offload::default());
            into_headroom(&mut received.frame);
            let sent = driver.transmit(received.interface, received.frame);
            done.transmitted += sent as u64;
            done.refused += !sent as u64;
        }
        driver.flush();
    }
    done
}

/// The same frame further in front, where one begins that a tunnel has wrapped.
fn into_headroom(frame: &mut impl Frame) {
    let len = frame.bytes().len();
    frame.grow_front(HEADROOM_MIN).unwrap();
    frame.bytes_mut().copy_within(HEADROOM_MIN.., 0);
    frame.set_len(len).unwrap();
}

/// Swaps who talks to whom; a UDP checksum of 0 is none.
fn echo(frame: &mut [u8]) {
    for (a, b, len) in [(0, 6, 6), (26, 30, 4), (34, 36, 2)] {
        for i in 0..len {
            frame.swap(a + i, b + i);
        }
    }
    frame[40..42].fill(0);
}

/// Sends `count` datagrams, at most 64 unanswered at a time, and expects each to come back.
fn expect_echoes(socket: &UdpSocket, count: u32) {
    let mut buffer = [0; 2000];
    for first in (0..count).step_by(64) {
        let numbers = first..count.min(first + 64);
        for number in numbers.clone() {
            let mut payload = vec![number as u8; 1 + number as usize % 1400];
            payload.extend(number.to_be_bytes());
            socket.send(&payload).unwrap();
        }
        let mut missing: std::collections::HashSet<u32> = numbers.collect();
        while !missing.is_empty() {
            let n = socket
                .recv(&mut buffer)
                .unwrap_or_else(|e| panic!("{e}: {} echoes missing", missing.len()));
            let number = u32::from_be_bytes(buffer[n - 4..n].try_into().unwrap());
            assert!(
                buffer[..n - 4].iter().all(|b| *b == number as u8),
                "echo {number} is damaged"
            );
            assert!(missing.remove(&number), "echo {number} came twice");
        }
    }
}

/// Runs `client` while the driver forwards; says what became of the frames.
fn while_forwarding<R: Rings>(station: &mut Station<R>, client: impl FnOnce() + Send) -> Done {
    while_driving(&mut station.driver, client)
}

fn while_driving(driver: &mut impl Driver, client: impl FnOnce() + Send) -> Done {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(client));
            stop.store(true, Ordering::Relaxed);
            result
        });
        let done = forward(driver, &stop);
        if let Err(panic) = client.join().unwrap() {
            std::panic::resume_unwind(panic);
        }
        done
    })
}

fn echo_in_mode<R: Rings>(mode: AttachMode, expected: XdpMode, queues: u32) {
    const COUNT: u32 = 3000;
    in_lab(queues, |lab, d0| {
        let mut station = open::<R>(Some(mode), &d0, queues);
        assert_eq!(station.mode, expected);
        let clients: Vec<UdpSocket> = (0..queues * 2).map(|_| lab.client(ECHO)).collect();
        let done = while_forwarding(&mut station, || clients.iter().for_each(|c| expect_echoes(c, COUNT)));
        let total = (COUNT * queues * 2) as u64;
        let expected = Done {
            received: total,
            transmitted: total,
            ..Done::default()
        };
        assert_eq!(done, expected);
        assert_eq!(station.interface.counters().unwrap().matched, total);
        assert!(station.interface.counters().unwrap().passed > 0, "ARP passes");
        assert_eq!(station.driver.outstanding(), 0);
        assert_eq!(station.driver.statistics(), [InterfaceStatistics::default()]);
        station.interface.detach().unwrap();
        assert!(query_xdp(d0.index).unwrap().is_empty());
    });
}

/// How: no mode asked for, on a veth, which has native XDP but no zero-copy. Goal: the best it can, with the reason.
fn says_what_it_got_and_why<R: Rings>() {
    in_lab(1, |_, d0| {
        let station = open::<R>(None, &d0, 1);
        assert_eq!((station.mode, station.interface.reasons()), (XdpMode::Native, &[][..]));
        let reason = station.reason.clone().unwrap();
        assert!(reason.starts_with("not zero-copy: cannot bind"), "{reason}");
        assert!(reason.contains("interface d0"), "{reason}");
    });
}

/// How: a frame too large for a page on the way. Goal: generic mode with the kernel's reason.
fn falls_to_generic_when_the_mtu_is_too_large<R: Rings>() {
    in_lab(1, |lab, d0| {
        lab.set_mtu(9000);
        let station = open::<R>(None, &d0, 1);
        assert_eq!(station.mode, XdpMode::Generic);
        let reasons = station.interface.reasons().join("\n");
        assert!(reasons.contains("MTU"), "{reasons}");
    });
}

/// How: an echo that fills a chunk but for its headroom, and one that is a byte longer. Goal: the first comes back as it was, from
/// further in front; the second is counted.
fn a_frame_as_long_as_its_chunk<R: Rings>() {
    for mtu in [1500, 3000] {
        a_frame_as_long_as_a_chunk_for::<R>(mtu);
    }
}

fn a_frame_as_long_as_a_chunk_for<R: Rings>(mtu: u32) {
    let payload = frame_len_max(ETHERNET_HEADER_LEN + mtu as usize) - 42;
    in_lab(1, |lab, d0| {
        lab.set_mtu(9000);
        let mut station = open::<R>(None, &Link { mtu, ..d0 }, 1);
        let client = lab.client(ECHO);
        let mut said: Vec<u8> = (0..=payload).map(|n| n as u8).collect();
        let done = while_forwarding(&mut station, || {
            client.send(&said).unwrap();
            assert_eq!(client.recv(&mut [0; 9000]).unwrap_err().kind(), ErrorKind::WouldBlock);
            said.truncate(payload);
            client.send(&said).unwrap();
            let mut heard = [0; 9000];
            let n = client.recv(&mut heard).unwrap();
            assert!(heard[..n] == said, "{n} bytes of {payload}, or others");
        });
        assert_eq!((done.received, done.transmitted), (1, 1));
        assert_eq!(station.driver.statistics()[0].rx_dropped, 1);
        assert_eq!(station.driver.outstanding(), 0);
    });
}

/// How: queue 1 of 1, and an interface without a queue of ours. Goal: errors that name what and where.
fn refuses_queues_that_are_not_there<R: Rings>() {
    in_lab(1, |_, d0| {
        let maps = FilterMaps::new().unwrap();
        XdpInterface::attach(d0.index, &maps, Some(AttachMode::Generic), None).unwrap();
        let mut wrong = config(&d0, 1, false);
        wrong.queues[0].queue = 1;
        let error = XskDriver::<R>::open(wrong).err().unwrap().to_string();
        assert!(
            error.starts_with("cannot bind an AF_XDP socket on queue 1 of interface d0"),
            "{error}"
        );
        assert!(error.contains("no such queue"), "{error}");
        let mut wrong = config(&d0, 1, false);
        wrong.queues[0].interface = InterfaceId(1);
        assert!(matches!(XskDriver::<R>::open(wrong), Err(XdpError::NoQueue(0))));
        let _first = XskDriver::<R>::open(config(&d0, 1, false)).unwrap();
        let error = XskDriver::<R>::open(config(&d0, 1, false)).err().unwrap().to_string();
        assert!(error.contains("another AF_XDP socket has this queue"), "{error}");
    });
}

/// How: datagrams to a port that the forwarder hands back. Goal: a socket of the director gets them, with the
/// checksum that veth left unfinished.
fn what_is_handed_back_reaches_the_local_stack<R: Rings>() {
    in_lab(1, |lab, d0| {
        let local = UdpSocket::bind((VIP, LOCAL)).unwrap();
        local.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut station = open::<R>(Some(AttachMode::Native), &d0, 1);
        let client = lab.client(LOCAL);
        let done = while_forwarding(&mut station, || {
            client.send(b"to whom it may concern").unwrap();
            let mut buffer = [0; 100];
            let n = local.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..n], b"to whom it may concern");
        });
        assert_eq!((done.received, done.handed_back), (1, 1));
        assert_eq!(station.driver.outstanding(), 0);
    });
}

/// How: more frames than a ring holds, while nobody looks. Goal: the kernel's drops are counted, the rest is there.
fn a_full_ring_is_counted<R: Rings>() {
    const COUNT: u32 = 3000;
    in_lab(1, |lab, d0| {
        let mut station = open::<R>(Some(AttachMode::Native), &d0, 1);
        let client = lab.client(ECHO);
        for _ in 0..COUNT {
            client.send(b"x").unwrap();
        }
        let matched = || station.interface.counters().unwrap().matched;
        let deadline = Instant::now() + Duration::from_secs(5);
        while matched() < COUNT as u64 {
            assert!(Instant::now() < deadline, "{} of {COUNT}", matched());
        }
        let (mut received, mut batch) = (0, Vec::with_capacity(BATCH_MAX));
        while station.driver.receive(&mut batch) > 0 {
            received += batch.len() as u64;
            batch.drain(..).for_each(|r| station.driver.free(r.frame));
        }
        let s = station.driver.statistics()[0];
        assert_eq!(received + s.rx_ring_full + s.fill_ring_empty, COUNT as u64, "{s:?}");
        assert_eq!(received, 2048);
        assert_eq!(station.driver.outstanding(), 0);
    });
}

/// How: sends while the interface is down, then up. Goal: a bounded number waits, the rest is refused and counted,
/// nothing is lost to the memory.
fn an_interface_that_is_down_refuses_and_recovers<R: Rings>() {
    in_lab(1, |lab, d0| {
        let mut station = open::<R>(Some(AttachMode::Native), &d0, 1);
        let mut netlink = Netlink::open().unwrap();
        netlink.set_up(d0.index, false).unwrap();
        let (mut sent, mut refused) = (0, 0);
        for _ in 0..3000 {
            let mut frame = station.driver.allocate().unwrap();
            frame.set_len(60).unwrap();
            frame.bytes_mut().fill(0);
            match station.driver.transmit(INTERFACE, frame) {
                true => sent += 1,
                false => refused += 1,
            }
            station.driver.flush();
        }
        assert_eq!((sent, refused), (2048, 952));
        assert_eq!(station.driver.statistics()[0].tx_failed, 952);
        assert_eq!(station.driver.outstanding(), 0);
        netlink.set_up(d0.index, true).unwrap();
        let client = lab.client(ECHO);
        station.driver.flush();
        while_forwarding(&mut station, || expect_echoes(&client, 64));
        assert_eq!(station.driver.outstanding(), 0);
    });
}

/// How: deletes the interface under a forwarder. Goal: no panic, no spinning, frames refused.
fn a_deleted_interface_harms_nothing_else<R: Rings>() {
    in_lab(1, |lab, d0| {
        let mut station = open::<R>(Some(AttachMode::Native), &d0, 1);
        let client = lab.client(ECHO);
        while_forwarding(&mut station, || expect_echoes(&client, 64));
        Netlink::open().unwrap().delete_link(d0.index).unwrap();
        let driver = &mut station.driver;
        let (begin, mut rounds, mut batch) = (Instant::now(), 0, Vec::with_capacity(BATCH_MAX));
        while begin.elapsed() < Duration::from_millis(300) {
            assert_eq!(driver.receive(&mut batch), 0);
            driver.flush();
            driver.wait(Duration::from_millis(20));
            rounds += 1;
        }
        assert!(rounds < 30, "{rounds} rounds in 300 ms");
        let mut frame = driver.allocate().unwrap();
        frame.set_len(60).unwrap();
        assert!(!driver.transmit(INTERFACE, frame));
        assert_eq!(driver.statistics()[0].tx_failed, 1);
        assert_eq!(driver.outstanding(), 0);
    });
}

/// A forwarder in a process of its own: this test binary, asked for the test below.
fn forwarder_process(lab: &Lab, driver: &str) -> Child {
    let mut command = lab.director.command(std::env::current_exe().unwrap()).unwrap();
    command.args([
        "--ignored",
        "--exact",
        &format!("{driver}::forwarder_until_killed"),
        "--nocapture",
    ]);
    let mut child = command
        .env("UVS_TEST_FORWARDER", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(
        lines.map_while(Result::ok).any(|line| line.contains("forwarding")),
        "the forwarder does not start"
    );
    child
}

fn forwarder_until_killed<R: Rings>() {
    if std::env::var_os("UVS_TEST_FORWARDER").is_none() {
        return;
    }
    let d0 = Netlink::open().unwrap().link("d0").unwrap();
    let mut station = open::<R>(Some(AttachMode::Native), &d0, 1);
    println!("\nforwarding");
    forward(&mut station.driver, &AtomicBool::new(false));
}

/// How: kills a forwarder; sends to its service and to another port; starts a forwarder in its place.
/// Goal: the kernel stays silent about the service and goes on with all else, and the filter is exchanged.
fn after_kill_the_filter_drops_until_the_next_takes_over<R: Rings>(driver: &str, then: &[AttachMode]) {
    let Some(lab) = Lab::new(1) else { return };
    let d0 = lab.d0();
    let (served, other) = (lab.client(ECHO), lab.client(4711));
    let mut child = forwarder_process(&lab, driver);
    expect_echoes(&served, 100);
    child.kill().unwrap();
    child.wait().unwrap();

    served.send(b"anybody there?").unwrap();
    let error = served.recv(&mut [0; 100]).unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::WouldBlock,
        "the kernel answered for the service: {error}"
    );
    other.send(b"and there?").unwrap();
    let error = other.recv(&mut [0; 100]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");

    let (served, d0) = (&served, &d0);
    lab.director
        .run(|| {
            let old = query_xdp(d0.index).unwrap();
            assert!(old.len() == 1 && old[0].is_ours());
            for &mode in then {
                let mut station = open::<R>(Some(mode), d0, 1);
                let new = query_xdp(d0.index).unwrap();
                assert!(new.len() == 1 && new[0].info.id != old[0].info.id && new[0].mode == mode);
                while_forwarding(&mut station, || expect_echoes(served, 100));
            }
        })
        .unwrap();
    // The last forwarder has ended without detaching.
    served.send(b"anybody there?").unwrap();
    assert_eq!(served.recv(&mut [0; 100]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// How: opens one driver after another. Goal: a closed driver's queue is free at once.
fn a_queue_is_free_again<R: Rings>() {
    in_lab(1, |_, d0| {
        for _ in 0..3 {
            XskDriver::<R>::open(config(&d0, 1, false)).unwrap();
        }
    });
}

/// How: two receive queues, one transmit queue, sending by the second. Goal: refused, as the kernel would take frames
/// there and never send them.
fn refuses_to_send_by_a_queue_that_cannot<R: Rings>() {
    let Some(lab) = Lab::new(1) else { return };
    lab.director
        .run(|| {
            let mut netlink = Netlink::open().unwrap();
            let ip = std::process::Command::new("ip")
                .args("link add e0 numtxqueues 1 numrxqueues 2 type veth peer name e1".split(' '))
                .status();
            assert!(ip.unwrap().success());
            let e0 = netlink.link("e0").unwrap();
            netlink.set_up(e0.index, true).unwrap();
            let maps = FilterMaps::new().unwrap();
            XdpInterface::attach(e0.index, &maps, Some(AttachMode::Generic), None).unwrap();
            let mut wrong = config(&e0, 2, false);
            wrong.queues.remove(0);
            let error = XskDriver::<R>::open(wrong).err().unwrap().to_string();
            assert!(
                error.starts_with("queue 1 of interface e0 cannot send: it has 1 transmit queues"),
                "{error}"
            );
        })
        .unwrap();
}

/// The filter's other two flavours, with the driver `raw`. How: echoes through a packet socket, then its end.
/// Goal: the kernel never answers for the service, while the driver lives and when it is gone; all else it does.
#[test]
fn raw_echoes_and_the_kernel_is_silent() {
    let Some(lab) = Lab::new(1) else { return };
    let d0 = lab.d0();
    let (served, other) = (lab.client(ECHO), lab.client(4711));
    let (served, other) = (&served, &other);
    let is_silent = || {
        served.send(b"anybody there?").unwrap();
        assert_eq!(served.recv(&mut [0; 100]).unwrap_err().kind(), ErrorKind::WouldBlock);
    };
    lab.director
        .run(|| {
            let maps = filter_maps();
            let at_tc = Filter::load(Flavour::TcIngress, &maps).unwrap();
            let on_socket = Filter::load(Flavour::Socket, &maps).unwrap();
            attach_tc(d0.index, &at_tc).unwrap();
            let interfaces = [RawInterface {
                name: &d0.name,
                index: d0.index,
                filter: on_socket.program().as_fd(),
            }];
            let worker = RawWorker {
                waker: Waker::new().unwrap(),
                tun: Tun::create(tun::NAME).unwrap().queue().unwrap(),
            };
            let mut driver = raw::open(&interfaces, vec![worker], 256).unwrap().remove(0);
            let done = while_driving(&mut driver, || {
                expect_echoes(served, 1000);
                other.send(b"and there?").unwrap();
                assert_eq!(
                    other.recv(&mut [0; 100]).unwrap_err().kind(),
                    ErrorKind::ConnectionRefused
                );
            });
            assert_eq!((done.received, done.transmitted), (1000, 1000));
            assert_eq!(at_tc.counters().unwrap().matched, 1000);
            drop(driver);
            is_silent();
        })
        .unwrap();
    is_silent();
    lab.director
        .run(|| {
            assert_eq!(detach_tc(d0.index).unwrap(), 1);
            served.send(b"now the kernel").unwrap();
            assert_eq!(
                served.recv(&mut [0; 100]).unwrap_err().kind(),
                ErrorKind::ConnectionRefused
            );
        })
        .unwrap();
}

/// The tests that every driver passes. After a kill: the modes in which one process takes over, one after another.
macro_rules! tests_of {
    ($driver:ident, $rings:ty, then: $then:expr) => {
        mod $driver {
            use super::*;

            #[test]
            fn echoes_go_through_native() {
                echo_in_mode::<$rings>(AttachMode::Native, XdpMode::Native, 1);
            }

            #[test]
            fn echoes_go_through_native_with_two_queues() {
                echo_in_mode::<$rings>(AttachMode::Native, XdpMode::Native, 2);
            }

            #[test]
            fn echoes_go_through_generic() {
                echo_in_mode::<$rings>(AttachMode::Generic, XdpMode::Generic, 1);
            }

            #[test]
            fn after_kill_the_filter_drops_until_the_next_takes_over() {
                super::after_kill_the_filter_drops_until_the_next_takes_over::<$rings>(stringify!($driver), &$then);
            }

            #[test]
            #[ignore = "run as a process of its own by the test of kill -9"]
            fn forwarder_until_killed() {
                super::forwarder_until_killed::<$rings>();
            }

            tests_of!(@same $rings: says_what_it_got_and_why, falls_to_generic_when_the_mtu_is_too_large,
                refuses_queues_that_are_not_there, what_is_handed_back_reaches_the_local_stack, a_full_ring_is_counted,
                an_interface_that_is_down_refuses_and_recovers,
                refuses_to_send_by_a_queue_that_cannot, a_deleted_interface_harms_nothing_else);
        }
    };
    (@same $rings:ty: $($test:ident),*) => {
        $(#[test]
        fn $test() {
            super::$test::<$rings>();
        })*
    };
}

tests_of!(xdp, XdpRings, then: [AttachMode::Native, AttachMode::Generic]);

#[test]
fn xdp_takes_a_frame_as_long_as_its_chunk() {
    a_frame_as_long_as_its_chunk::<XdpRings>();
}

#[test]
fn xdp_frees_its_queue_when_closed() {
    a_queue_is_free_again::<XdpRings>();
}

// Its rings stay until the process ends, so it takes over once.
#[cfg(feature = "afxdp")]
tests_of!(afxdp, uvs::io::afxdp::AfxdpRings, then: [AttachMode::Native]);
