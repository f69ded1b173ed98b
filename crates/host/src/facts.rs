//! How much processor and memory this host has, and has left.

use std::fs::{self, File};
use std::io::{self, Read};

/// The host's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub total: u64,
    /// What can be had without swapping, as the kernel reckons.
    pub available: u64,
    pub swap_total: u64,
    pub swap_free: u64,
}

pub fn memory() -> io::Result<Memory> {
    parse_memory(&fs::read_to_string("/proc/meminfo")?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no MemTotal in /proc/meminfo"))
}

/// The same as [`Memory::total`], without the many figures that /proc/meminfo makes for it.
#[must_use]
pub fn memory_total() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit))
}

/// How many processors are online.
pub fn processors() -> io::Result<u32> {
    let online = parse_cpu_list(&fs::read_to_string("/sys/devices/system/cpu/online")?);
    Ok(online.unwrap_or(1))
}

/// MHz of one of them; 0 where the host does not say. What it can do, where its clock goes up and down; without that the clock of
/// now, which the kernel takes its time to tell.
pub fn processor_mhz() -> io::Result<u32> {
    let khz = |name: &str| {
        let text = fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cpufreq/{name}"));
        text.ok()?.trim().parse::<u32>().ok()
    };
    match khz("base_frequency").or_else(|| khz("cpuinfo_max_freq")) {
        Some(khz) => Ok(khz / 1000),
        None => Ok(parse_mhz(&first_processor()?).unwrap_or(0)),
    }
}

/// What /proc/cpuinfo tells of the first processor: a page holds it, and of a large host the whole takes milliseconds.
fn first_processor() -> io::Result<String> {
    let mut page = [0; 4096];
    let length = File::open("/proc/cpuinfo")?.read(&mut page)?;
    Ok(String::from_utf8_lossy(&page[..length]).into_owned())
}

fn parse_memory(text: &str) -> Option<Memory> {
    let field = |name: &str| -> Option<u64> {
        let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kib: u64 = rest.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kib * 1024)
    };
    Some(Memory {
        total: field("MemTotal")?,
        available: field("MemAvailable")?,
        swap_total: field("SwapTotal").unwrap_or(0),
        swap_free: field("SwapFree").unwrap_or(0),
    })
}

/// How many processors a list such as `0-3,8` names.
fn parse_cpu_list(text: &str) -> Option<u32> {
    text.trim().split(',').try_fold(0_u32, |count, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

fn parse_mhz(text: &str) -> Option<u32> {
    let line = text.lines().find(|line| line.starts_with("cpu MHz"))?;
    let whole = line.split_once(':')?.1.trim().split('.').next()?;
    whole.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_counted() {
        for (text, count) in [("0\n", Some(1)), ("0-3,8\n", Some(5)), ("3-1", None), ("", None)] {
            assert_eq!(parse_cpu_list(text), count, "{text:?}");
        }
    }

    #[test]
    fn memory_is_in_bytes() {
        let text = "MemTotal:  2 kB\nMemFree: 1 kB\nMemAvailable:  1 kB\nSwapTotal: 0 kB\n";
        let memory = parse_memory(text).expect("a whole meminfo");
        assert_eq!((memory.total, memory.available, memory.swap_free), (2048, 1024, 0));
    }

    #[test]
    fn this_host_has_processors_and_memory() {
        let memory = memory().expect("/proc/meminfo");
        assert!(memory.total >= memory.available && memory.available > 0);
        assert_eq!(memory_total(), memory.total);
        assert!(processors().expect("/sys") >= 1);
    }

    #[test]
    fn the_clock_is_read_without_its_fraction() {
        assert_eq!(parse_mhz("model\t: 1\ncpu MHz\t\t: 2899.998\n"), Some(2899));
        assert_eq!(parse_mhz("no such line\n"), None);
    }
}
