//! The programs that are measured, each run in a process of its own: this one, the floor, this one under valgrind.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Starts them, pinned.
pub struct Children {
    floor: Option<PathBuf>,
    cpus: Vec<usize>,
}

/// A program that is running.
struct Running {
    child: Child,
    what: String,
}

impl Children {
    /// `floor` is the folder of its programs; `cpu` the one to be measured on.
    pub fn new(floor: Option<PathBuf>, cpu: Option<usize>) -> Children {
        let known = core_affinity::get_core_ids().unwrap_or_default();
        let mut cpus: Vec<usize> = known.iter().rev().map(|core| core.id).collect();
        if let Some(cpu) = cpu {
            cpus.retain(|other| *other != cpu);
            cpus.insert(0, cpu);
        }
        Children { floor, cpus }
    }

    /// The CPUs of two workers, if there are two.
    pub fn pair(&self) -> Option<[usize; 2]> {
        self.cpus.first_chunk().copied()
    }

    /// The numbers that a run of this program prints, on the one CPU.
    pub fn ours(&self, arguments: &[String]) -> Vec<f64> {
        self.ours_on(&self.cpus[..1], arguments)
    }

    /// The same with a worker on each of these CPUs.
    pub fn ours_on(&self, cpus: &[usize], arguments: &[String]) -> Vec<f64> {
        let mut command = pinned(cpus, &this_program());
        command.args(arguments);
        if cpus.len() > 1 {
            cpus.iter().for_each(|cpu| {
                command.args(["--cpu", &cpu.to_string()]);
            });
        }
        numbers(&Running::start(command).output())
    }

    /// Nanoseconds a packet of the floor on each of these CPUs, at the same time.
    pub fn floor_on(&self, cpus: &[usize], mode: &str, connections: u32, packets: u64) -> Option<Vec<f64>> {
        let program = self.floor.as_ref()?.join("mb");
        let start = |cpu: &usize| {
            let mut command = pinned(&[*cpu], &program);
            // Batches of 64, prefetching, huge pages.
            command.args([mode, &connections.to_string(), "64", "1", "1", &packets.to_string()]);
            Running::start(command)
        };
        let running: Vec<Running> = cpus.iter().map(start).collect();
        let number = |running: Running| number_before(&running.output(), " ns/pkt");
        Some(running.into_iter().map(number).collect())
    }

    /// The same on the one CPU.
    pub fn floor(&self, mode: &str, connections: u32, packets: u64) -> Option<f64> {
        Some(self.floor_on(&self.cpus[..1], mode, connections, packets)?[0])
    }

    /// Nanoseconds that the floor takes to insert a connection.
    pub fn floor_insert(&self, connections: u32) -> Option<f64> {
        let mut command = pinned(&self.cpus[..1], &self.floor.as_ref()?.join("ins"));
        command.arg(connections.to_string());
        Some(number_before(&Running::start(command).output(), " ns/conn"))
    }
}

/// Instructions a packet that a run of this program spends in `process_measured`, by callgrind. `None` without valgrind.
pub fn instructions(arguments: &[String]) -> Option<f64> {
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=*process_measured*")
        .arg(this_program())
        .args(arguments);
    let output = command.output().ok()?;
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
    let collected = text.lines().find_map(|line| line.split_once("Collected :"));
    let (_, count) = collected.unwrap_or_else(|| panic!("valgrind: {text}"));
    let counted: f64 = count.trim().parse().expect("a number");
    let numbers = numbers(&String::from_utf8_lossy(&output.stdout));
    Some(counted / numbers[2])
}

fn this_program() -> PathBuf {
    std::env::current_exe().expect("this program has a path")
}

/// A program on these CPUs.
fn pinned(cpus: &[usize], program: &Path) -> Command {
    let cpus: Vec<String> = cpus.iter().map(usize::to_string).collect();
    let mut command = Command::new("taskset");
    command.arg("-c").arg(cpus.join(",")).arg(program);
    command
}

impl Running {
    fn start(mut command: Command) -> Running {
        command.stdout(Stdio::piped());
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Running {
            child,
            what: format!("{command:?}"),
        }
    }

    fn output(self) -> String {
        let Running { child, what } = self;
        let output = child.wait_with_output().unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(output.status.success(), "{what}: {}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// What a run of this program prints.
fn numbers(text: &str) -> Vec<f64> {
    let number = |word: &str| word.parse().unwrap_or_else(|_| panic!("no number: {text}"));
    text.split_whitespace().map(number).collect()
}

/// The number in front of its unit.
fn number_before(text: &str, unit: &str) -> f64 {
    let number = text.split(unit).next().and_then(|before| before.rsplit(' ').next());
    let number = number.and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("no{unit}: {text}"))
}
