//! The door protocol between hpvmconsole and hpvmapp over a Unix stream, without any I/O.
//!
//! A frame is one byte of kind, three bytes of length (big endian) and the payload:
//!
//! ```text
//!  +------+----------------+------------------------+
//!  | kind | length (3, BE) | payload, 64 KiB at most |
//!  +------+----------------+------------------------+
//!
//!  client → server                          server → client
//!  01 Hello    version, want, history u32   81 Welcome   version, keyboard, 3 texts: by, guest, state
//!  02 Input    bytes                        82 History   bytes
//!  03 TakeKeyboard                          83 Live      bytes
//!  (04 was a power verb)                    84 Keyboard  keyboard, text: by
//!  05 Detach                                85 Answer    ok, text
//!  06 Drives                                86 Ended     how
//!  07 Medium   address, text: image         87 Lagged    bytes dropped, u64
//!                                           88 Denied    text
//!                                           89 Current
//!                                           8A Drive     address, texts: medium, folder, trouble, images…
//! ```
//!
//! The address of a drive is three bytes: bus, device, target. Drives come before the Answer to the request for them. An
//! empty text is a drive without medium, a medium taken out, a drive without folder or trouble.
//!
//! A text is two bytes of length and UTF-8. Both ends take the other for hostile: a frame that is too long is refused by
//! its header, before its payload is stored, and a payload says exactly one thing or is refused. Frames that were not
//! understood end the connection; [`VERSION`] in the greeting is where later versions will meet older ones.

mod payload;

use payload::{Fields, put_optional, put_text};

/// The version both ends say in their greeting.
pub const VERSION: u8 = 1;
/// No payload is longer. Bytes of the console that are longer go as several frames.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;
/// No text is longer; what a sender has more is cut.
pub const TEXT_BYTES_MAX: usize = 1024;

const HEADER_BYTES: usize = 4;

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientFrame {
    /// Always the first.
    Hello(Hello),
    /// What the user typed.
    Input(Vec<u8>),
    /// Take the keyboard, whoever holds it.
    TakeKeyboard,
    /// Tell me the guest's drives and what can be put into them.
    Drives,
    Medium(MediumRequest),
    /// The session is left in order. Closing the stream means the same.
    Detach,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    pub version: u8,
    pub want: Want,
    /// How much of the recent output to send first, at most.
    pub history_bytes: u32,
}

/// Whether a session wants the keyboard when it is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    Watch,
    Write,
}

/// Where a drive is in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DriveAddress {
    pub bus: u8,
    pub device: u8,
    pub target: u8,
}

/// Another medium for a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediumRequest {
    pub drive: DriveAddress,
    /// By its path within the drive's folder; `None` leaves the drive empty.
    pub image: Option<String>,
}

/// A drive of the guest, as its users see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drive {
    pub address: DriveAddress,
    /// What is in it: a path of the VM Host.
    pub medium: Option<String>,
    /// Where images for it are; `None` of a drive of the VM Host itself.
    pub folder: Option<String>,
    /// Why there are no images to choose from, or not all.
    pub trouble: Option<String>,
    /// What can be put into it, by names within the folder.
    pub images: Vec<String>,
}

/// What the server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerFrame {
    /// The answer to [`ClientFrame::Hello`], before anything else.
    Welcome(Welcome),
    /// Output from before the session came.
    History(Vec<u8>),
    /// The history is complete: what comes now is live. Sent once, also when there was no history.
    Current,
    /// Output since then.
    Live(Vec<u8>),
    /// Who holds the keyboard has changed, or stayed as it was although the session asked for it.
    Keyboard(Keyboard),
    /// The answer to a verb: [`ClientFrame::Drives`] or [`ClientFrame::Medium`].
    Answer(Result<String, String>),
    /// One drive, before the answer to [`ClientFrame::Drives`].
    Drive(Drive),
    /// The guest has ended. All its output went before; the stream closes, the user's session lives on.
    Ended(Ended),
    /// So many bytes of output came faster than this session read them, and are left out here.
    Lagged(u64),
    /// The server wants no more of this session, and closes.
    Denied(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    pub version: u8,
    pub guest: String,
    /// As in the state column of hpvmstatus.
    pub state: String,
    pub keyboard: Keyboard,
}

/// Who holds the keyboard, as one session sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keyboard {
    /// Nobody: whoever types first, has it.
    Free,
    Yours,
    HeldBy(String),
    /// This session has no right to type.
    WatchOnly,
}

/// How a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The guest shut itself down.
    ShutDown,
    /// Somebody switched it off.
    Stopped,
    /// Its engine died.
    Crashed,
}

/// Why bytes from the other end are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DoorError {
    #[error(
        "the frame of kind {kind:#04x} says {length} bytes; the longest has {PAYLOAD_BYTES_MAX}"
    )]
    TooLong { kind: u8, length: usize },
    #[error("a frame of the unknown kind {0:#04x}")]
    UnknownKind(u8),
    #[error("the payload of the frame of kind {0:#04x} is malformed")]
    BadPayload(u8),
}

/// A frame of one direction.
pub trait Frame: Sized {
    /// Appends the frame. Bytes too long for one frame become several, a text too long is cut.
    fn encode(&self, out: &mut Vec<u8>);

    /// # Errors
    /// When `kind` or `payload` says nothing in this direction.
    fn decode(kind: u8, payload: &[u8]) -> Result<Self, DoorError>;
}

/// Finds the frames in a stream of bytes, however it was cut. After an error the stream is of no more use.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Takes bytes as they came. The buffer holds what was pushed and not taken yet: call [`Decoder::take`] until it has
    /// no more after each push, and at most one unfinished frame stays.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// When the bytes are no frame of this direction.
    pub fn take<F: Frame>(&mut self) -> Result<Option<F>, DoorError> {
        let Some((&[kind, high, middle, low], rest)) = self.buffer.split_first_chunk() else {
            return Ok(None);
        };
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        if length > PAYLOAD_BYTES_MAX {
            return Err(DoorError::TooLong { kind, length });
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let frame = F::decode(kind, payload)?;
        self.buffer.drain(..HEADER_BYTES + length);
        Ok(Some(frame))
    }

    /// How many bytes wait for the rest of their frame.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }
}

/// The kinds on the wire. Those of the server have the highest bit set, so that a loop of two servers or two clients is
/// noticed at its first frame.
mod kind {
    pub(super) const HELLO: u8 = 0x01;
    pub(super) const INPUT: u8 = 0x02;
    pub(super) const TAKE_KEYBOARD: u8 = 0x03;
    pub(super) const DETACH: u8 = 0x05;
    pub(super) const DRIVES: u8 = 0x06;
    pub(super) const MEDIUM: u8 = 0x07;
    pub(super) const WELCOME: u8 = 0x81;
    pub(super) const HISTORY: u8 = 0x82;
    pub(super) const LIVE: u8 = 0x83;
    pub(super) const KEYBOARD: u8 = 0x84;
    pub(super) const ANSWER: u8 = 0x85;
    pub(super) const ENDED: u8 = 0x86;
    pub(super) const LAGGED: u8 = 0x87;
    pub(super) const DENIED: u8 = 0x88;
    pub(super) const CURRENT: u8 = 0x89;
    pub(super) const DRIVE: u8 = 0x8a;
}

impl Frame for ClientFrame {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            ClientFrame::Hello(hello) => {
                let mut payload = vec![hello.version, hello.want.code()];
                payload.extend(hello.history_bytes.to_be_bytes());
                put_frame(out, kind::HELLO, &payload);
            }
            ClientFrame::Input(bytes) => put_bytes(out, kind::INPUT, bytes),
            ClientFrame::TakeKeyboard => put_frame(out, kind::TAKE_KEYBOARD, &[]),
            ClientFrame::Drives => put_frame(out, kind::DRIVES, &[]),
            ClientFrame::Medium(request) => {
                let mut payload = request.drive.code().to_vec();
                put_optional(&mut payload, request.image.as_deref());
                put_frame(out, kind::MEDIUM, &payload);
            }
            ClientFrame::Detach => put_frame(out, kind::DETACH, &[]),
        }
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<ClientFrame, DoorError> {
        let mut fields = Fields::new(kind, payload);
        let frame = match kind {
            kind::HELLO => ClientFrame::Hello(Hello {
                version: fields.byte()?,
                want: fields.code(Want::ALL)?,
                history_bytes: fields.u32()?,
            }),
            kind::INPUT => ClientFrame::Input(fields.rest()),
            kind::TAKE_KEYBOARD => ClientFrame::TakeKeyboard,
            kind::DRIVES => ClientFrame::Drives,
            kind::MEDIUM => ClientFrame::Medium(MediumRequest {
                drive: fields.drive()?,
                image: fields.optional_text()?,
            }),
            kind::DETACH => ClientFrame::Detach,
            unknown => return Err(DoorError::UnknownKind(unknown)),
        };
        fields.end()?;
        Ok(frame)
    }
}

impl Frame for ServerFrame {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            ServerFrame::Welcome(welcome) => {
                let mut payload = vec![welcome.version];
                put_keyboard(&mut payload, &welcome.keyboard);
                put_text(&mut payload, &welcome.guest);
                put_text(&mut payload, &welcome.state);
                put_frame(out, kind::WELCOME, &payload);
            }
            ServerFrame::History(bytes) => put_bytes(out, kind::HISTORY, bytes),
            ServerFrame::Current => put_frame(out, kind::CURRENT, &[]),
            ServerFrame::Live(bytes) => put_bytes(out, kind::LIVE, bytes),
            ServerFrame::Keyboard(keyboard) => {
                let mut payload = Vec::new();
                put_keyboard(&mut payload, keyboard);
                put_frame(out, kind::KEYBOARD, &payload);
            }
            ServerFrame::Answer(result) => {
                let (code, text) = match result {
                    Ok(text) => (1, text),
                    Err(text) => (0, text),
                };
                let mut payload = vec![code];
                put_text(&mut payload, text);
                put_frame(out, kind::ANSWER, &payload);
            }
            ServerFrame::Drive(drive) => put_frame(out, kind::DRIVE, &drive.payload()),
            ServerFrame::Ended(how) => put_frame(out, kind::ENDED, &[how.code()]),
            ServerFrame::Lagged(dropped) => put_frame(out, kind::LAGGED, &dropped.to_be_bytes()),
            ServerFrame::Denied(reason) => {
                let mut payload = Vec::new();
                put_text(&mut payload, reason);
                put_frame(out, kind::DENIED, &payload);
            }
        }
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<ServerFrame, DoorError> {
        let mut fields = Fields::new(kind, payload);
        let frame = match kind {
            kind::WELCOME => {
                let version = fields.byte()?;
                let keyboard = keyboard(&mut fields)?;
                ServerFrame::Welcome(Welcome {
                    version,
                    keyboard,
                    guest: fields.text()?,
                    state: fields.text()?,
                })
            }
            kind::HISTORY => ServerFrame::History(fields.rest()),
            kind::CURRENT => ServerFrame::Current,
            kind::LIVE => ServerFrame::Live(fields.rest()),
            kind::KEYBOARD => ServerFrame::Keyboard(keyboard(&mut fields)?),
            kind::ANSWER => ServerFrame::Answer(match fields.byte()? {
                1 => Ok(fields.text()?),
                0 => Err(fields.text()?),
                _ => return Err(DoorError::BadPayload(kind)),
            }),
            kind::ENDED => ServerFrame::Ended(fields.code(Ended::ALL)?),
            kind::LAGGED => ServerFrame::Lagged(fields.u64()?),
            kind::DENIED => ServerFrame::Denied(fields.text()?),
            kind::DRIVE => ServerFrame::Drive(Drive {
                address: fields.drive()?,
                medium: fields.optional_text()?,
                folder: fields.optional_text()?,
                trouble: fields.optional_text()?,
                images: fields.texts()?,
            }),
            unknown => return Err(DoorError::UnknownKind(unknown)),
        };
        fields.end()?;
        Ok(frame)
    }
}

impl DriveAddress {
    fn code(self) -> [u8; 3] {
        [self.bus, self.device, self.target]
    }
}

impl std::fmt::Display for DriveAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{},{},{}", self.bus, self.device, self.target)
    }
}

impl Drive {
    /// Whether it is a drive of the VM Host itself, and no place for images.
    #[must_use]
    pub fn is_hosts(&self) -> bool {
        self.folder.is_none()
    }

    /// Images that find no room in a frame are left out; the sender says so in [`Drive::trouble`], see [`Drive::fitting`].
    fn payload(&self) -> Vec<u8> {
        let mut payload = self.address.code().to_vec();
        for text in [&self.medium, &self.folder, &self.trouble] {
            put_optional(&mut payload, text.as_deref());
        }
        for image in &self.images {
            if payload.len() + image.len() + 2 > PAYLOAD_BYTES_MAX {
                break;
            }
            put_text(&mut payload, image);
        }
        payload
    }

    /// How many of these images find room in a frame, whatever the other texts are.
    #[must_use]
    pub fn fitting(images: &[String]) -> usize {
        const OTHER_BYTES_MAX: usize = 3 + 3 * (2 + TEXT_BYTES_MAX);
        let mut room = PAYLOAD_BYTES_MAX - OTHER_BYTES_MAX;
        let mut fits = |image: &&String| {
            let rest = room.checked_sub(2 + image.len());
            room = rest.unwrap_or(room);
            rest.is_some() && image.len() <= TEXT_BYTES_MAX
        };
        images.iter().take_while(|image| fits(image)).count()
    }
}

impl Want {
    const ALL: &[Want] = &[Want::Watch, Want::Write];
    fn code(self) -> u8 {
        self as u8
    }
}

impl Ended {
    const ALL: &[Ended] = &[Ended::ShutDown, Ended::Stopped, Ended::Crashed];
    fn code(self) -> u8 {
        self as u8
    }
}

fn put_keyboard(payload: &mut Vec<u8>, keyboard: &Keyboard) {
    let (code, by) = match keyboard {
        Keyboard::Free => (0, ""),
        Keyboard::Yours => (1, ""),
        Keyboard::HeldBy(user) => (2, user.as_str()),
        Keyboard::WatchOnly => (3, ""),
    };
    payload.push(code);
    put_text(payload, by);
}

fn keyboard(fields: &mut Fields<'_>) -> Result<Keyboard, DoorError> {
    match (fields.byte()?, fields.text()?) {
        (0, by) if by.is_empty() => Ok(Keyboard::Free),
        (1, by) if by.is_empty() => Ok(Keyboard::Yours),
        (2, by) => Ok(Keyboard::HeldBy(by)),
        (3, by) if by.is_empty() => Ok(Keyboard::WatchOnly),
        _ => Err(fields.malformed()),
    }
}

/// Appends bytes as frames of one kind; no bytes are one empty frame.
fn put_bytes(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    if bytes.is_empty() {
        put_frame(out, kind, bytes);
    }
    for part in bytes.chunks(PAYLOAD_BYTES_MAX) {
        put_frame(out, kind, part);
    }
}

fn put_frame(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    debug_assert!(payload.len() <= PAYLOAD_BYTES_MAX);
    let [.., high, middle, low] = payload.len().to_be_bytes();
    out.extend([kind, high, middle, low]);
    out.extend_from_slice(payload);
}
