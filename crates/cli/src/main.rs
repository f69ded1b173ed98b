//! The binary `hpvm`: every command of the product, dispatched on the name it was called by.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Where that cannot be had, such a write ends us, as it ends any program.
    let _ = hpvm_host::signals::survive_file_limit();
    hpvm_host::signals::see_children_end();
    let (command, result) = hpvm_cli::dispatch::run(std::env::args_os());
    hpvm_cli::exit::conclude(&command, result)
}
