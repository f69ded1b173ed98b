//! Records what QEMU itself says of the commands and events we use: `schemas/qemu-MAJOR.MINOR.json`, against which
//! tests/schema.rs checks our types and from which the fake QEMU judges arguments.
//!
//! `cargo run -p hpvm-qmp --example record_schema -- [QEMU] >crates/qmp/schemas/qemu-10.0.json`

mod live;
mod projection;

fn main() -> anyhow::Result<()> {
    let program = std::env::args().nth(1).unwrap_or_else(|| live::PROGRAM.into());
    let schema = live::schema(&program)?;
    let projection = projection::project(&schema)?;
    println!("{}", serde_json::to_string_pretty(&projection)?);
    Ok(())
}
