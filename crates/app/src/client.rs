//! The commands' side of the control protocol: one request, its progress, one answer, each wait bounded.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use hpvm_host::lines::{Connection, Unheard};
use hpvm_host::signals::Interruption;

use crate::protocol::{Reply, Request};

/// Why a worker could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the guest's worker cannot be reached")]
    Connect(#[source] io::Error),
    #[error("the guest's worker ended in the middle of an answer")]
    Closed,
    #[error("the guest's worker did not answer within {} s", .0.as_secs())]
    Deadline(Duration),
    #[error("the request could not be sent to the guest's worker")]
    Send(#[source] io::Error),
    #[error("the guest's worker gave an answer that is not understood")]
    Malformed,
    #[error("the guest's worker hangs")]
    Hangs,
    #[error("the wait for the guest's worker was interrupted")]
    Interrupted(Interruption),
}

/// While no answer comes, whoever waits is asked this often whether to go on.
const LOOK: Duration = Duration::from_millis(100);

/// Asks the worker at a control socket. `progress` gets each sentence on the way; the answer must come within `bound`.
pub fn ask(
    control: &Path,
    request: &Request,
    descriptors: &[BorrowedFd<'_>],
    bound: Duration,
    progress: &mut dyn FnMut(&str),
) -> Result<Reply, ClientError> {
    ask_while(control, request, descriptors, bound, progress, &mut || Ok(()))
}

/// The same for who may give up before: `goes_on` is asked now and then, and its error ends the wait. The worker hears nothing
/// of that, and what it was asked to do goes on.
pub fn ask_while(
    control: &Path,
    request: &Request,
    descriptors: &[BorrowedFd<'_>],
    bound: Duration,
    progress: &mut dyn FnMut(&str),
    goes_on: &mut dyn FnMut() -> Result<(), ClientError>,
) -> Result<Reply, ClientError> {
    let deadline = Instant::now() + bound;
    let mut connection = request_of(control, request, descriptors, bound)?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ClientError::Deadline(bound));
        }
        if !connection.has_more(left.min(LOOK)).map_err(ClientError::Connect)? {
            goes_on()?;
            continue;
        }
        match connection.hear(left).map_err(|unheard| no_answer(&unheard, bound))? {
            Reply::Progress { text } => progress(&text),
            reply => return Ok(reply),
        }
    }
}

/// How long who gives a change up waits for the worker to be through with the step that it is at.
const STEP_BOUND: Duration = Duration::from_secs(12);

/// Asks for a change. Who gives it up, since `goes_on` says so or `bound` is over, tells the worker, which then begins no
/// further step, and waits a little for its last word: what was done. Without that the error is why he gave up.
pub fn change(
    control: &Path,
    request: &Request,
    descriptors: &[BorrowedFd<'_>],
    bound: Duration,
    goes_on: &mut dyn FnMut() -> Result<(), ClientError>,
) -> Result<Reply, ClientError> {
    let deadline = Instant::now() + bound;
    let mut connection = request_of(control, request, descriptors, bound)?;
    let given_up = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break ClientError::Deadline(bound);
        }
        if connection.has_more(left.min(LOOK)).map_err(ClientError::Connect)? {
            return connection.hear(left).map_err(|unheard| no_answer(&unheard, bound));
        }
        if let Err(why) = goes_on() {
            break why;
        }
    };
    connection.say_no_more().map_err(ClientError::Send)?;
    match connection.has_more(STEP_BOUND) {
        Ok(true) => connection.hear(STEP_BOUND).map_err(|unheard| no_answer(&unheard, bound)),
        _ => Err(given_up),
    }
}

/// How long a worker takes at most from a copy that is given up to its last word.
const GIVING_UP: Duration = Duration::from_secs(30);

/// Asks for a copy, which may take as long as it likes as long as something is heard of it within `silence`. `watch` gets
/// what is done and the whole, in bytes, and says whether to go on; who does not waits until the worker has taken back what
/// it did.
pub fn copy(
    control: &Path,
    request: &Request,
    descriptors: &[BorrowedFd<'_>],
    silence: Duration,
    watch: &mut dyn FnMut(Option<(u64, u64)>) -> ControlFlow<()>,
) -> Result<Reply, ClientError> {
    let mut connection = request_of(control, request, descriptors, silence)?;
    let (mut bound, mut goes_on) = (silence, true);
    let mut heard_at = Instant::now();
    loop {
        let left = bound.saturating_sub(heard_at.elapsed());
        if left.is_zero() {
            return Err(ClientError::Deadline(bound));
        }
        let mut progress = None;
        if connection.has_more(left.min(LOOK)).map_err(ClientError::Connect)? {
            match connection.hear(left).map_err(|unheard| no_answer(&unheard, bound))? {
                Reply::Copying { done, whole } => progress = Some((done, whole)),
                Reply::Progress { .. } => {}
                reply => return Ok(reply),
            }
            if goes_on {
                heard_at = Instant::now();
            }
        }
        if goes_on && watch(progress).is_break() {
            connection.say_no_more().map_err(ClientError::Send)?;
            (bound, goes_on, heard_at) = (GIVING_UP, false, Instant::now());
        }
    }
}

/// A connection on which the request was made.
fn request_of(
    control: &Path,
    request: &Request,
    descriptors: &[BorrowedFd<'_>],
    bound: Duration,
) -> Result<Connection, ClientError> {
    let connection = Connection::open(control).map_err(ClientError::Connect)?;
    connection.say(request, descriptors, bound).map_err(ClientError::Send)?;
    Ok(connection)
}

fn no_answer(unheard: &Unheard, bound: Duration) -> ClientError {
    match unheard {
        Unheard::Late => ClientError::Deadline(bound),
        Unheard::Closed => ClientError::Closed,
        Unheard::Malformed(_) => ClientError::Malformed,
    }
}
