//! The human monitor, as far as anybody asks it by QMP: `i` and `info registers`.

/// What the processor and the chipset would say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chipset {
    pub os_runs: bool,
    pub button_enabled: bool,
    pub button_pressed: bool,
    /// Firmware has mapped the power management registers.
    pub mapped: bool,
}

pub(super) fn answer(line: &str, chipset: Chipset) -> String {
    let mut words = line.split_ascii_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some("info"), Some("registers"), _) => registers(chipset),
        (Some("i"), Some(port), None) => read_port("b", port, chipset),
        (Some("i"), Some(format), Some(port)) => {
            let size = ["b", "h", "w"].into_iter().find(|size| format.contains(size));
            read_port(size.unwrap_or("b"), port, chipset)
        }
        (word, ..) => format!("unknown command: '{}'\r\n", word.unwrap_or_default()),
    }
}

fn registers(chipset: Chipset) -> String {
    let (pointer, cr0) = match (chipset.mapped, chipset.os_runs) {
        (false, _) => ("EIP=0000fff0 EFL=00000002", "60000010"),
        (true, false) => ("RIP=000000001f6e83c8 RFL=00000246", "80010033"),
        (true, true) => ("RIP=ffffffffaf217a0b RFL=00000246", "80050033"),
    };
    format!(
        "\r\nCPU#0\r\nRAX=0000000000000000 RBX=0000000000000000\r\n{pointer} [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0\r\n\
         CR0={cr0} CR2=0000000000000000\r\n"
    )
}

/// Sizes are the monitor's: b one byte, h two, w four, which it prints as b, w and l.
fn read_port(size: &str, port: &str, chipset: Chipset) -> String {
    let digits = port.trim_start_matches("0x");
    let Ok(port) = u32::from_str_radix(digits, if digits == port { 10 } else { 16 }) else {
        return "invalid char in expression\r\n".into();
    };
    let whole = power_management(chipset).to_le_bytes();
    let byte = |at: u32| match at.checked_sub(0x600) {
        Some(index @ 0..4) => whole[index as usize],
        _ => 0xff,
    };
    match size {
        "b" => format!("portb[0x{port:04x}] = 0x{:02x}\r\n", byte(port)),
        "h" => {
            let value = u16::from_le_bytes([byte(port), byte(port + 1)]);
            format!("portw[0x{port:04x}] = 0x{value:04x}\r\n")
        }
        _ => {
            let value =
                u32::from_le_bytes([byte(port), byte(port + 1), byte(port + 2), byte(port + 3)]);
            format!("portl[0x{port:04x}] = 0x{value:08x}\r\n")
        }
    }
}

/// Status in the lower half, enable in the upper.
fn power_management(chipset: Chipset) -> u32 {
    if !chipset.mapped {
        return u32::MAX;
    }
    let status = 0x0001 | if chipset.button_pressed { 0x0100 } else { 0 };
    let enable = if chipset.button_enabled { 0x0120 } else { 0 };
    enable << 16 | status
}
