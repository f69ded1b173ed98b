//! Words as a shell reads them, for commands that messages print: whoever copies one runs what was meant.

/// One word that a shell reads as this text, whatever is in it.
#[must_use]
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=+@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_shell_would_take_apart_is_quoted() {
        for (word, text) in [
            ("disk:scsi:0,1,0:file:/d/web-1.img", "disk:scsi:0,1,0:file:/d/web-1.img"),
            ("", "''"),
            ("/d/two words", "'/d/two words'"),
            ("/d/it's", r"'/d/it'\''s'"),
            ("/d/$(id)`id`;&*~é", "'/d/$(id)`id`;&*~é'"),
        ] {
            assert_eq!(quoted(word), text);
        }
    }
}
