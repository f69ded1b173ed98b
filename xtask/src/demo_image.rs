//! `cargo xtask demo-image`: the disk of the demo, a real Debian 12 with systemd. Log in as root with the password `hpvm`.

use anyhow::{Result, bail};

use crate::debian::Debian;

const DEMO: Debian<'static> = Debian {
    name: "demo",
    packages: &["qemu-guest-agent"],
    backported: &[],
    left_out: &[],
    files: &[],
    customize: include_str!("demo/customize"),
};

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    if !arguments.is_empty() {
        bail!("usage: cargo xtask demo-image");
    }
    println!("{}", DEMO.image()?.display());
    Ok(())
}
