//! What firmware takes for its variables, and what it does not.

use std::path::Path;

use hpvm_plan::nvram::{Damage, check};
use proptest::prelude::*;

/// As large as a volume of four blocks, with the variables of a store of two.
const FLASH: usize = 4 * BLOCK;
const BLOCK: usize = 4096;
const VOLUME_HEADER: usize = 72;
const FIRST: usize = VOLUME_HEADER + 28;
const HEADER: usize = 60;
const ADDED: u8 = 0x3f;
const DELETED: u8 = 0x3c;

#[test]
fn what_firmware_itself_made_is_sound() {
    let folder = std::fs::read_dir("/usr/share/OVMF").expect("package ovmf").flatten();
    let is_template = |path: &Path| path.to_string_lossy().contains("OVMF_VARS");
    let templates: Vec<_> = folder.map(|e| e.path()).filter(|path| is_template(path)).collect();
    assert!(templates.len() > 1, "{templates:?}");
    for template in templates {
        let content = std::fs::read(&template).expect("a template");
        assert_eq!(check(&content), Ok(()), "{}", template.display());
    }
}

/// Firmware writes a header without its state, marks it, writes name and data, marks them, and all byte after byte.
#[test]
fn a_write_cut_off_at_any_byte_is_no_damage() {
    let mut flash = flash(&[(ADDED, 40), (DELETED, 7)]);
    let (from, whole) = (end_of(&flash), variable(ADDED, 33));
    let mut write = |at: usize, byte: u8| {
        flash[from + at] = byte;
        assert_eq!(check(&flash), Ok(()), "byte {at} is {byte:#x}");
    };
    (0..HEADER).for_each(|at| write(at, if at == STATE { 0xff } else { whole[at] }));
    write(STATE, 0x7f);
    (HEADER..whole.len()).for_each(|at| write(at, whole[at]));
    for state in [ADDED, 0x3e, 0x3d, DELETED] {
        write(STATE, state);
    }
}

/// A store that is full is written anew, and firmware goes on with that when it was cut off.
#[test]
fn a_store_half_copied_is_no_damage() {
    let whole = flash(&[(ADDED, 40), (DELETED, 7), (ADDED, 33)]);
    for copied in FIRST..whole.len() {
        let mut flash = vec![0xff; FLASH];
        flash[..copied].copy_from_slice(&whole[..copied]);
        assert_eq!(check(&flash), Ok(()), "{copied} bytes");
    }
}

#[test]
fn what_passes_over_an_unfinished_header_sees_the_next_variable() {
    let mut flash = flash(&[(ADDED, 40)]);
    let from = end_of(&flash);
    flash[from..][..3].copy_from_slice(&[0xaa, 0x55, 0xff]);
    put(&mut flash, from + HEADER, &variable(ADDED, 8));
    assert_eq!(check(&flash), Ok(()));
    flash[from + HEADER + STATE] = 0;
    assert_eq!(check(&flash), Err(Damage::Variable { at: from + HEADER }));
}

#[test]
fn a_changed_header_is_damage() {
    let sound = flash(&[(ADDED, 40), (DELETED, 7), (ADDED, 33)]);
    let changed = |at: usize, byte: u8| {
        let mut flash = sound.clone();
        flash[at] = byte;
        check(&flash)
    };
    let inverted = |at: usize| changed(at, !sound[at]);
    for at in 0..VOLUME_HEADER {
        assert_eq!(inverted(at), Err(Damage::Volume), "byte {at}");
    }
    for at in VOLUME_HEADER..VOLUME_HEADER + 22 {
        assert_eq!(inverted(at), Err(Damage::Store), "byte {at}");
    }
    let second = FIRST + variable(ADDED, 40).len().next_multiple_of(4);
    for (variable, start) in [FIRST, second].into_iter().enumerate() {
        for at in [0, 1, 36, 37, 38, 39, 41, 42, 43].map(|at| start + at) {
            let found = inverted(at);
            assert!(matches!(found, Err(Damage::Variable { .. })), "{variable}, {at}: {found:?}");
        }
        for state in [0x00, 0x5a, 0xaa, 0xbf, 0xfe] {
            assert_eq!(changed(start + STATE, state), Err(Damage::Variable { at: start }));
        }
    }
    for end in [0, 64, FIRST, BLOCK] {
        assert!(check(&sound[..end]).is_err(), "cut to {end} bytes");
    }
    let zeroed = [&sound[..second], &vec![0; FLASH - second]].concat();
    assert_eq!(check(&zeroed), Err(Damage::Variable { at: second }));
}

proptest! {
    #[test]
    fn nothing_makes_it_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..512),
        at in 0..FLASH,
        end in 0..FLASH,
    ) {
        let _ = check(&bytes);
        let mut flash = flash(&[(ADDED, 40), (DELETED, 7), (ADDED, 33)]);
        let length = bytes.len().min(FLASH - at);
        flash[at..at + length].copy_from_slice(&bytes[..length]);
        let _ = check(&flash);
        // The header's sum may be right by chance, and its lengths be any.
        let found = check(&flash[..end]);
        prop_assert!(found.is_err());
    }

    /// Random bytes over a variable are not taken for one.
    #[test]
    fn overwritten_variables_are_damage(noise in prop::collection::vec(1u8..0xfe, HEADER)) {
        prop_assume!(!noise.starts_with(&[0xaa, 0x55]));
        let mut flash = flash(&[(ADDED, 40), (DELETED, 7), (ADDED, 33)]);
        flash[FIRST..FIRST + HEADER].copy_from_slice(&noise);
        prop_assert_eq!(check(&flash), Err(Damage::Variable { at: FIRST }));
    }
}

const STATE: usize = 2;

/// The flash of a guest with these variables, given by their states and the lengths of their data.
fn flash(variables: &[(u8, usize)]) -> Vec<u8> {
    let template = std::fs::read("/usr/share/OVMF/OVMF_VARS_4M.fd").expect("package ovmf");
    let mut flash = vec![0xff; FLASH];
    flash[..FIRST].copy_from_slice(&template[..FIRST]);
    flash[32..40].copy_from_slice(&(FLASH as u64).to_le_bytes());
    flash[56..60].copy_from_slice(&4u32.to_le_bytes());
    let size = 2 * BLOCK - VOLUME_HEADER;
    flash[VOLUME_HEADER + 16..][..4].copy_from_slice(&u32::try_from(size).unwrap().to_le_bytes());
    flash[50..52].fill(0);
    let words = flash[..VOLUME_HEADER].chunks(2).map(|w| u16::from_le_bytes([w[0], w[1]]));
    let sum = words.fold(0, u16::wrapping_add).wrapping_neg();
    flash[50..52].copy_from_slice(&sum.to_le_bytes());
    let mut at = FIRST;
    for (state, data) in variables {
        at = put(&mut flash, at, &variable(*state, *data));
    }
    assert_eq!(check(&flash), Ok(()));
    flash
}

/// Gives the place of the next.
fn put(flash: &mut [u8], at: usize, variable: &[u8]) -> usize {
    flash[at..at + variable.len()].copy_from_slice(variable);
    (at + variable.len()).next_multiple_of(4)
}

fn variable(state: u8, data: usize) -> Vec<u8> {
    let name: Vec<u8> = "Boot0001\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut all = vec![0xaa, 0x55, state, 0, 7, 0, 0, 0];
    all.resize(36, 0);
    for size in [name.len(), data] {
        all.extend(u32::try_from(size).unwrap().to_le_bytes());
    }
    all.extend([0x61; 16]);
    all.extend(name);
    all.extend(std::iter::repeat_n(0x55, data));
    all
}

fn end_of(flash: &[u8]) -> usize {
    let used = flash.iter().rposition(|byte| *byte != 0xff).expect("a header") + 1;
    used.next_multiple_of(4)
}
