//! Whether firmware takes a guest's variables as they lie in its flash. Where OVMF finds no sound volume it erases all of it
//! without a word, the spare copy too, and the list of variables ends for it where it finds none.
//!
//! ```text
//! volume header    UEFI PI 1.8, volume 3, 3.2.1, EFI_FIRMWARE_VOLUME_HEADER
//! store header     edk2, MdeModulePkg/Include/Guid/VariableFormat.h, VARIABLE_STORE_HEADER
//! variables        the same, AUTHENTICATED_VARIABLE_HEADER, each with its name and data behind it
//! free space       0xff, up to the size that the store header says
//! spare copy       with a log, for a write of the whole store; firmware looks after both itself
//! ```
//!
//! Numbers are little endian. Firmware writes byte after byte, and marks in a variable's state how far it got: what a QEMU
//! that was killed left half written is no damage.

/// What firmware would not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("it does not begin as firmware variables do")]
    Volume,
    #[error("what should follow its head are no variables")]
    Store,
    #[error("at byte {at} there is neither a variable nor free space")]
    Variable { at: usize },
}

/// The head as edk2 reads it (OvmfPkg/QemuFlashFvbServicesRuntimeDxe/FwBlockService.c), and what is half written as its
/// MdeModulePkg/Universal/Variable/RuntimeDxe/VariableParsing.c. Firmware takes a chain of variables that leads nowhere for one
/// that ends, and the rest is lost without a word: that it does not is asked here.
pub fn check(flash: &[u8]) -> Result<(), Damage> {
    let volume = volume(flash).ok_or(Damage::Volume)?;
    let store = store(flash, &volume).ok_or(Damage::Store)?;
    let mut at = STORE_HEADER_LENGTH;
    loop {
        let rest = &store.content[at..];
        at = match first(rest, &store.header) {
            Found::Variable { length } => {
                (at + length).next_multiple_of(VARIABLE_ALIGNMENT).min(store.content.len())
            }
            Found::FreeSpace => return Ok(()),
            Found::Damage => return Err(Damage::Variable { at: volume.header_length + at }),
        };
    }
}

struct Volume {
    header_length: usize,
    block_length: usize,
}

const REVISION: u8 = 2;
/// `EFI_SYSTEM_NV_DATA_FV_GUID`, fff12b8d-7696-4c8b-a985-2747075b4f50.
const NV_DATA: [u8; 16] = [
    0x8d, 0x2b, 0xf1, 0xff, 0x96, 0x76, 0x8b, 0x4c, 0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f, 0x50,
];

fn volume(flash: &[u8]) -> Option<Volume> {
    let header_length = usize::from(u16_at(flash, 48)?);
    let header = flash.get(..header_length)?;
    let words = header.chunks_exact(2).map(|word| u16::from_le_bytes([word[0], word[1]]));
    let is_sound = header_length % 2 == 0
        && words.fold(0, u16::wrapping_add) == 0
        && header.get(16..32)? == NV_DATA
        && u64_at(header, 32)? <= flash.len() as u64
        && header.get(40..44)? == b"_FVH"
        && *header.get(55)? == REVISION;
    is_sound.then_some(Volume { header_length, block_length: size_at(header, 60)? })
}

struct Store<'a> {
    /// With the store's own header.
    content: &'a [u8],
    header: VariableHeader,
}

/// Where a variable's header has what.
struct VariableHeader {
    name_size: usize,
    data_size: usize,
    vendor: usize,
    length: usize,
}

const STORE_HEADER_LENGTH: usize = 28;
/// `EFI_AUTHENTICATED_VARIABLE_GUID`, aaf32c78-947b-439a-a180-2e144ec37792.
const AUTHENTICATED: [u8; 16] = [
    0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92,
];
/// `EFI_VARIABLE_GUID`, ddcf3616-3275-4164-98b6-fe85707ffe7d, of firmware without authenticated variables.
const PLAIN: [u8; 16] = [
    0x16, 0x36, 0xcf, 0xdd, 0x75, 0x32, 0x64, 0x41, 0x98, 0xb6, 0xfe, 0x85, 0x70, 0x7f, 0xfe, 0x7d,
];
/// `VARIABLE_STORE_FORMATTED`, `VARIABLE_STORE_HEALTHY`.
const FORMATTED_AND_HEALTHY: [u8; 2] = [0x5a, 0xfe];

fn store<'a>(flash: &'a [u8], volume: &Volume) -> Option<Store<'a>> {
    let from_here = flash.get(volume.header_length..)?;
    let header = match from_here.get(..16)? {
        id if id == AUTHENTICATED => {
            VariableHeader { name_size: 36, data_size: 40, vendor: 44, length: 60 }
        }
        id if id == PLAIN => VariableHeader { name_size: 8, data_size: 12, vendor: 16, length: 32 },
        _ => return None,
    };
    let size = size_at(from_here, 16)?;
    let fills_blocks = (volume.header_length + size).checked_rem(volume.block_length)? == 0;
    let is_sound = from_here.get(20..22)? == FORMATTED_AND_HEALTHY && fills_blocks;
    let content = from_here.get(..size).filter(|_| is_sound && size >= STORE_HEADER_LENGTH)?;
    Some(Store { content, header })
}

enum Found {
    Variable { length: usize },
    FreeSpace,
    Damage,
}

const VARIABLE_ALIGNMENT: usize = 4;
const START: [u8; 2] = [0xaa, 0x55];
const ERASED: u8 = 0xff;
/// `VAR_HEADER_VALID_ONLY`, `VAR_ADDED`, and the latter with `VAR_IN_DELETED_TRANSITION`, `VAR_DELETED` and both.
const STATES: [u8; 5] = [0x7f, 0x3f, 0x3e, 0x3d, 0x3c];
/// A letter and the NUL behind it, in UTF-16.
const NAME_SIZE_MIN: usize = 4;

fn first(rest: &[u8], layout: &VariableHeader) -> Found {
    let Some(header) = rest.get(..layout.length).filter(|header| header.starts_with(&START)) else {
        return unless_free(rest);
    };
    let is_erased = |bytes: &[u8]| bytes.iter().all(|byte| *byte == ERASED);
    match header[2] {
        // The header was not finished: firmware passes over it alone.
        ERASED => return Found::Variable { length: layout.length },
        // The store was being written anew from the spare copy, and is once more.
        _ if is_erased(&header[layout.vendor..]) => return Found::FreeSpace,
        state if !STATES.contains(&state) => return Found::Damage,
        _ => {}
    }
    let (Some(name), Some(data)) =
        (size_at(header, layout.name_size), size_at(header, layout.data_size))
    else {
        return Found::Damage;
    };
    let length = layout.length.saturating_add(name).saturating_add(data);
    match name >= NAME_SIZE_MIN && name % 2 == 0 && length <= rest.len() {
        true => Found::Variable { length },
        false => Found::Damage,
    }
}

/// Of a variable that was just begun the first byte may be there. Behind erased bytes a crash of the host may have left any.
fn unless_free(rest: &[u8]) -> Found {
    match rest {
        [] | [ERASED, ERASED, ..] => Found::FreeSpace,
        [_, rest @ ..] if rest.iter().all(|byte| *byte == ERASED) => Found::FreeSpace,
        _ => Found::Damage,
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn size_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?)).ok()
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
