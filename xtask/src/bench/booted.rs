//! Rows about a VM Host at work: 1,000 guests defined, 10 of them booted to userland, one of these hanging. Beside it libvirt
//! with as many domains, of which as many are started.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::Effort;
use super::house::House;
use super::listing;
use super::peer::Peer;
use super::process::{self, Memory};
use super::report::{Row, Verdict};
use super::statistics::Series;

/// What the small guest prints when it is up.
const READY: &[u8] = b"HPVM GUEST READY";
const LIST_MS: f64 = 8.0;
const PSS_MIB: f64 = 5.0;
const PRIVATE_DIRTY_MIB: f64 = 2.0;
const IDLE_PERCENT: f64 = 0.5;

pub(super) fn measure(effort: &Effort) -> Result<Vec<Row>> {
    let house = House::new()?;
    let booted = effort.amount(10, 2);
    let defined = effort.amount(1000, 200) - booted;
    listing::define(&house, defined)?;
    for n in 1..=booted {
        boot(&house, n, defined + n)?;
    }
    let peer = Peer::start()?;
    if let Some(peer) = &peer {
        define_peers(peer, defined, booted)?;
    }
    let idle = idle(&house, peer.as_ref(), effort)?;
    let memory = memory(&house, peer.as_ref(), booted, effort)?;
    let list = list(&house, peer.as_ref(), defined, effort)?;
    Ok(vec![list, memory, idle])
}

/// One after the other: a guest that boots takes a whole processor.
fn boot(house: &House, n: usize, number: usize) -> Result<()> {
    let name = format!("booted{n}");
    let disk = house.boot_disk(&format!("{name}.img"))?;
    house.create_full(&name, number, &disk)?;
    house.run(&["hpvmstart", "-P", &name])?;
    let console = house.guest_file(&name, "console.log");
    let took = process::wait_until(&format!("{name} is up"), || {
        fs::read(&console).is_ok_and(|log| log.windows(READY.len()).any(|part| part == READY))
    })?;
    eprintln!("  {name} is up after {:.1} s", took.as_secs_f64());
    Ok(())
}

/// Both over the same seconds, some times.
fn idle(house: &House, peer: Option<&Peer>, effort: &Effort) -> Result<Row> {
    let seconds = effort.amount(10, 2) as u64;
    let ours = house.supervisors();
    let theirs: Vec<i32> = peer.map(Peer::daemon).transpose()?.into_iter().collect();
    let used = |pids: &[i32]| pids.iter().map(|pid| process::processor_time(*pid)).sum();
    let slices = (0..effort.runs(7)).map(|_| {
        let before: [Duration; 2] = [used(&ours), used(&theirs)];
        process::pause(Duration::from_secs(seconds));
        let percent = |now: Duration, before| (now - before).as_secs_f64() / seconds as f64 * 100.0;
        (percent(used(&ours), before[0]), percent(used(&theirs), before[1]))
    });
    let (ours, theirs): (Vec<f64>, Vec<f64>) = slices.unzip();
    let [ours, theirs] = [ours, theirs].map(Series::from_iter);
    Ok(Row {
        what: "all processes of hpvm, 10 idle guests".into(),
        peer: peer.map(|_| format!("libvirtd {:.2}%", theirs.median())).unwrap_or_default(),
        target: "0.5% of one processor",
        measured: format!("{:.2}% (least {:.2})", ours.median(), ours.least()),
        verdict: Verdict::of(ours.median() <= IDLE_PERCENT),
    })
}

fn memory(house: &House, peer: Option<&Peer>, guests: usize, effort: &Effort) -> Result<Row> {
    let ours = house.supervisors();
    ensure!(ours.len() == 2 * guests, "{} keepers and workers of {guests} guests", ours.len());
    let [pss, dirty] = median_of_memory(&ours, effort)?.map(|mib| mib / guests as f64);
    let theirs = peer.map(|peer| median_of_memory(&[peer.daemon()?], effort)).transpose()?;
    let theirs = theirs.map(|[pss, dirty]| format!("libvirtd {pss:.1} MiB; {dirty:.1} MiB in all"));
    Ok(Row {
        what: "keeper and hpvmapp per running guest, PSS; private dirty".into(),
        peer: theirs.unwrap_or_default(),
        target: "5 MiB; 2 MiB",
        measured: format!("{pss:.1} MiB; {dirty:.1} MiB"),
        verdict: Verdict::of(pss <= PSS_MIB && dirty <= PRIVATE_DIRTY_MIB),
    })
}

/// What processes have together in MiB: their share of all they have mapped, and what they alone have written.
fn median_of_memory(pids: &[i32], effort: &Effort) -> Result<[f64; 2]> {
    let looks = (0..effort.runs(7)).map(|_| {
        let each = pids.iter().map(|pid| process::memory(*pid)).collect::<Result<Vec<Memory>>>()?;
        let mib = |of: fn(&Memory) -> u64| each.iter().map(of).sum::<u64>() as f64 / 1024.0;
        process::pause(Duration::from_secs(1));
        Ok((mib(|one| one.pss), mib(|one| one.private_dirty)))
    });
    let (pss, dirty): (Vec<f64>, Vec<f64>) = looks.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    Ok([pss, dirty].map(|series| Series::from_iter(series).median()))
}

fn list(house: &House, peer: Option<&Peer>, defined: usize, effort: &Effort) -> Result<Row> {
    if let Some(peer) = peer {
        process::signal(peer.qemu("paused1")?, Signal::STOP);
    }
    let hanging = house.qemu(defined + 1)?;
    process::signal(hanging, Signal::STOP);
    // Until the worker has noticed, which is what a list then shows.
    process::wait_until("the hanging guest is shown", || {
        house.run(&["hpvmstatus"]).is_ok_and(|text| text.contains("On (ATTN)"))
    })?;
    listing::status(house, 1)?;
    let (mut ours, mut theirs) = (Series::default(), Series::default());
    for _ in 0..effort.runs(31) {
        ours.push(house.time(&["hpvmstatus"])?);
        peer.iter().try_for_each(|peer| peer.list().map(|time| theirs.push(time)))?;
    }
    process::signal(hanging, Signal::CONT);
    let is_met =
        ours.median() <= LIST_MS && (theirs.is_empty() || ours.median() <= theirs.median() / 20.0);
    Ok(Row {
        what: "`hpvmstatus`, 1,000 guests defined, 10 running, one of them stopped by SIGSTOP"
            .into(),
        peer: if theirs.is_empty() {
            String::new()
        } else {
            format!("`virsh list --all` {theirs}")
        },
        target: "8 ms, and 1/20 of virsh",
        measured: ours.to_string(),
        verdict: Verdict::of(is_met),
    })
}

/// As many domains; those that run are paused, so that they take nothing from what is measured.
fn define_peers(peer: &Peer, defined: usize, booted: usize) -> Result<()> {
    eprintln!("  defining as many domains …");
    peer.define_many(defined)?;
    peer.make_image()?;
    for n in 1..=booted {
        let name = format!("paused{n}");
        let disk = peer.console(&format!("disk-of-{name}"));
        fs::File::create(&disk)?.set_len(1 << 20)?;
        peer.define(&name, &disk)?;
        peer.virsh(&["start", "--paused", &name])?;
    }
    Ok(())
}
