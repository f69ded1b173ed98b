//! The console itself: the terminal belongs to the guest until Ctrl-B. Called by [`super::Session`].
//!
//! ```text
//!            worker reached              Welcome
//!  Calling ─────────────────► Greeting ─────────► Open ──Ended, Denied──► left
//!    ▲  │ guest is off: wait for power on          │
//!    │  ▼                                          │ the stream broke
//!    └──┴──────────────────────────────────────────┘ (the worker is being replaced)
//! ```
//!
//! A stream that breaks is no end of the guest: the session calls again, and joins the new history to what was shown.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::takeover::{Keys, TakeOver};
use super::{Chatter, GuestPower, Session};
use crate::attachment::{Attachment, UNSENT_BYTES_MAX};
use crate::door::{ClientFrame, Ended, Keyboard, ServerFrame, Want, Welcome};
use crate::history::HISTORY_BYTES;
use crate::replay::{Seen, split_last_line, without_queries};
use crate::screen::Screen;
use crate::terminal::{CTRL_B, Mode, Peer};

const HINT: &str = "\n       (Use Ctrl-B to return to vMP main menu.)\n\n";
const PRIOR_OUTPUT: &str = "- - - - - - - - - - Prior Console Output - - - - - - - - - -\n";
const LIVE_CONSOLE: &str = "- - - - - - - - - - - - Live Console - - - - - - - - - - - -\n";

/// How often a worker that cannot be reached, or a guest that is off, is tried again.
const CALL_PERIOD: Duration = Duration::from_millis(200);
/// A worker that cannot be reached is being replaced; after this long it is not.
const CALL_PATIENCE: Duration = Duration::from_secs(5);
/// A worker that was reached greets within this.
const GREETING_PATIENCE: Duration = Duration::from_secs(5);
/// After the end of the input, output that is quiet for so long has come to an end too…
const QUIET_AFTER_INPUT: Duration = Duration::from_millis(500);
/// …and a guest that is never quiet is left all the same.
const OUTPUT_AFTER_INPUT_MAX: Duration = Duration::from_secs(5);
/// Nothing else is due: wait for events only.
const IDLE_WAIT: Duration = Duration::from_secs(60);

/// How the console was left.
#[derive(Debug)]
pub(super) enum Left {
    CtrlB,
    GuestEnded,
    InputEnded,
    Signal(i32),
    Failed(String),
}

/// The way to the guest.
enum Link {
    Calling {
        next_try: Instant,
        give_up: Instant,
    },
    /// The guest is off.
    AwaitingPower {
        next_look: Instant,
    },
    Greeting {
        attachment: Attachment,
        deadline: Instant,
        give_up: Instant,
    },
    Open {
        attachment: Attachment,
        /// What came of the history, until it is complete.
        history: Option<Vec<u8>>,
    },
}

/// What is known of the console while it is shown.
struct Console {
    link: Link,
    /// The guest's output was seen before in this visit.
    resumes: bool,
    seen: Seen,
    screen: Screen,
    take_over: TakeOver,
    told_off: bool,
    /// As it was told last, also while another worker is sought.
    keyboard: Keyboard,
    warned_of_loss: bool,
    input_ended: Option<Instant>,
    last_output: Instant,
}

impl Session<'_> {
    pub(super) fn console(&mut self) -> Result<Left, io::Error> {
        self.chat(HINT);
        self.terminal.set_mode(Mode::Raw)?;
        let mut console = Console::new();
        let left = loop {
            if let Some(left) = self.console_step(&mut console)? {
                break left;
            }
        };
        if let Link::Open { attachment, .. } | Link::Greeting { attachment, .. } = console.link {
            attachment.detach();
        }
        if self.terminal.input_is_terminal() && !matches!(left, Left::CtrlB) {
            // Keys for a guest that is gone are no commands for the menu, but those behind a Ctrl-B are.
            let input = self.terminal.input();
            let keys = input.iter().position(|byte| *byte == CTRL_B).unwrap_or(input.len());
            self.terminal.use_input(keys);
        }
        if self.terminal.output_is_terminal() {
            self.terminal.pass(console.screen.undo().as_bytes());
        }
        if matches!(left, Left::CtrlB) {
            self.terminal.print("\n");
        }
        Ok(left)
    }

    /// Does what is due, waits for the next event, and handles it.
    fn console_step(&mut self, console: &mut Console) -> Result<Option<Left>, io::Error> {
        let now = Instant::now();
        if let Some(left) = self.due(console, now).or_else(|| self.use_keys(console)) {
            return Ok(Some(left));
        }
        if let Some(left) = self.after_input(console, now) {
            return Ok(Some(left));
        }
        let takes_output = self.terminal.takes_output();
        let deadline = console.deadline();
        let woken = match console.link.attachment() {
            None => self.terminal.wait(None, deadline)?,
            Some(attachment) => {
                let (read, write) = (takes_output, attachment.unsent() > 0);
                let peer = Peer { fd: attachment.as_fd(), read, write };
                self.terminal.wait(Some(peer), deadline)?
            }
        };
        if let Some(number) = woken.signal {
            return Ok(Some(Left::Signal(number)));
        }
        if let Some(attachment) = console.link.attachment() {
            if woken.peer_readable {
                attachment.receive();
            }
            attachment.send();
        }
        Ok(self.receive(console))
    }

    /// What time alone makes happen: another try, or the end of patience.
    fn due(&mut self, console: &mut Console, now: Instant) -> Option<Left> {
        match &mut console.link {
            Link::Calling { next_try, give_up } if now >= *next_try => {
                let give_up = *give_up;
                self.call(console, now, give_up)
            }
            Link::AwaitingPower { next_look } if now >= *next_look => {
                *next_look = now + CALL_PERIOD;
                if self.guest.state() == GuestPower::On {
                    console.link = Link::calling(now);
                }
                None
            }
            Link::Greeting { deadline, .. } if now >= *deadline => Some(Left::Failed(format!(
                "the console of guest '{}' does not answer; 'hpvm doctor' looks after its worker",
                self.guest.name()
            ))),
            _ => None,
        }
    }

    fn call(&mut self, console: &mut Console, now: Instant, give_up: Instant) -> Option<Left> {
        let history_bytes = u32::try_from(HISTORY_BYTES).unwrap_or(u32::MAX);
        let attached = self.guest.connect().and_then(|stream| {
            stream.map(|stream| Attachment::new(stream, Want::Write, history_bytes)).transpose()
        });
        match attached {
            Ok(Some(attachment)) => {
                let deadline = now + GREETING_PATIENCE;
                console.link = Link::Greeting { attachment, deadline, give_up };
                None
            }
            Ok(None) if console.resumes => Some(self.guest_is_gone()),
            Ok(None) => {
                if !std::mem::replace(&mut console.told_off, true) {
                    self.terminal.print(&format!(
                        "Guest '{}' is Off. Waiting until it is switched on; Ctrl-B leaves.\n",
                        self.guest.name()
                    ));
                }
                console.link = Link::AwaitingPower { next_look: now + CALL_PERIOD };
                None
            }
            Err(error) if now >= give_up => Some(Left::Failed(format!(
                "the console of guest '{}' cannot be reached: {error}",
                self.guest.name()
            ))),
            Err(_) => {
                console.link = Link::Calling { next_try: now + CALL_PERIOD, give_up };
                None
            }
        }
    }

    fn guest_is_gone(&mut self) -> Left {
        self.terminal.print(&format!("\n(Guest '{}' is Off.)\n", self.guest.name()));
        Left::GuestEnded
    }

    /// Gives the keys to whom they are for: Ctrl-B to us, the others to the guest, if this session may type.
    fn use_keys(&mut self, console: &mut Console) -> Option<Left> {
        let length = self.terminal.input().len();
        if length == 0 {
            return None;
        }
        let ctrl_b = self.terminal.input().iter().position(|byte| *byte == CTRL_B);
        let typed_by_hand = self.terminal.input_is_terminal();
        match &mut console.link {
            // What does not come from a person waits until there is somebody to take it, and does not cut the history.
            Link::Greeting { .. } | Link::Calling { .. } | Link::Open { history: Some(_), .. }
                if !typed_by_hand => {}
            Link::AwaitingPower { .. } if !typed_by_hand && ctrl_b.is_none() => {}
            // What a person types while the worker is sought waits too. But what was typed at a guest that is off is not for
            // its firmware, and what somebody typed who watches is for nobody.
            Link::Greeting { .. } | Link::Calling { .. }
                if ctrl_b.is_none()
                    && !console.told_off
                    && may_type(&console.keyboard)
                    && length < UNSENT_BYTES_MAX => {}
            Link::Open { attachment, .. } => {
                // What comes from a file or a pipe waits there until the guest takes it; keys cannot be made to wait,
                // since Ctrl-B may be behind them.
                let room = UNSENT_BYTES_MAX.saturating_sub(attachment.unsent());
                let wanted = ctrl_b.unwrap_or(length);
                let sent = wanted.min(room);
                let keys = self.terminal.input()[..sent].to_vec();
                let leaves = ctrl_b.is_some() && (sent == wanted || typed_by_hand);
                let lost = typed_by_hand && sent < wanted;
                self.terminal.use_input(match (leaves, lost) {
                    (true, _) => wanted + 1,
                    (false, true) => wanted,
                    (false, false) => sent,
                });
                let not_sent =
                    send_keys(&mut console.take_over, attachment, &console.keyboard, keys);
                if leaves {
                    return Some(Left::CtrlB);
                }
                self.keys_told(console, not_sent, lost);
            }
            Link::Calling { .. } | Link::AwaitingPower { .. } | Link::Greeting { .. } => {
                self.terminal.use_input(ctrl_b.map_or(length, |place| place + 1));
                if ctrl_b.is_some() {
                    return Some(Left::CtrlB);
                }
            }
        }
        None
    }

    /// Says, once, that keys did not get to the guest.
    fn keys_told(&mut self, console: &mut Console, not_sent: Option<&'static str>, lost: bool) {
        let why = match (not_sent, lost) {
            (Some(why), _) => why,
            (None, true) => "The guest takes no more input; what was typed last is lost.",
            (None, false) => return,
        };
        if !std::mem::replace(&mut console.warned_of_loss, true) {
            self.terminal.print(&format!("\n({why})\n"));
        }
    }

    /// Whether a session whose input has ended is complete.
    fn after_input(&mut self, console: &mut Console, now: Instant) -> Option<Left> {
        if !self.terminal.input_ended() {
            return None;
        }
        let ended = *console.input_ended.get_or_insert(now);
        let quiet_since = console.last_output.max(ended);
        match &console.link {
            Link::AwaitingPower { .. } => Some(Left::InputEnded),
            Link::Calling { .. } | Link::Greeting { .. } => None,
            Link::Open { attachment, .. } => {
                let sent = attachment.unsent() == 0 && self.terminal.input().is_empty();
                let quiet = sent && now >= quiet_since + QUIET_AFTER_INPUT;
                (quiet || now >= ended + OUTPUT_AFTER_INPUT_MAX).then_some(Left::InputEnded)
            }
        }
    }

    /// Handles the frames that have come, and the end of the stream behind them.
    fn receive(&mut self, console: &mut Console) -> Option<Left> {
        loop {
            let attachment = console.link.attachment()?;
            let left = match attachment.take() {
                Ok(Some(frame)) => self.frame(console, frame),
                Ok(None) if attachment.is_closed() => return self.call_again(console),
                Ok(None) => return None,
                Err(error) => Some(Left::Failed(format!(
                    "the worker of guest '{}' does not speak as this hpvmconsole does: {error}",
                    self.guest.name()
                ))),
            };
            if left.is_some() {
                return left;
            }
        }
    }

    /// The stream broke without a word: the worker is being replaced, or lets nobody in.
    fn call_again(&mut self, console: &mut Console) -> Option<Left> {
        let now = Instant::now();
        let next_try = now + CALL_PERIOD;
        console.link = match console.link {
            Link::Greeting { give_up, .. } if now >= give_up => {
                return Some(Left::Failed(format!(
                    "the worker of guest '{}' closes the console before it answers",
                    self.guest.name()
                )));
            }
            Link::Greeting { give_up, .. } => Link::Calling { next_try, give_up },
            _ => Link::calling(next_try),
        };
        console.resumes |= !console.seen.is_empty();
        None
    }

    fn frame(&mut self, console: &mut Console, frame: ServerFrame) -> Option<Left> {
        match frame {
            ServerFrame::Welcome(welcome) => self.welcome(console, welcome),
            ServerFrame::History(part) => {
                if let Link::Open { history: Some(history), .. } = &mut console.link {
                    history.extend(part);
                }
            }
            ServerFrame::Current => self.history_complete(console),
            ServerFrame::Live(output) => {
                console.saw(&output);
                self.terminal.pass(&output);
            }
            ServerFrame::Keyboard(now) => self.keyboard_changed(console, now),
            ServerFrame::Lagged(bytes) => {
                console.seen = Seen::default();
                self.terminal.print(&format!(
                    "\n({bytes} bytes of output are left out: they came faster than they were read.)\n"
                ));
            }
            ServerFrame::Answer(_) | ServerFrame::Drive(_) => {}
            ServerFrame::Ended(how) => {
                let name = self.guest.name();
                let news = match how {
                    Ended::ShutDown => format!("Guest '{name}' has shut down."),
                    Ended::Stopped => format!("Guest '{name}' was switched off."),
                    Ended::Crashed => {
                        format!("The engine of guest '{name}' died; 'hpvm why {name}' tells more.")
                    }
                };
                self.terminal.print(&format!("\n({news})\n"));
                return Some(Left::GuestEnded);
            }
            ServerFrame::Denied(reason) => {
                let name = self.guest.name();
                return Some(Left::Failed(format!(
                    "the console of guest '{name}' is refused: {reason}"
                )));
            }
        }
        None
    }

    fn welcome(&mut self, console: &mut Console, welcome: Welcome) {
        match std::mem::replace(&mut console.link, Link::calling(Instant::now())) {
            Link::Greeting { attachment, .. } => {
                console.keyboard = welcome.keyboard;
                match &console.keyboard {
                    Keyboard::HeldBy(user) => self.chat(&format!(
                        "({user} has the keyboard, you watch. Ctrl-E c f takes it over.)\n"
                    )),
                    Keyboard::WatchOnly => {
                        self.chat("(You may watch this console, but not type.)\n");
                    }
                    Keyboard::Yours | Keyboard::Free => {}
                }
                console.told_off = false;
                console.link = Link::Open { attachment, history: Some(Vec::new()) };
            }
            // A second welcome says nothing new.
            other => console.link = other,
        }
    }

    /// Shows the history as one: only now is its last line known.
    fn history_complete(&mut self, console: &mut Console) {
        let Link::Open { history, .. } = &mut console.link else { return };
        let Some(history) = history.take() else { return };
        let joined = if console.resumes { console.seen.unseen(&history) } else { None };
        match joined {
            Some(unseen) => self.terminal.pass(&without_queries(unseen)),
            None => self.show_history(&without_queries(&history)),
        }
        console.saw(joined.unwrap_or(&history));
    }

    fn show_history(&mut self, history: &[u8]) {
        let (lines, last_line) = split_last_line(history);
        self.chat(PRIOR_OUTPUT);
        self.terminal.pass(lines);
        if self.chatter == Chatter::Full {
            if !lines.is_empty() && !lines.ends_with(b"\n") {
                self.terminal.print("\n");
            }
            if self.terminal.output_is_terminal() {
                self.terminal.pass(b"\x1b[0m");
            }
        }
        self.chat(LIVE_CONSOLE);
        self.terminal.pass(last_line);
    }

    fn keyboard_changed(&mut self, console: &mut Console, now: Keyboard) {
        let Link::Open { .. } = console.link else { return };
        let before = std::mem::replace(&mut console.keyboard, now.clone());
        match (before, now) {
            // The first key took it, as its owner expects.
            (Keyboard::Free, Keyboard::Yours) => {}
            (_, Keyboard::Yours) => self.chat("\n(You have the keyboard.)\n"),
            (_, Keyboard::Free) => self.chat("\n(The keyboard is free: type to take it.)\n"),
            (_, Keyboard::HeldBy(user)) => self.chat(&format!(
                "\n({user} has the keyboard now, you watch. Ctrl-E c f takes it over.)\n"
            )),
            (_, Keyboard::WatchOnly) => {
                self.chat("\n(You may watch this console, but not type.)\n");
            }
        }
    }
}

impl Console {
    fn new() -> Console {
        let now = Instant::now();
        Console {
            link: Link::calling(now),
            resumes: false,
            seen: Seen::default(),
            screen: Screen::default(),
            take_over: TakeOver::default(),
            told_off: false,
            keyboard: Keyboard::Free,
            warned_of_loss: false,
            input_ended: None,
            last_output: now,
        }
    }

    fn saw(&mut self, output: &[u8]) {
        self.last_output = Instant::now();
        self.seen.push(output);
        self.screen.saw(output);
    }

    /// When something is due without any event.
    fn deadline(&self) -> Instant {
        let now = Instant::now();
        match (&self.link, self.input_ended) {
            (Link::Calling { next_try, .. }, _) => *next_try,
            (Link::AwaitingPower { next_look }, _) => *next_look,
            (Link::Greeting { deadline, .. }, _) => *deadline,
            (Link::Open { .. }, Some(_)) => now + QUIET_AFTER_INPUT / 4,
            (Link::Open { .. }, None) => now + IDLE_WAIT,
        }
    }
}

impl Link {
    fn calling(next_try: Instant) -> Link {
        Link::Calling { next_try, give_up: next_try + CALL_PATIENCE }
    }

    fn attachment(&mut self) -> Option<&mut Attachment> {
        match self {
            Link::Greeting { attachment, .. } | Link::Open { attachment, .. } => Some(attachment),
            Link::Calling { .. } | Link::AwaitingPower { .. } => None,
        }
    }
}

fn may_type(keyboard: &Keyboard) -> bool {
    matches!(keyboard, Keyboard::Yours | Keyboard::Free)
}

/// Sends what was typed, if this session may type; else says why not.
fn send_keys(
    take_over: &mut TakeOver,
    attachment: &mut Attachment,
    keyboard: &Keyboard,
    keys: Vec<u8>,
) -> Option<&'static str> {
    if keys.is_empty() {
        return None;
    }
    match keyboard {
        Keyboard::Yours | Keyboard::Free => attachment.say(&ClientFrame::Input(keys)),
        Keyboard::WatchOnly => return Some("You may only watch: what you type is not sent."),
        Keyboard::HeldBy(_) => match take_over.typed(&keys) {
            Keys::Take => attachment.say(&ClientFrame::TakeKeyboard),
            Keys::Begun => {}
            Keys::Other => {
                return Some(
                    "You watch: what you type is not sent. Ctrl-E c f takes the keyboard over.",
                );
            }
        },
    }
    None
}
