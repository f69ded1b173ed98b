//! The fields inside a payload of the door protocol: bytes, numbers, texts. Called by the frames of [`super`], which know
//! the order of the fields; this file knows their forms.

use super::{DoorError, DriveAddress, TEXT_BYTES_MAX};

/// Reads the fields of one payload in order.
pub(super) struct Fields<'a> {
    kind: u8,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(kind: u8, payload: &'a [u8]) -> Fields<'a> {
        Fields { kind, rest: payload }
    }

    pub(super) fn byte(&mut self) -> Result<u8, DoorError> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self) -> Result<u32, DoorError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, DoorError> {
        self.array().map(u64::from_be_bytes)
    }

    /// One of the values of a small enum, counted from 0 in the order of `all`.
    pub(super) fn code<T: Copy>(&mut self, all: &[T]) -> Result<T, DoorError> {
        let code = self.byte()?;
        all.get(usize::from(code)).copied().ok_or_else(|| self.malformed())
    }

    pub(super) fn text(&mut self) -> Result<String, DoorError> {
        let length = usize::from(self.array().map(u16::from_be_bytes)?);
        if length > TEXT_BYTES_MAX {
            return Err(self.malformed());
        }
        let (text, rest) = self.rest.split_at_checked(length).ok_or_else(|| self.malformed())?;
        self.rest = rest;
        String::from_utf8(text.to_vec()).map_err(|_| self.malformed())
    }

    /// An empty text is none.
    pub(super) fn optional_text(&mut self) -> Result<Option<String>, DoorError> {
        Ok(Some(self.text()?).filter(|text| !text.is_empty()))
    }

    /// All texts that are left.
    pub(super) fn texts(&mut self) -> Result<Vec<String>, DoorError> {
        let mut texts = Vec::new();
        while !self.rest.is_empty() {
            texts.push(self.text()?);
        }
        Ok(texts)
    }

    pub(super) fn drive(&mut self) -> Result<DriveAddress, DoorError> {
        self.array().map(|[bus, device, target]| DriveAddress { bus, device, target })
    }

    pub(super) fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.rest).to_vec()
    }

    /// Nothing may be left over.
    pub(super) fn end(self) -> Result<(), DoorError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.malformed()) }
    }

    pub(super) fn malformed(&self) -> DoorError {
        DoorError::BadPayload(self.kind)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DoorError> {
        let (array, rest) = self.rest.split_first_chunk().ok_or_else(|| self.malformed())?;
        self.rest = rest;
        Ok(*array)
    }
}

pub(super) fn put_optional(payload: &mut Vec<u8>, text: Option<&str>) {
    put_text(payload, text.unwrap_or_default());
}

/// Appends a text, cut at a character when it is too long.
pub(super) fn put_text(payload: &mut Vec<u8>, text: &str) {
    let text = &text[..text.floor_char_boundary(TEXT_BYTES_MAX)];
    let length = u16::try_from(text.len()).unwrap_or(0);
    payload.extend(length.to_be_bytes());
    payload.extend_from_slice(text.as_bytes());
}
