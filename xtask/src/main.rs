//! `cargo xtask TASK`: what developers, the Makefile and the demo run beside the product itself.
//!
//! Each task is one module with one entry that takes the remaining arguments. Nothing here is installed, and nothing
//! here knows the product's internals.

mod apt;
mod bench;
mod cache;
mod console_chat;
mod cpio;
mod debian;
mod defects;
mod demo_image;
mod disk;
mod guest_host;
mod initramfs;
mod kernel;
mod option_rom;
mod scsi_target;
mod test_guest;
mod tidy;
mod tool;
mod uki;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask TASK

  test-guest [--kernel cloud|full | --agent | --net]
                                     build the small Linux guest that tests boot; prints its path
  demo-image                         build the Debian 12 disk of the demo; prints its path
  guest-host [run SCRIPT...]         build the Debian guest that plays VM Host; run scripts in it
  option-rom                         build the EFI driver for emulated SCSI; prints its path
  scsi-target                        gather a server of SCSI devices for tests; prints its path
  tidy                               check the rules of this repository
  defects [--write]                  show which defects of A.03.50 are settled, by which test
  bench [ROW] [--quick] [--write]    measure README's table of speed and size
  console-chat ...                   talk to a guest through hpvmconsole, see `console-chat --help`
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((task, rest)) = arguments.split_first() else {
        eprint!("{USAGE}");
        return ExitCode::from(2);
    };
    let result = match task.as_str() {
        "test-guest" => test_guest::run(rest),
        "demo-image" => demo_image::run(rest),
        "guest-host" => guest_host::run(rest),
        "option-rom" => option_rom::run(rest),
        "scsi-target" => scsi_target::run(rest),
        "tidy" => tidy::run(rest),
        "defects" => defects::run(rest),
        "bench" => bench::run(rest),
        "console-chat" => console_chat::run(rest),
        _ => {
            eprint!("xtask: there is no task '{task}'\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask {task}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
