//! Network namespaces for the tests of this layer: a thread leaves for a namespace of its own, which vanishes with it.
#![allow(dead_code, reason = "each test module uses a part")]
#![allow(unsafe_code, reason = "unshare and packet sockets for tests")]

pub mod hosts;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use super::netns;

/// Runs `test` in a fresh network namespace, on a thread of its own; says so when that needs root.
pub fn in_namespace(test: impl FnOnce() + Send) {
    // The new thread has the name of the test, for messages.
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    std::thread::scope(|scope| {
        let enter = || {
            if enter_new_namespace() {
                test();
            }
        };
        let builder = std::thread::Builder::new().name(name);
        let thread = builder.spawn_scoped(scope, enter).expect("a thread");
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Moves the calling thread to a fresh network namespace; `false`, said loudly, when not root (see [`netns::can_test`]).
pub fn enter_new_namespace() -> bool {
    if !netns::can_test() {
        return false;
    }
    // SAFETY: no pointers; the result is checked.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "a network namespace: {}", io::Error::last_os_error());
    true
}

/// The calling thread's id, by which `ip link set netns` finds its namespace.
pub fn thread_id() -> i32 {
    // SAFETY: no arguments, never fails.
    unsafe { libc::gettid() }
}

/// Runs `ip ARGUMENTS` in the calling thread's namespace; panics when it fails.
pub fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("the ip command is installed");
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Waits until an interface's carrier is noticed: before that, the kernel drops what is sent there.
pub fn wait_up(interface: &str) {
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        let output = Command::new("ip")
            .args(["-o", "link", "show", "dev", interface])
            .output()
            .unwrap();
        if String::from_utf8_lossy(&output.stdout).contains("state UP") {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{interface} does not come up");
}

/// Writes a setting under /proc/sys/net.
pub fn sysctl(path: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{path}"), value).expect(path);
}

/// A packet socket on one interface that sees every frame received there.
pub struct Sniffer(OwnedFd);

impl Sniffer {
    pub fn new(interface: &str) -> Sniffer {
        let name = std::ffi::CString::new(interface).unwrap();
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: `name` is a C string, `address` a sockaddr_ll of the size given; results are checked.
        unsafe {
            let index = libc::if_nametoindex(name.as_ptr());
            assert_ne!(index, 0, "no interface {interface}");
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, 0);
            assert!(fd >= 0);
            let fd = OwnedFd::from_raw_fd(fd);
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = protocol;
            address.sll_ifindex = index as i32;
            let len = size_of::<libc::sockaddr_ll>() as u32;
            assert_eq!(libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len), 0);
            Sniffer(fd)
        }
    }

    /// The next frame that `wanted` says yes to, within two seconds.
    pub fn next(&self, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        self.within(Duration::from_secs(2), wanted)
    }

    /// The next frame that `wanted` says yes to, within `time`.
    pub fn within(&self, time: Duration, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let end = Instant::now() + time;
        let mut buffer = vec![0; 1 << 17];
        while Instant::now() < end {
            // SAFETY: pointer and length are the buffer's.
            let n = unsafe { libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            match n {
                n if n > 0 && wanted(&buffer[..n as usize]) => return Some(buffer[..n as usize].to_vec()),
                n if n > 0 => {}
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        None
    }

    /// Sends a frame as it is.
    pub fn send(&self, frame: &[u8]) {
        // SAFETY: pointer and length are the frame's.
        let n = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(n, frame.len() as isize, "{}", io::Error::last_os_error());
    }
}

/// A socket filter that keeps everything.
pub fn keep_all() -> OwnedFd {
    // struct bpf_insn: opcode, registers, offset, immediate. mov32 r0, -1; exit.
    let program: [u64; 2] = [0xffff_ffff_0000_00b4, 0x95];
    let license = c"GPL";
    let mut attributes = [0u64; 16];
    // union bpf_attr for BPF_PROG_LOAD: type (1 = socket filter) and count, instructions, license.
    attributes[0] = 1 | (program.len() as u64) << 32;
    attributes[1] = program.as_ptr() as u64;
    attributes[2] = license.as_ptr() as u64;
    // SAFETY: the attributes have the size given, and their pointers are to live memory, which is only read.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, 5, attributes.as_ptr(), size_of_val(&attributes));
        assert!(fd >= 0, "bpf: {}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd as i32)
    }
}

/// The kernel's index of an interface of the calling thread's namespace.
pub fn index_of(interface: &str) -> u32 {
    let name = std::ffi::CString::new(interface).unwrap();
    // SAFETY: `name` is a C string.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}
