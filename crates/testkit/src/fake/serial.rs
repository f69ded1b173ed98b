//! What the console shows: firmware's greeting, the OS's when it is up, and an echo of what is typed.

pub(super) const FIRMWARE: &str = "\x1b[2J\x1b[01;01HBdsDxe: loading Boot0001 \"fake\"\r\n\
    BdsDxe: starting Boot0001 \"fake\"\r\n";
pub(super) const SHELL: &str = "UEFI Interactive Shell v2.2\r\nShell> ";
pub(super) const KERNEL: &str = "[    0.000000] Linux version 6.1.0 (fake)\r\n";
pub(super) const POWER_DOWN: &str = "\r\n[   15.000000] reboot: Power down\r\n";

/// A terminal's echo: a carriage return starts a new line.
pub(super) fn echo(typed: &[u8]) -> Vec<u8> {
    let mut shown = Vec::with_capacity(typed.len());
    for byte in typed {
        match byte {
            b'\r' => shown.extend_from_slice(b"\r\n"),
            other => shown.push(*other),
        }
    }
    shown
}
