//! SPDX licence expressions: may we use what is offered under this expression?
//!
//! Called by `tidy::dependencies`. It knows the grammar (`AND`, `OR`, `WITH`, parentheses and the old `/` for `OR`)
//! and the list of what we accept; it does not know packages.

/// Licences whose terms this project can meet in source and binary form. MPL-2.0 is accepted because dependencies are
/// used unmodified, as published; a changed copy would have to be offered in source form.
const ACCEPTED: [&str; 11] = [
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MPL-2.0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Whether at least one choice the expression offers consists of accepted licences only.
pub(super) fn accepted(expression: &str) -> Result<bool, Malformed> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = Words { words: spaced.split_whitespace().collect(), at: 0 };
    let answer = any_of(&mut words)?;
    if words.at == words.words.len() { Ok(answer) } else { Err(Malformed) }
}

/// The expression breaks the SPDX grammar.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

struct Words<'text> {
    words: Vec<&'text str>,
    at: usize,
}

impl<'text> Words<'text> {
    fn next(&mut self) -> Option<&'text str> {
        let word = self.words.get(self.at).copied();
        self.at += usize::from(word.is_some());
        word
    }

    fn take(&mut self, wanted: &str) -> bool {
        let found = self.words.get(self.at).is_some_and(|word| word.eq_ignore_ascii_case(wanted));
        self.at += usize::from(found);
        found
    }
}

fn any_of(words: &mut Words<'_>) -> Result<bool, Malformed> {
    let mut answer = all_of(words)?;
    while words.take("OR") {
        answer |= all_of(words)?;
    }
    Ok(answer)
}

fn all_of(words: &mut Words<'_>) -> Result<bool, Malformed> {
    let mut answer = one(words)?;
    while words.take("AND") {
        answer &= one(words)?;
    }
    Ok(answer)
}

fn one(words: &mut Words<'_>) -> Result<bool, Malformed> {
    if words.take("(") {
        let answer = any_of(words)?;
        return if words.take(")") { Ok(answer) } else { Err(Malformed) };
    }
    let name = words.next().ok_or(Malformed)?;
    if matches!(name, ")" | "AND" | "OR" | "WITH") {
        return Err(Malformed);
    }
    if words.take("WITH") {
        // An exception only adds permissions, so the licence itself decides.
        words.next().ok_or(Malformed)?;
    }
    Ok(ACCEPTED.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_judged_by_their_choices() {
        for expression in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0-only OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0-only",
            "MIT OR GPL-3.0-only AND GPL-2.0-only",
        ] {
            assert_eq!(accepted(expression), Ok(true), "{expression}");
        }
        for expression in
            ["GPL-3.0-only", "MIT AND GPL-3.0-only", "(MIT OR ISC) AND LGPL-2.1-only", "OpenSSL"]
        {
            assert_eq!(accepted(expression), Ok(false), "{expression}");
        }
    }

    #[test]
    fn malformed_expressions_are_no_permission() {
        for expression in ["", "MIT OR", "(MIT", "MIT)", "MIT ISC", "AND MIT", "MIT WITH"] {
            assert_eq!(accepted(expression), Err(Malformed), "{expression}");
        }
    }
}
