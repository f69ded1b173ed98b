//! Rows about disks: AVIO beside VIO, and other emulations beside them for the record, in one guest. Its QEMU has the
//! command line that hpvmstart gave it, and the other adapters are added to that.
//!
//! A machine that shares its processors is at times twice as fast as at others. So the disks are loaded in turn, a fraction
//! of a second each, and each time is compared with VIO's of the same round only. The stores are files on the disk, as guests
//! have them. In memory is another world, and for the record: there a request is done while it is put to the store.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Effort;
use super::bare::Bare;
use super::house::{Folder, House};
use super::loaded::{Loaded, Pattern, Slice};
use super::report::{Row, Verdict};
use super::statistics::Series;
use crate::cache::checkout;
use crate::test_guest;

const GUEST: &str = "loaded";
const SLICE: Duration = Duration::from_millis(150);

/// The disks, told apart in the guest by their sizes: `FIRST_MIB` and one more each.
#[derive(Clone, Copy)]
enum Side {
    Avio,
    Vio,
    /// AVIO served by a thread of its own, as hpvmconf may ask for.
    AvioThread,
    /// virtio-scsi as QEMU makes it unless told otherwise; its store is that of the others.
    VirtioScsi,
    VirtioBlk,
    Lsi,
}

const SIDES: [Side; 6] =
    [Side::Avio, Side::Vio, Side::AvioThread, Side::VirtioScsi, Side::VirtioBlk, Side::Lsi];
const FIRST_MIB: u64 = 64;

/// Where a file lies on the disk makes more of a difference than some adapters do, so several guests have files of their own.
const GUESTS: usize = 3;

const RANDOM: Pattern = Pattern { words: "4096 16 16 random mixed", time: SLICE };
/// As many threads would, and as fio does unless told otherwise.
const RANDOM_APART: Pattern = Pattern { words: "4096 16 1 random mixed", time: SLICE };
const SEQUENTIAL: Pattern = Pattern { words: "1048576 4 4 sequential mixed", time: SLICE };
const SINGLE: Pattern = Pattern { words: "4096 1 1 random read", time: SLICE };

/// At least as many requests, and so much of the processor time for each.
const RANDOM_PROCESSOR: f64 = 0.8;
const SEQUENTIAL_PROCESSOR: f64 = 1.0;

pub(super) fn measure(effort: &Effort) -> Result<Vec<Row>> {
    let rounds = effort.runs(27);
    let (mut on_disk, mut in_memory) = (Figures::default(), Figures::default());
    for _ in 0..GUESTS {
        on_disk.take(&Folder::on_disk("disks")?, rounds)?;
    }
    in_memory.take(&Folder::in_memory("disks")?, rounds)?;
    Ok(vec![
        on_disk.random.row(
            "AVIO over VIO in one guest, stores on the disk, 4 KiB read and written at random, 16 at once: requests; processor time for each",
            "1.0 times; 20% less",
            RANDOM_PROCESSOR,
        ),
        on_disk.sequential.row(
            "AVIO over VIO, stores on the disk, 1 MiB read and written in sequence",
            "1.0 times; not more",
            SEQUENTIAL_PROCESSOR,
        ),
        on_disk.single.row(
            "AVIO over VIO, stores on the disk, 4 KiB read at random, one at a time",
            "1.0 times",
            f64::INFINITY,
        ),
        Row {
            what: "AVIO over VIO, stores on the disk, 4 KiB at random, 16 at once, each handed over by itself: served by the processor; by a thread".into(),
            peer: format!(
                "virtio-scsi as QEMU makes it {}",
                on_disk.random_apart.ratio(Side::VirtioScsi, Side::Vio)
            ),
            target: "for the record",
            measured: format!(
                "{}; {}",
                on_disk.random_apart.ratio(Side::Avio, Side::Vio),
                on_disk.random_apart.ratio(Side::AvioThread, Side::Vio)
            ),
            verdict: Verdict::Met,
        },
        Row {
            what: "AVIO served by a thread over VIO, stores on the disk: at random; in sequence; one at a time".into(),
            peer: String::new(),
            target: "for the record",
            measured: on_disk.ratios(Side::AvioThread, Side::Vio),
            verdict: Verdict::Met,
        },
        Row {
            what: "AVIO over VIO, stores in memory: at random; in sequence; one at a time".into(),
            peer: format!(
                "virtio-scsi as QEMU makes it {}",
                in_memory.ratios(Side::VirtioScsi, Side::Vio)
            ),
            target: "for the record",
            measured: in_memory.ratios(Side::Avio, Side::Vio),
            verdict: Verdict::Met,
        },
        Row {
            what: "AVIO over lsi53c895a, the emulation of older managers, stores on the disk: at random; in sequence; one at a time".into(),
            peer: String::new(),
            target: "for the record",
            measured: on_disk.ratios(Side::Avio, Side::Lsi),
            verdict: Verdict::Met,
        },
    ])
}

/// What came of guests whose disks are in one place.
#[derive(Default)]
struct Figures {
    random: Turns,
    random_apart: Turns,
    sequential: Turns,
    single: Turns,
}

impl Figures {
    /// Adds those of one more guest.
    fn take(&mut self, place: &Folder, rounds: usize) -> Result<()> {
        eprintln!("  disks in {} …", place.0.display());
        let house = House::new()?;
        let mut guest = boot(&house, &place.0)?;
        self.random.take(&mut guest, &RANDOM, rounds)?;
        self.random_apart.take(&mut guest, &RANDOM_APART, rounds)?;
        self.sequential.take(&mut guest, &SEQUENTIAL, rounds)?;
        self.single.take(&mut guest, &SINGLE, rounds)
    }

    fn ratios(&self, one: Side, other: Side) -> String {
        let turns = [&self.random, &self.sequential, &self.single];
        turns.map(|turns| turns.ratio(one, other).to_string()).join("; ")
    }
}

fn boot(house: &House, place: &Path) -> Result<Loaded> {
    let rom = checkout().join(".cache/images/mptsas1068.rom");
    house.set(&[("HPVMSCSIROM", &rom)])?;
    let boot = place.join("boot.img");
    fs::copy(test_guest::load_image()?, &boot).context("copying the guest's disk")?;
    let disks: Vec<PathBuf> =
        SIDES.into_iter().map(|side| disk(place, side)).collect::<Result<_>>()?;
    let [avio, vio] = [Side::Avio, Side::Vio].map(|side| &disks[side as usize]);
    let statements = [
        format!("disk:avio_stor:0,0,0:file:{}", boot.display()),
        format!("disk:avio_stor:0,1,0:file:{}", avio.display()),
        format!("disk:scsi:0,2,0:file:{}", vio.display()),
    ];
    let mut line = vec!["hpvmcreate", "-P", GUEST, "-O", "linux", "-c", "1", "-r", "512M"];
    statements.iter().for_each(|statement| line.extend(["-a", statement]));
    house.run(&line)?;
    house.run(&["hpvmstart", "-P", GUEST])?;
    let variables = Path::new("/usr/share/OVMF/OVMF_VARS_4M.fd");
    let media = vec![boot, avio.clone(), vio.clone()];
    let mut bare = Bare::like(house.qemu(1)?, house.root.join("bare"), variables, media)?;
    house.run(&["hpvmstop", "-h", "-F", "-P", GUEST])?;
    let ours = bare.word_with("node-name=medium-0-1-0,").context("no node of the AVIO disk")?;
    bare.also(&peers(&ours, &disks));
    let running = bare.start()?;
    let console = UnixStream::connect(bare.socket("console"))?;
    Loaded::wait(running, console)
}

/// A file whose blocks are all there, so that none has to be found while it is measured.
fn disk(folder: &Path, side: Side) -> Result<PathBuf> {
    let path = folder.join(format!("disk-{}.img", side as usize));
    let mut file = File::create(&path).context("making a disk")?;
    file.write_all(&vec![0x5a; usize::try_from(side.mib() << 20)?])
        .and_then(|()| file.sync_all())
        .context("writing a disk")?;
    Ok(path)
}

/// The adapters that hpvm has not, each on a spare port, and a disk behind each, whose node is as ours.
fn peers(ours: &str, disks: &[PathBuf]) -> Vec<String> {
    let node = |name: &str, side: Side| {
        let fields = ours.split(',').map(|field| match field.split_once('=') {
            Some(("node-name", _)) => format!("node-name={name}"),
            Some(("filename", _)) => format!("filename={}", disks[side as usize].display()),
            _ => field.to_owned(),
        });
        fields.collect::<Vec<_>>().join(",")
    };
    let words = [
        ("-object", "iothread,id=thread,poll-max-ns=0".into()),
        ("-blockdev", node("threaded", Side::AvioThread)),
        ("-device", "virtio-scsi-pci,id=thread-adapter,bus=port-0-7,iothread=thread".into()),
        ("-device", "scsi-hd,bus=thread-adapter.0,drive=threaded".into()),
        ("-blockdev", node("plain", Side::VirtioScsi)),
        ("-device", "virtio-scsi-pci,id=plain-adapter,bus=port-0-4".into()),
        ("-device", "scsi-hd,bus=plain-adapter.0,drive=plain".into()),
        ("-blockdev", node("block", Side::VirtioBlk)),
        ("-device", "virtio-blk-pci,bus=port-0-5,drive=block".into()),
        ("-blockdev", node("lsi", Side::Lsi)),
        ("-device", "lsi53c895a,id=lsi-adapter,bus=port-0-6".into()),
        ("-device", "scsi-hd,bus=lsi-adapter.0,drive=lsi".into()),
    ];
    words.into_iter().flat_map(|(option, value)| [option.to_owned(), value]).collect()
}

impl Side {
    fn mib(self) -> u64 {
        FIRST_MIB + self as u64
    }
}

/// What each disk did in each round.
#[derive(Default)]
struct Turns(Vec<[Slice; SIDES.len()]>);

/// One side beside another: requests in a time, and processor time for a request.
struct Ratio {
    requests: f64,
    processor: f64,
}

impl Turns {
    fn take(&mut self, guest: &mut Loaded, pattern: &Pattern, rounds: usize) -> Result<()> {
        eprintln!("  {} …", pattern.words);
        for round in 0..=rounds {
            let mut slices = [Slice { per_second: 0.0, processor_us: 0.0 }; SIDES.len()];
            let mut order = SIDES;
            if round % 2 == 1 {
                order.reverse();
            }
            for side in order {
                slices[side as usize] = guest.load(side.mib(), pattern)?;
            }
            // In the first round emulation and guest meet everything for the first time.
            if round > 0 {
                self.0.push(slices);
            }
        }
        Ok(())
    }

    fn row(&self, what: &str, target: &'static str, processor_max: f64) -> Row {
        let ratio = self.ratio(Side::Avio, Side::Vio);
        let median = |side: Side, value: fn(&Slice) -> f64| {
            self.0.iter().map(|slices| value(&slices[side as usize])).collect::<Series>().median()
        };
        let [avio, vio] =
            [Side::Avio, Side::Vio].map(|side| median(side, |slice| slice.per_second));
        let [ours, theirs] =
            [Side::Avio, Side::Vio].map(|side| median(side, |slice| slice.processor_us));
        Row {
            what: what.into(),
            peer: format!(
                "virtio-scsi as QEMU makes it {}; virtio-blk {}",
                self.ratio(Side::VirtioScsi, Side::Vio),
                self.ratio(Side::VirtioBlk, Side::Vio)
            ),
            target,
            measured: format!(
                "{ratio} ({avio:.0} and {vio:.0} a second, {ours:.0} and {theirs:.0} µs)"
            ),
            // Requests as they are printed: where the disk is the limit, both come to the same.
            verdict: Verdict::of(ratio.requests >= 0.995 && ratio.processor <= processor_max),
        }
    }

    fn ratio(&self, one: Side, other: Side) -> Ratio {
        let median = |value: fn(&Slice) -> f64| {
            let pair = |slices: &[Slice; SIDES.len()]| {
                value(&slices[one as usize]) / value(&slices[other as usize])
            };
            self.0.iter().map(pair).collect::<Series>().median()
        };
        Ratio {
            requests: median(|slice| slice.per_second),
            processor: median(|slice| slice.processor_us),
        }
    }
}

/// `1.25 times, 30% less`: the second is processor time.
impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let percent = (self.processor - 1.0) * 100.0;
        let word = if percent <= 0.0 { "less" } else { "more" };
        write!(f, "{:.2} times, {:.0}% {word}", self.requests, percent.abs())
    }
}
