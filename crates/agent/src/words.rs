//! What a guest said, made fit for a person's eyes, a log line or a message.

/// Longer reasons are cut: a message is a sentence or two.
const CHARACTERS_MAX: usize = 200;

/// The beginning of a text on one line, without what could steer a terminal.
#[must_use]
pub fn printable(text: &str) -> String {
    let clean = text.split_whitespace().flat_map(|word| word.chars().chain([' ']));
    let clean = clean.map(|c| if is_harmless(c) { c } else { '?' });
    clean.take(CHARACTERS_MAX).collect::<String>().trim_end().to_owned()
}

/// Neither a control character nor one that turns the direction of what follows.
fn is_harmless(c: char) -> bool {
    let turns =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !c.is_control() && !turns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_harmless_line() {
        assert_eq!(
            printable("/dev/sdb is\nmounted on\t/data \r\n"),
            "/dev/sdb is mounted on /data"
        );
        assert_eq!(printable("\u{1b}[2Jgone \u{202e}txet"), "?[2Jgone ?txet");
        assert_eq!(printable(&"x".repeat(10_000)).len(), CHARACTERS_MAX);
        assert_eq!(printable(""), "");
    }
}
