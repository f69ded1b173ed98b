//! Words of ours in a sentence that does not know which one it gets.

/// The word with its article: `a LINUX`, `an UNKNOWN`.
#[must_use]
pub fn with_article(word: &str) -> String {
    // HPUX is spoken letter by letter.
    let is_an = word.starts_with(['a', 'e', 'i', 'o', 'u', 'A', 'E', 'I', 'O', 'U'])
        || word.starts_with("HP");
    format!("{} {word}", if is_an { "an" } else { "a" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AdapterKind, OsFamily};

    #[test]
    fn what_is_said_has_the_article_it_is_spoken_with() {
        let guests = OsFamily::ALL.map(|family| with_article(family.as_str()));
        assert_eq!(guests, ["an HPUX", "a WINDOWS", "a LINUX", "an UNKNOWN"]);
        let adapters = [AdapterKind::Scsi, AdapterKind::AvioStor];
        let adapters = adapters.map(|adapter| with_article(adapter.as_str()));
        assert_eq!(adapters, ["a scsi", "an avio_stor"]);
    }
}
