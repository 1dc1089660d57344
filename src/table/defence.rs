//! IPVS's defences against overload: `drop_entry`, `drop_packet`, `secure_tcp`. Each has a mode: 0 off, 1 automatic and at
//! rest, 2 automatic and at work, 3 always at work.
//!
//! The automatic ones work while something is short. For the kernel that is free memory, fewer pages than `amemthresh`. uvs
//! takes its memory at the start; what a flood uses up is the connection table. So uvs looks at both, once a second:
//!
//! | what | short when fewer are left than |
//! |---|---|
//! | pages of memory, free or in buffers | `amemthresh` |
//! | slots of the connection table | `amemthresh` pages of them, 64 a page, but at most 1/16 of the table |

use super::sysctl::Sysctls;

/// Slots of the connection table in a page.
const SLOTS_PER_PAGE: i64 = 4096 / 64;
/// The part of the connection table that the last slots are at most.
const LAST_PART: i64 = 16;

/// What is left of what a flood uses up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supplies {
    /// Pages of memory, free or in buffers.
    pub pages_free: u64,
    /// Slots of the connection table.
    pub slots: u64,
    /// Of these, not taken.
    pub slots_free: u64,
}

impl Default for Supplies {
    /// Plenty.
    fn default() -> Self {
        Supplies {
            pages_free: u64::MAX,
            slots: u64::MAX,
            slots_free: u64::MAX,
        }
    }
}

impl Supplies {
    /// One packet in so many is to go by the automatic mode of `drop_packet`: the less is left, the more. `None`: nothing
    /// is short.
    fn drop_rate(&self, sysctls: &Sysctls) -> Option<i32> {
        let pages = sysctls.amemthresh as i64;
        let slots = (pages * SLOTS_PER_PAGE).min(clamped(self.slots) / LAST_PART);
        let rate = |wanted: i64, left: u64| {
            let missing = wanted.saturating_sub(clamped(left));
            (missing > 0).then(|| (wanted / missing) as i32)
        };
        let both = [rate(pages, self.pages_free), rate(slots, self.slots_free)];
        both.into_iter().flatten().min()
    }
}

fn clamped(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// What is at work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Defence {
    /// Entries are dropped at random.
    pub drop_entry: bool,
    /// One packet in so many that would begin a connection is dropped; 0 = none.
    pub drop_rate: i32,
    /// TCP states follow the stricter rules.
    pub secure_tcp: bool,
}

impl Defence {
    /// Of drop_entry, drop_packet and secure_tcp: which.
    pub fn at_work(&self) -> [bool; 3] {
        [self.drop_entry, self.drop_rate != 0, self.secure_tcp]
    }

    /// By the settings and what is left.
    pub fn new(sysctls: &Sysctls, supplies: &Supplies) -> Defence {
        let automatic = supplies.drop_rate(sysctls);
        let works = |mode: i32| match mode {
            0 => false,
            1 | 2 => automatic.is_some(),
            _ => true,
        };
        let drop_rate = match sysctls.drop_packet {
            0 => 0,
            1 | 2 => automatic.unwrap_or(0),
            _ => sysctls.am_droprate,
        };
        Defence {
            drop_entry: works(sysctls.drop_entry),
            drop_rate,
            secure_tcp: works(sysctls.secure_tcp),
        }
    }
}

impl Sysctls {
    /// The automatic modes read 2 while they are at work, else 1, as in the kernel. `None`: they do already.
    pub fn with_modes_of(&self, supplies: &Supplies) -> Option<Sysctls> {
        let mode = if supplies.drop_rate(self).is_some() { 2 } else { 1 };
        let mut after = self.clone();
        for one in [&mut after.drop_entry, &mut after.drop_packet, &mut after.secure_tcp] {
            if matches!(*one, 1 | 2) {
                *one = mode;
            }
        }
        (after != *self).then_some(after)
    }
}

/// Which packets go by [`Defence::drop_rate`]. Each worker has one.
#[derive(Debug, Default)]
pub struct PacketDropper {
    until_next: i32,
}

impl PacketDropper {
    /// Whether this packet goes: the first, and then one in `rate`.
    pub fn drops(&mut self, rate: i32) -> bool {
        if rate == 0 {
            return false;
        }
        self.until_next = self.until_next.saturating_sub(1);
        if self.until_next > 0 {
            return false;
        }
        self.until_next = rate;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysctls(settings: &[(&str, &str)]) -> Sysctls {
        let mut sysctls = Sysctls::default();
        for (name, value) in settings {
            sysctls.set(name, value).unwrap();
        }
        sysctls
    }

    fn table(slots: u64, slots_free: u64) -> Supplies {
        Supplies {
            slots,
            slots_free,
            ..Supplies::default()
        }
    }

    const SHORT: Supplies = Supplies {
        pages_free: 512,
        slots: 1 << 20,
        slots_free: 1 << 20,
    };

    #[test]
    fn modes_are_the_kernels() {
        for (mode, at_rest, under_pressure) in [
            ("0", false, false),
            ("1", false, true),
            ("2", false, true),
            ("3", true, true),
        ] {
            for name in ["drop_entry", "drop_packet", "secure_tcp"] {
                let sysctls = sysctls(&[(name, mode)]);
                let works = |supplies| {
                    let defence = Defence::new(&sysctls, &supplies);
                    match name {
                        "drop_entry" => defence.drop_entry,
                        "drop_packet" => defence.drop_rate != 0,
                        _ => defence.secure_tcp,
                    }
                };
                assert_eq!(
                    (works(Supplies::default()), works(SHORT)),
                    (at_rest, under_pressure),
                    "{name} {mode}"
                );
                let reads = |supplies| {
                    let after = sysctls.with_modes_of(&supplies);
                    after.as_ref().unwrap_or(&sysctls).get(name).unwrap()
                };
                let expected = match mode {
                    "1" | "2" => ("1", "2"),
                    other => (other, other),
                };
                let got = (reads(Supplies::default()), reads(SHORT));
                assert_eq!((&*got.0, &*got.1), expected, "{name} {mode}");
            }
        }
    }

    #[test]
    fn the_less_is_left_the_more_packets_go() {
        let automatic = sysctls(&[("drop_packet", "1")]);
        let rate = |supplies| Defence::new(&automatic, &supplies).drop_rate;
        // Memory: 1024 pages, as the kernel reckons.
        for (pages_free, expected) in [(1024, 0), (1023, 1024), (768, 4), (512, 2), (0, 1)] {
            let supplies = Supplies { pages_free, ..SHORT };
            assert_eq!(rate(supplies), expected, "{pages_free} pages");
        }
        // A large table: 65536 slots. A small one: a sixteenth.
        assert_eq!(rate(table(1 << 20, 65_536)), 0);
        assert_eq!(rate(table(1 << 20, 65_535)), 65_536);
        assert_eq!(rate(table(1 << 20, 32_768)), 2);
        assert_eq!(rate(table(1024, 64)), 0);
        assert_eq!((rate(table(1024, 48)), rate(table(1024, 0))), (4, 1));
        // The worse of the two counts; always is always the same; no threshold, no pressure.
        let both = Supplies {
            pages_free: 768,
            ..table(1024, 32)
        };
        assert_eq!(rate(both), 2);
        let always = sysctls(&[("drop_packet", "3"), ("am_droprate", "7")]);
        assert_eq!(Defence::new(&always, &both).drop_rate, 7);
        let never = sysctls(&[("drop_packet", "1"), ("amemthresh", "0")]);
        assert_eq!(Defence::new(&never, &both).drop_rate, 0);
    }

    #[test]
    fn one_packet_in_so_many() {
        let dropped = |rate| {
            let mut dropper = PacketDropper::default();
            (0..7).map(|_| dropper.drops(rate) as u8).collect::<Vec<_>>()
        };
        assert_eq!(dropped(0), [0; 7]);
        assert_eq!(dropped(1), [1; 7]);
        assert_eq!(dropped(3), [1, 0, 0, 1, 0, 0, 1]);
        assert_eq!(dropped(-1), [1; 7]);
    }
}
