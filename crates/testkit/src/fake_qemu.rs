//! `fake-qemu`: stands in for `qemu-system-x86_64` where a test needs QMP and a console but no machine behind them.
//! `hpvm_testkit::fake` says what it does and how a test tells it to misbehave.

use std::process::ExitCode;

fn main() -> ExitCode {
    hpvm_testkit::fake::main()
}
