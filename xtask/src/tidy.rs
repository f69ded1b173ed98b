//! `cargo xtask tidy`: the rules of this repository that neither the compiler nor clippy knows.
//!
//! Called by people before a commit and by `.ci/run`. Each check looks at a [`Tree`] and returns [`Finding`]s; only
//! [`run`] prints. A failure ends with a non-zero status, a warning and a hint do not. Nothing here needs the network:
//! the dependencies are judged over `cargo metadata --locked --offline`.

mod advisories;
mod dependencies;
mod documents;
mod licence;
mod sources;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::cache::checkout;

/// Runs every check on this repository, prints what was found, and fails when a rule is broken.
pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    if !arguments.is_empty() {
        bail!("usage: cargo xtask tidy");
    }
    let root = checkout();
    let tree = Tree::read(&root).with_context(|| format!("reading {}", root.display()))?;
    let mut findings = sources::check(&tree);
    findings.extend(documents::check(&tree));
    findings.extend(dependencies::check_manifests(&tree));
    let packages = dependencies::packages(&root)?;
    findings.extend(dependencies::check_packages(&root, &packages));
    match advisories::database() {
        Some(folder) => findings.extend(advisories::check(&folder, &packages)),
        None => println!(
            "tidy: no advisory database at hand (ADVISORY_DB or ~/.cargo/advisory-db): known advisories not checked"
        ),
    }
    findings.sort_by(|left, right| {
        (left.weight, &left.place, &left.text).cmp(&(right.weight, &right.place, &right.text))
    });
    for finding in &findings {
        println!("{finding}");
    }
    let failures = findings.iter().filter(|finding| finding.weight == Weight::Failure).count();
    if failures > 0 {
        bail!("{failures} rule(s) broken, see the lines that begin with 'failure'");
    }
    println!(
        "tidy: {} files and {} packages keep the rules; {} warning(s) and hint(s)",
        tree.files.len(),
        packages.len(),
        findings.len()
    );
    Ok(())
}

/// How much a finding matters. The order is the order of printing: what fails comes last, where people look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    Hint,
    Warning,
    Failure,
}

/// One place that breaks a rule or deserves a look.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    weight: Weight,
    place: String,
    text: String,
}

impl Finding {
    fn failure(place: impl Into<String>, text: impl Into<String>) -> Self {
        Self { weight: Weight::Failure, place: place.into(), text: text.into() }
    }

    fn warning(place: impl Into<String>, text: impl Into<String>) -> Self {
        Self { weight: Weight::Warning, place: place.into(), text: text.into() }
    }

    fn hint(place: impl Into<String>, text: impl Into<String>) -> Self {
        Self { weight: Weight::Hint, place: place.into(), text: text.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weight = match self.weight {
            Weight::Hint => "hint",
            Weight::Warning => "warning",
            Weight::Failure => "failure",
        };
        write!(out, "{weight}: {}: {}", self.place, self.text)
    }
}

/// The files of the repository, read once. What the root's `.gitignore` names is no part of it.
pub(crate) struct Tree {
    pub(crate) root: PathBuf,
    files: Vec<TextFile>,
}

/// A text file: its path below the root with `/` between the parts, and its content.
pub(crate) struct TextFile {
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Tree {
    pub(crate) fn read(root: &Path) -> io::Result<Self> {
        let mut ignored = vec![".git".to_owned()];
        match fs::read_to_string(root.join(".gitignore")) {
            Ok(text) => ignored.extend(
                text.lines().filter_map(|line| Some(line.trim().strip_prefix('/')?.to_owned())),
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut files = Vec::new();
        collect(root, "", &ignored, &mut files)?;
        files.sort_by(|left: &TextFile, right| left.path.cmp(&right.path));
        Ok(Self { root: root.to_owned(), files })
    }

    pub(crate) fn file(&self, path: &str) -> Option<&TextFile> {
        self.files.iter().find(|file| file.path == path)
    }

    pub(crate) fn with_extension(&self, extension: &str) -> impl Iterator<Item = &TextFile> {
        self.files.iter().filter(move |file| {
            Path::new(&file.path).extension().is_some_and(|found| found == extension)
        })
    }
}

/// Adds the text files below `root/below`. Symbolic links and files that are not UTF-8 hold none of our text.
fn collect(
    root: &Path,
    below: &str,
    ignored: &[String],
    files: &mut Vec<TextFile>,
) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        if ignored.contains(&path) {
            continue;
        }
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(root, &path, ignored, files)?;
        } else if kind.is_file()
            && let Ok(text) = String::from_utf8(fs::read(entry.path())?)
        {
            files.push(TextFile { path, text });
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod seeded {
    //! A small repository on disk with a fault sown in, for the tests of every check.

    use super::{Finding, Tree, Weight};

    pub(crate) struct Seeded {
        folder: tempfile::TempDir,
    }

    impl Seeded {
        pub(crate) fn new(files: &[(&str, &str)]) -> Self {
            let folder = tempfile::tempdir().expect("a temporary folder");
            for (path, text) in files {
                let path = folder.path().join(path);
                std::fs::create_dir_all(path.parent().expect("a parent")).expect("folder");
                std::fs::write(path, text).expect("file");
            }
            Self { folder }
        }

        pub(crate) fn tree(&self) -> Tree {
            Tree::read(self.folder.path()).expect("a readable tree")
        }

        pub(crate) fn path(&self) -> &std::path::Path {
            self.folder.path()
        }
    }

    /// The findings of one weight as printed lines.
    pub(super) fn lines(findings: &[Finding], weight: Weight) -> Vec<String> {
        findings
            .iter()
            .filter(|finding| finding.weight == weight)
            .map(|finding| format!("{}: {}", finding.place, finding.text))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::seeded::Seeded;

    #[test]
    fn ignored_folders_links_and_binaries_are_no_part_of_the_tree() {
        let seeded = Seeded::new(&[
            (".gitignore", "/target\n/.cache\n"),
            ("target/x.rs", ""),
            (".cache/y.rs", ""),
            ("crates/a/target/kept.rs", ""),
        ]);
        std::fs::write(seeded.path().join("binary"), [0xff, 0xfe]).expect("file");
        std::os::unix::fs::symlink("/", seeded.path().join("loop")).expect("link");
        let paths: Vec<_> = seeded.tree().files.into_iter().map(|file| file.path).collect();
        assert_eq!(paths, [".gitignore", "crates/a/target/kept.rs"]);
    }
}
