//! What the documents promise: a path they name exists, a link leads somewhere, and ARCHITECTURE.md knows every crate.
//!
//! Called by `tidy::run`. It reads Markdown as lines, code spans and inline links, no more; what stands in a fenced
//! block is an example and is not looked at. Links to the network are not followed.

use std::path::{Component, Path};

use super::{Finding, TextFile, Tree};

const ARCHITECTURE: &str = "ARCHITECTURE.md";

/// A code span that begins with one of these names a path of the repository, other spans are words or host paths.
const REPOSITORY_FOLDERS: [&str; 9] =
    ["crates", "tests", "xtask", "docs", "scripts", "packaging", "benches", "fuzz", ".ci"];

/// Files of the root folder that documents name without any `/`.
const ROOT_FILE_ENDINGS: [&str; 2] = [".md", ".toml"];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for document in tree.with_extension("md") {
        named_paths(tree, document, &mut findings);
        links(tree, document, &mut findings);
    }
    known_crates(tree, &mut findings);
    findings
}

fn named_paths(tree: &Tree, document: &TextFile, findings: &mut Vec<Finding>) {
    for (number, line) in prose(&document.text) {
        for span in code_spans(line) {
            if let Some(path) = repository_path(span)
                && !exists(tree, path)
                && !resolve(&document.path, path).is_some_and(|beside| exists(tree, &beside))
            {
                findings.push(Finding::failure(
                    format!("{}:{number}", document.path),
                    format!("names '{path}', which does not exist"),
                ));
            }
        }
    }
}

fn links(tree: &Tree, document: &TextFile, findings: &mut Vec<Finding>) {
    for (number, line) in prose(&document.text) {
        for target in link_targets(line) {
            if let Err(reason) = follow(tree, &document.path, target) {
                findings.push(Finding::failure(
                    format!("{}:{number}", document.path),
                    format!("link to '{target}': {reason}"),
                ));
            }
        }
    }
}

fn known_crates(tree: &Tree, findings: &mut Vec<Finding>) {
    let Some(architecture) = tree.file(ARCHITECTURE) else {
        findings.push(Finding::failure(ARCHITECTURE, "the file is missing"));
        return;
    };
    for file in &tree.files {
        let Some(folder) = file.path.strip_suffix("/Cargo.toml") else { continue };
        if folder.starts_with("crates/") && !architecture.text.contains(&format!("`{folder}`")) {
            findings.push(Finding::failure(ARCHITECTURE, format!("does not mention `{folder}`")));
        }
    }
}

/// The lines outside of fenced blocks, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(number, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        (!fenced && !fence).then_some((number + 1, line))
    })
}

fn code_spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The path a code span names, if it names one of this repository; a symbol or a line after a colon is left out.
fn repository_path(span: &str) -> Option<&str> {
    let path = span.split(':').next()?.trim_end_matches('/');
    if path.contains(char::is_whitespace) || path.is_empty() {
        return None;
    }
    match path.split_once('/') {
        Some((first, _)) => REPOSITORY_FOLDERS.contains(&first).then_some(path),
        None => ROOT_FILE_ENDINGS.iter().any(|ending| path.ends_with(ending)).then_some(path),
    }
}

/// Whether a path exists; a part in capitals (`COMMAND.rs`) or with a `*` stands for any file there.
fn exists(tree: &Tree, path: &str) -> bool {
    let whole = path.split('/').take_while(|part| !is_placeholder(part));
    let known: Vec<_> = whole.collect();
    if known.len() == path.split('/').count() {
        return tree.root.join(path).exists();
    }
    tree.root.join(known.join("/")).is_dir()
}

fn is_placeholder(part: &str) -> bool {
    let stem = part.split('.').next().unwrap_or_default();
    let capitals = stem.len() > 1 && stem.chars().all(|letter| letter.is_ascii_uppercase());
    part.contains('*') || (capitals && !part.ends_with(".md"))
}

fn link_targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

/// Checks that a link of the document leads to a file and, with `#`, to one of its headings.
fn follow(tree: &Tree, document: &str, target: &str) -> Result<(), String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return Ok(());
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let resolved = if path.is_empty() {
        document.to_owned()
    } else {
        resolve(document, path).ok_or("leads out of the repository")?
    };
    if !tree.root.join(&resolved).exists() {
        return Err(format!("{resolved} does not exist"));
    }
    if anchor.is_empty() {
        return Ok(());
    }
    let page = tree.file(&resolved).ok_or_else(|| format!("{resolved} has no headings"))?;
    if prose(&page.text).filter_map(|(_, line)| heading_anchor(line)).any(|found| found == anchor) {
        return Ok(());
    }
    Err(format!("{resolved} has no heading '#{anchor}'"))
}

fn resolve(document: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::ParentDir => {
                parts.pop()?;
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

/// The anchor that a heading gets where Markdown is shown: lower case, blanks as dashes, no punctuation.
fn heading_anchor(line: &str) -> Option<String> {
    let heading = line.trim_start_matches('#');
    if heading.len() == line.len() || !heading.starts_with(' ') {
        return None;
    }
    let kept = heading
        .trim()
        .chars()
        .filter(|&letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
    Some(
        kept.map(|letter| if letter == ' ' { '-' } else { letter })
            .collect::<String>()
            .to_lowercase(),
    )
}

#[cfg(test)]
mod tests {
    use super::super::Weight;
    use super::super::seeded::{Seeded, lines};
    use super::*;

    fn failures(files: &[(&str, &str)]) -> Vec<String> {
        lines(&check(&Seeded::new(files).tree()), Weight::Failure)
    }

    #[test]
    fn paths_that_exist_and_words_that_are_no_paths_pass() {
        let text = "`crates/a` `crates/a/src/lib.rs:12` `model::Guest` `uuids/UUID/log` `/run/hpvm` `Cargo.toml`\n\
                    `crates/a/src/COMMAND.rs` `crates/*/src`\n```\n`crates/gone`\n```\n";
        let files = [
            (ARCHITECTURE, text),
            ("Cargo.toml", ""),
            ("crates/a/Cargo.toml", ""),
            ("crates/a/src/lib.rs", ""),
        ];
        assert_eq!(failures(&files), Vec::<String>::new());
    }

    #[test]
    fn a_named_path_that_is_gone_fails() {
        let files = [(ARCHITECTURE, "ok\nsee `crates/gone/src/lib.rs` and `GONE.md`\n")];
        assert_eq!(
            failures(&files),
            [
                "ARCHITECTURE.md:2: names 'crates/gone/src/lib.rs', which does not exist",
                "ARCHITECTURE.md:2: names 'GONE.md', which does not exist",
            ]
        );
        let placeholder = [(ARCHITECTURE, "`crates/gone/src/COMMAND.rs`\n")];
        assert_eq!(failures(&placeholder).len(), 1);
    }

    #[test]
    fn a_crate_that_the_architecture_does_not_mention_fails() {
        let files = [
            (ARCHITECTURE, "`crates/a`\n"),
            ("crates/a/Cargo.toml", ""),
            ("crates/b/Cargo.toml", ""),
        ];
        assert_eq!(failures(&files), ["ARCHITECTURE.md: does not mention `crates/b`"]);
        assert_eq!(failures(&[("x", "")]), ["ARCHITECTURE.md: the file is missing"]);
    }

    #[test]
    fn links_have_to_lead_somewhere() {
        let files = [
            (
                ARCHITECTURE,
                "[a](docs/a.md) [b](docs/a.md#the-first-one) [c](https://example.org/x)\n",
            ),
            (
                "docs/a.md",
                "# The first `one`\n`a.md` [up](../ARCHITECTURE.md) [self](#the-first-one)\n",
            ),
        ];
        assert_eq!(failures(&files), Vec::<String>::new());
        let broken = [
            (ARCHITECTURE, "[a](docs/b.md) [b](docs/a.md#second) [c](../../etc)\n"),
            ("docs/a.md", "# First\n"),
        ];
        assert_eq!(
            failures(&broken),
            [
                "ARCHITECTURE.md:1: link to 'docs/b.md': docs/b.md does not exist",
                "ARCHITECTURE.md:1: link to 'docs/a.md#second': docs/a.md has no heading '#second'",
                "ARCHITECTURE.md:1: link to '../../etc': leads out of the repository",
            ]
        );
    }
}
