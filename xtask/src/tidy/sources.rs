//! What every Rust file has to keep to: an opening that says what it is for, nothing left open, `unsafe` only where
//! the architecture allows it; and hints about files and functions that may have grown past one idea.
//!
//! Called by `tidy::run`. It does not parse Rust: [`mask`] blanks comments and literals, which is enough to see words
//! and braces as the compiler would.

use super::{Finding, TextFile, Tree};

/// The crates that may hold `unsafe`; ARCHITECTURE.md lists the same among its invariants.
const UNSAFE_ALLOWED: [&str; 4] =
    ["crates/host/", "crates/keeper/", "crates/vswitch/", "crates/nat/src/slirp"];
/// A program of a test guest: it asks the kernel of that guest what no safe crate asks, and runs nowhere else.
const IN_A_GUEST: &str = "xtask/src/guest/load.rs";

/// Words that mark work as left open. In two parts, so that this file does not hold them itself.
const LEFT_OPEN: [&str; 6] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("X", "XX"),
    concat!("to", "do!"),
    concat!("unimpl", "emented!"),
    concat!("#[ig", "nore"),
];

/// Above these a reviewer takes a second look. They are hints: some long tables are right as they are.
const PRODUCTION_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.with_extension("rs") {
        opening(file, &mut findings);
        words(file, &mut findings);
        let code = mask(&file.text);
        confinement_of_unsafe(file, &code, &mut findings);
        panics(file, &code, &mut findings);
        length_of_file(file, &mut findings);
        length_of_functions(file, &code, &mut findings);
    }
    for file in
        ["rs", "toml", "md"].into_iter().flat_map(|extension| tree.with_extension(extension))
    {
        spaces(file, &mut findings);
    }
    findings
}

fn opening(file: &TextFile, findings: &mut Vec<Finding>) {
    let first = file.text.lines().next().unwrap_or_default();
    if first.strip_prefix("//!").is_none_or(|purpose| purpose.trim().is_empty()) {
        findings.push(Finding::failure(
            format!("{}:1", file.path),
            "open the file with a line '//! what it is for'",
        ));
    }
}

fn words(file: &TextFile, findings: &mut Vec<Finding>) {
    for (number, line) in file.text.lines().enumerate() {
        for word in LEFT_OPEN {
            if contains_word(line, word) {
                findings.push(Finding::failure(
                    format!("{}:{}", file.path, number + 1),
                    format!("'{word}' leaves work open: finish it or take it to the issue"),
                ));
            }
        }
    }
}

fn spaces(file: &TextFile, findings: &mut Vec<Finding>) {
    let rust = file.path.ends_with(".rs");
    let mut fenced = false;
    for (number, line) in file.text.lines().enumerate() {
        let place = || format!("{}:{}", file.path, number + 1);
        fenced ^= file.path.ends_with(".md") && line.trim_start().starts_with("```");
        if rust && line.contains('\t') {
            findings.push(Finding::failure(place(), "a tab: Rust files are indented by spaces"));
        }
        // A session in a document shows what a command prints, trailing blanks of its tables included.
        if !fenced && line.ends_with([' ', '\t']) {
            findings.push(Finding::failure(place(), "blanks at the end of the line"));
        }
    }
}

fn confinement_of_unsafe(file: &TextFile, code: &str, findings: &mut Vec<Finding>) {
    let is_allowed = UNSAFE_ALLOWED.iter().any(|folder| file.path.starts_with(folder));
    if is_allowed || file.path == IN_A_GUEST {
        return;
    }
    for (number, line) in code.lines().enumerate() {
        if contains_word(line, "unsafe") {
            findings.push(Finding::failure(
                format!("{}:{}", file.path, number + 1),
                "unsafe outside crates/host, crates/keeper, crates/vswitch and crates/nat/src/slirp",
            ));
        }
    }
}

/// Product code answers with errors; a test may panic, that is how it fails.
fn panics(file: &TextFile, code: &str, findings: &mut Vec<Finding>) {
    let serves_tests = ["crates/testkit/", "crates/netlab/", "crates/guesthost/"];
    let product = file.path.starts_with("crates/")
        && file.path.contains("/src/")
        && !serves_tests.iter().any(|folder| file.path.starts_with(folder))
        && !file.path.contains("/tests/")
        && !file.path.ends_with("tests.rs");
    if !product {
        return;
    }
    for (number, line) in code.lines().enumerate().take(production_lines(file)) {
        for call in [".unwrap()", "panic!("] {
            if line.contains(call) {
                findings.push(Finding::hint(
                    format!("{}:{}", file.path, number + 1),
                    format!("{call} in product code: can it be an error?"),
                ));
            }
        }
    }
}

/// How many lines stand before the tests of a file.
fn production_lines(file: &TextFile) -> usize {
    file.text.lines().take_while(|line| line.trim() != "#[cfg(test)]").count()
}

fn length_of_file(file: &TextFile, findings: &mut Vec<Finding>) {
    let lines = production_lines(file);
    if lines > PRODUCTION_LINES_MAX {
        findings.push(Finding::hint(
            file.path.as_str(),
            format!("{lines} lines before its tests: is it still one idea?"),
        ));
    }
}

fn length_of_functions(file: &TextFile, code: &str, findings: &mut Vec<Finding>) {
    for function in functions(code) {
        if function.lines > FUNCTION_LINES_MAX {
            findings.push(Finding::hint(
                format!("{}:{}", file.path, function.first_line),
                format!("fn {} has {} lines", function.name, function.lines),
            ));
        }
    }
}

/// A function with a body, found in masked code.
#[derive(Debug, PartialEq, Eq)]
struct Function<'code> {
    name: &'code str,
    first_line: usize,
    lines: usize,
}

fn functions(code: &str) -> Vec<Function<'_>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(step) = code[at..].find("fn ") {
        let start = at + step;
        at = start + "fn ".len();
        if code[..start].chars().next_back().is_some_and(is_word) {
            continue;
        }
        let name = leading_word(&code[at..]);
        // A declaration in a trait ends with a semicolon before any brace; a type `fn (..)` has no name.
        let Some(open) = code[at..].find(['{', ';']).map(|step| at + step) else { break };
        if name.is_empty() || code.as_bytes()[open] == b';' {
            continue;
        }
        let Some(close) = matching_brace(code, open) else { break };
        found.push(Function {
            name,
            first_line: code[..start].matches('\n').count() + 1,
            lines: code[start..=close].lines().count(),
        });
    }
    found
}

fn matching_brace(code: &str, open: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (step, byte) in code.as_bytes()[open..].iter().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.checked_sub(1)?,
            _ => continue,
        }
        if depth == 0 {
            return Some(open + step);
        }
    }
    None
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn leading_word(text: &str) -> &str {
    &text[..text.find(|character| !is_word(character)).unwrap_or(text.len())]
}

/// True when `word` stands in `line` and is no part of a longer word.
fn contains_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(start, _)| {
        let before = line[..start].chars().next_back();
        let after = line[start + word.len()..].chars().next();
        let open_end = !word.ends_with(is_word);
        !before.is_some_and(is_word) && (open_end || !after.is_some_and(is_word))
    })
}

/// The source with every comment and literal blanked, line by line as long as before.
///
/// Only what can hide a brace or a word matters: line and nested block comments, strings, raw strings, characters.
/// Bytes that are not ASCII are blanked too, so that offsets are character boundaries.
fn mask(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut code = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => line_end(bytes, at),
            b'/' if bytes[at..].starts_with(b"/*") => block_comment_end(bytes, at),
            b'"' => string_end(bytes, at),
            b'r' if !starts_inside_word(bytes, at) => raw_string_end(bytes, at).unwrap_or(at),
            b'\'' => character_end(bytes, at).unwrap_or(at),
            _ => at,
        };
        if end == at {
            code.push(if bytes[at].is_ascii() { bytes[at] } else { b' ' });
            at += 1;
        } else {
            code.extend(
                bytes[at..end].iter().map(|&byte| if byte == b'\n' { b'\n' } else { b' ' }),
            );
            at = end;
        }
    }
    String::from_utf8(code).unwrap_or_default()
}

fn line_end(bytes: &[u8], start: usize) -> usize {
    find(bytes, start, b"\n").unwrap_or(bytes.len())
}

fn block_comment_end(bytes: &[u8], start: usize) -> usize {
    let (mut depth, mut at) = (0_usize, start);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The end of `r"…"` or `r#"…"#` at `start`; nothing when this `r` begins no raw string.
fn raw_string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let hashes = bytes[start + 1..].iter().take_while(|&&byte| byte == b'#').count();
    let quote = start + 1 + hashes;
    if bytes.get(quote) != Some(&b'"') {
        return None;
    }
    let mut closing = vec![b'"'];
    closing.resize(1 + hashes, b'#');
    Some(find(bytes, quote + 1, &closing).map_or(bytes.len(), |at| at + closing.len()))
}

/// The end of a character literal at `start`; nothing when the quote begins a lifetime.
fn character_end(bytes: &[u8], start: usize) -> Option<usize> {
    if bytes.get(start + 1) == Some(&b'\\') {
        return Some(find(bytes, start + 3, b"'")? + 1);
    }
    let character = std::str::from_utf8(bytes.get(start + 1..)?).ok()?.chars().next()?;
    let closing = start + 1 + character.len_utf8();
    (bytes.get(closing) == Some(&b'\'')).then_some(closing + 1)
}

/// True for the `r` of a longer word; `b` and `c` may stand before a raw string's `r`.
fn starts_inside_word(bytes: &[u8], at: usize) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    match at.checked_sub(1).map(|before| bytes[before]) {
        Some(b'b' | b'c') => at >= 2 && word(bytes[at - 2]),
        Some(before) => word(before),
        None => false,
    }
}

fn find(bytes: &[u8], from: usize, wanted: &[u8]) -> Option<usize> {
    let rest = bytes.get(from..)?;
    rest.windows(wanted.len()).position(|window| window == wanted).map(|step| from + step)
}

#[cfg(test)]
mod tests {
    use super::super::Weight;
    use super::super::seeded::{Seeded, lines};
    use super::*;

    fn failures(path: &str, text: &str) -> Vec<String> {
        lines(&check(&Seeded::new(&[(path, text)]).tree()), Weight::Failure)
    }

    fn hints(path: &str, text: &str) -> Vec<String> {
        lines(&check(&Seeded::new(&[(path, text)]).tree()), Weight::Hint)
    }

    #[test]
    fn a_clean_file_has_no_findings() {
        let text = "//! Purpose.\n\nfn main() {\n    println!(\"hpvm\");\n}\n";
        assert_eq!(check(&Seeded::new(&[("crates/a/src/main.rs", text)]).tree()), []);
    }

    #[test]
    fn a_file_without_an_opening_fails() {
        let expected = ["a.rs:1: open the file with a line '//! what it is for'"];
        assert_eq!(failures("a.rs", "fn main() {}\n"), expected);
        assert_eq!(failures("a.rs", "//!\nfn main() {}\n"), expected);
        assert_eq!(failures("a.rs", ""), expected);
    }

    #[test]
    fn every_word_that_leaves_work_open_fails_even_in_a_comment() {
        for word in LEFT_OPEN {
            let found = failures("a.rs", &format!("//! Purpose.\n// {word}(\"x\") later\n"));
            assert_eq!(found.len(), 1, "{word}: {found:?}");
            assert!(found[0].starts_with("a.rs:2: "), "{found:?}");
        }
    }

    #[test]
    fn a_longer_word_is_not_the_word() {
        let text = format!("//! Folder /run/hpvm-{}X and {}S.\n", LEFT_OPEN[2], LEFT_OPEN[0]);
        assert_eq!(failures("a.rs", &text), Vec::<String>::new());
    }

    #[test]
    fn tabs_and_trailing_blanks_fail_outside_of_sessions() {
        assert_eq!(
            failures("a.rs", "//! Purpose.\n\tx\n"),
            ["a.rs:2: a tab: Rust files are indented by spaces"]
        );
        assert_eq!(failures("a.toml", "x = 1 \n"), ["a.toml:1: blanks at the end of the line"]);
        assert_eq!(
            failures("a.md", "```console\nOper Groups: \n```\nend \n"),
            ["a.md:4: blanks at the end of the line"]
        );
    }

    #[test]
    fn unsafe_is_seen_as_code_only_and_only_outside_its_crates() {
        let text = "//! Purpose: no unsafe.\nfn f() { unsafe { g() } }\n";
        assert_eq!(
            failures("crates/plan/src/lib.rs", text),
            [
                "crates/plan/src/lib.rs:2: unsafe outside crates/host, crates/keeper, crates/vswitch and crates/nat/src/slirp"
            ]
        );
        assert_eq!(failures("crates/host/src/lib.rs", text), Vec::<String>::new());
        let harmless =
            "//! Purpose.\n#![deny(unsafe_code)]\nconst A: &str = \"unsafe\";\n/* unsafe */\n";
        assert_eq!(failures("crates/plan/src/lib.rs", harmless), Vec::<String>::new());
    }

    #[test]
    fn long_files_and_functions_are_hints() {
        let body = "    g();\n".repeat(70);
        let long = format!("//! Purpose.\nfn f() {{\n{body}}}\n");
        assert_eq!(hints("a.rs", &long), ["a.rs:2: fn f has 72 lines"]);
        let statics = "const A: u8 = 0;\n".repeat(601);
        assert_eq!(
            hints("a.rs", &format!("//! Purpose.\n{statics}")),
            ["a.rs: 602 lines before its tests: is it still one idea?"]
        );
        let tests = format!("//! Purpose.\n#[cfg(test)]\nmod tests {{\n{statics}}}\n");
        assert_eq!(hints("a.rs", &tests), Vec::<String>::new());
    }

    #[test]
    fn panics_are_hints_in_product_code_only() {
        let text = "//! Purpose.\nfn f() { g().unwrap() }\n// x.unwrap()\n#[cfg(test)]\nmod tests { fn t() { panic!(\"\") } }\n";
        assert_eq!(
            hints("crates/a/src/lib.rs", text),
            ["crates/a/src/lib.rs:2: .unwrap() in product code: can it be an error?"]
        );
        assert_eq!(hints("crates/a/tests/a.rs", text), Vec::<String>::new());
        assert_eq!(hints("crates/testkit/src/lib.rs", text), Vec::<String>::new());
    }

    #[test]
    fn masking_hides_braces_in_literals_and_keeps_lifetimes() {
        let code = mask(
            "fn a<'x>(y: &'x str) { let c = '{'; let d = \"}\\\"{\"; br#\"}\"# /* { /* } */ */ }",
        );
        assert_eq!(code.matches(['{', '}']).count(), 2, "{code}");
        assert!(code.contains("<'x>"), "{code}");
        assert_eq!(mask("'\\''{"), "    {");
        assert_eq!(mask("for r in x"), "for r in x");
    }

    #[test]
    fn declarations_without_body_are_no_functions() {
        let code = "trait T { fn a(); fn b() { x } }\ntype F = fn (u8);\n";
        let found = functions(code);
        assert_eq!(found, [Function { name: "b", first_line: 1, lines: 1 }]);
    }
}
