//! `cargo xtask bench [ROW …] [--quick] [--write]`: measures README's table 'Speed and size' and prints it; `make bench`
//! calls it after a release build.
//!
//! Each figure comes from a VM Host of its own below /tmp, and from libvirt in turn with it where that is installed. The
//! numbers are taken from outside, by the clock and /proc; nothing here knows the product's internals, save the files and
//! processes that ARCHITECTURE.md names.

mod bare;
mod blocks;
mod booted;
mod cloning;
mod creating;
mod house;
mod listing;
mod loaded;
mod machine;
mod orphans;
mod peer;
mod plugged;
mod process;
mod reflink;
mod report;
mod statistics;
mod storage;
mod together;
mod turns;
mod vswitch;

use anyhow::{Result, bail};

use report::{Row, Table};

const USAGE: &str = "usage: cargo xtask bench [ROW …] [--quick] [--write]";

/// A group of rows that are measured on the same VM Host.
struct Group {
    name: &'static str,
    what: &'static str,
    measure: fn(&Effort) -> Result<Vec<Row>>,
}

const GROUPS: &[Group] = &[
    Group {
        name: "create",
        what: "hpvmcreate and virsh define in turn",
        measure: creating::measure,
    },
    Group {
        name: "clone",
        what: "hpvmclone, cp, qemu-img convert and virsh vol-clone in turn; clones linked and by reflink",
        measure: cloning::measure,
    },
    Group {
        name: "together",
        what: "8 processes creating, changing and listing at once",
        measure: together::measure,
    },
    Group {
        name: "turns",
        what: "bare QEMU, hpvmstart and virsh start in turn: start, first byte, stop, kill",
        measure: turns::measure,
    },
    Group {
        name: "booted",
        what: "1,000 guests defined and 10 booted: listing, memory, idle processor time",
        measure: booted::measure,
    },
    Group {
        name: "hostrdev",
        what: "the VM Host's own disks among 1,000 block devices",
        measure: blocks::measure,
    },
    Group {
        name: "plugged",
        what: "an emulated adapter added to a running guest with its disk",
        measure: plugged::measure,
    },
    Group {
        name: "storage",
        what: "AVIO, VIO and other emulations of disks in one guest",
        measure: storage::measure,
    },
    Group { name: "list", what: "10,000 guests defined: listing", measure: listing::measure },
    Group {
        name: "vswitch",
        what: "our data path, testpmd and OVS-DPDK in slices of 50 ms under one traffic generator",
        measure: vswitch::measure,
    },
    Group {
        name: "vswitch-idle",
        what: "the processes of a virtual switch with NAT whose ports are idle",
        measure: vswitch::product::measure,
    },
    Group {
        name: "vswitch-guests",
        what: "guests on a virtual switch and on taps in turn, with each other and with their host",
        measure: vswitch::real::measure,
    },
    Group { name: "size", what: "the binary", measure: machine::binary_size },
];

/// How often and how much is measured.
struct Effort {
    is_quick: bool,
}

impl Effort {
    /// Runs of a figure: as many as the table asks for, or few.
    fn runs(&self, full: usize) -> usize {
        if self.is_quick { 3 } else { full }
    }

    /// Guests, operations or seconds: all, or few.
    fn amount(&self, full: usize, quick: usize) -> usize {
        if self.is_quick { quick } else { full }
    }
}

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    if let [orphans::WORD, ..] = arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        return orphans::keep(&arguments[1..]);
    }
    let (flags, names): (Vec<&str>, Vec<&str>) =
        arguments.iter().map(String::as_str).partition(|word| word.starts_with('-'));
    if let Some(unknown) = flags.iter().find(|flag| !["--quick", "--write"].contains(flag)) {
        bail!("unknown option {unknown}\n{USAGE}");
    }
    if let Some(unknown) = names.iter().find(|name| !GROUPS.iter().any(|g| g.name == **name)) {
        let known: Vec<&str> = GROUPS.iter().map(|group| group.name).collect();
        bail!("there is no row '{unknown}'; there are: {}", known.join(", "));
    }
    house::remove_leftovers()?;
    let effort = Effort { is_quick: flags.contains(&"--quick") };
    let mut table = Table::new(machine::description()?);
    for group in GROUPS.iter().filter(|g| names.is_empty() || names.contains(&g.name)) {
        eprintln!("{}: {}", group.name, group.what);
        let rows = (group.measure)(&effort)?;
        rows.iter().for_each(|row| eprintln!("  {}", row.line()));
        table.add(&rows);
    }
    print!("{table}");
    if flags.contains(&"--write") {
        table.write()?;
    }
    Ok(())
}
