//! Text that is kept in golden/ and compared: without what differs from run to run, such as the test's folder, uuids and
//! times. SNAPSHOTS=overwrite writes the kept text anew.

use std::path::Path;

use hpvm_testkit::vm_host::VmHost;
use snapbox::{Data, assert_data_eq};

/// Compares with `golden/NAME.txt`.
#[track_caller]
pub(crate) fn assert_kept(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/golden").join(name);
    let kept = Data::read_from(&path.with_extension("txt"), None);
    assert_data_eq!(Data::text(text), kept.raw());
}

/// The text without folders, uuids, times, serial numbers and disk identities.
pub(crate) fn redacted(host: &VmHost, text: &str) -> String {
    let run = host.path("run/hpvm");
    let run = std::fs::canonicalize(&run).unwrap_or(run);
    let text = text.replace(&host.root().display().to_string(), "[ROOT]");
    let text = text.replace(&run.display().to_string(), "[RUN]");
    words(&text, |word| match word {
        _ if is_uuid(word) => Some("[UUID]"),
        _ if is_time(word) => Some("[TIME]"),
        _ if is_disk_identity(word) => Some(":[ID]"),
        _ if word.len() == 10 && is_shaped(word, "VM00000000") => Some("[SERIAL]"),
        _ => None,
    })
}

/// The text without numbers of several digits: processes, sizes, counts of this machine.
pub(crate) fn without_numbers(text: &str) -> String {
    words(text, |word| {
        let digits = word.trim_end_matches('M');
        let is_number = digits.len() > 1 && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then_some(if digits == word { "[N]" } else { "[N]M" })
    })
}

fn words(text: &str, name: impl Fn(&str) -> Option<&'static str>) -> String {
    let is_of_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | ':' | '.' | '_');
    let mut named = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = match is_of_word(first) {
            true => rest.find(|c| !is_of_word(c)).unwrap_or(rest.len()),
            false => first.len_utf8(),
        };
        let (word, after) = rest.split_at(length);
        // A colon or full stop that ends a sentence is not the word's.
        let bare = word.trim_end_matches([':', '.']);
        named.push_str(name(bare).unwrap_or(bare));
        named.push_str(&word[bare.len()..]);
        rest = after;
    }
    named
}

fn is_uuid(word: &str) -> bool {
    let lengths = [8, 4, 4, 4, 12];
    let parts: Vec<&str> = word.split('-').collect();
    parts.len() == lengths.len()
        && parts.iter().zip(lengths).all(|(part, length)| {
            part.len() == length && part.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
}

/// As hpvmstatus -V shows it, behind the colon.
fn is_disk_identity(word: &str) -> bool {
    word.strip_prefix(':')
        .is_some_and(|id| id.len() >= 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn is_time(word: &str) -> bool {
    let (seconds, rest) = word.split_at(word.len().min(19));
    is_shaped(seconds, "0000-00-00T00:00:00") && rest.ends_with('Z')
}

/// Like the model, in which a 0 stands for any digit.
fn is_shaped(word: &str, model: &str) -> bool {
    word.len() == model.len()
        && word.bytes().zip(model.bytes()).all(|(byte, like)| match like {
            b'0' => byte.is_ascii_digit(),
            other => byte == other,
        })
}
