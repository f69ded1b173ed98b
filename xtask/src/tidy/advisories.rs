//! Known advisories about our dependencies, where a copy of the RustSec database is at hand.
//!
//! Called by `tidy::run`. It reads the database's folder as it is laid out (`crates/NAME/ID.md`, each opening with a
//! TOML block) and fetches nothing. Of the TOML it takes five keys; of version requirements what the database uses.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::Finding;
use super::dependencies::Package;

/// The database's folder: `ADVISORY_DB`, or where Cargo's own tools keep it.
pub(super) fn database() -> Option<PathBuf> {
    let usual = || Some(PathBuf::from(env::var_os("HOME")?).join(".cargo/advisory-db"));
    let folder = env::var_os("ADVISORY_DB").map(PathBuf::from).or_else(usual)?;
    folder.join("crates").is_dir().then_some(folder)
}

pub(super) fn check(database: &Path, packages: &[Package]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in packages {
        let Ok(entries) = fs::read_dir(database.join("crates").join(&package.name)) else {
            continue;
        };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let place = format!("{} {}", package.name, package.version);
            match fs::read_to_string(&path).ok().as_deref().and_then(Advisory::parse) {
                Some(advisory) => findings.extend(advisory.judge(place, &package.version)),
                None => findings.push(Finding::failure(
                    path.display().to_string(),
                    "cannot be read as an advisory",
                )),
            }
        }
    }
    findings
}

/// What an advisory says about versions.
struct Advisory<'text> {
    id: &'text str,
    /// Present for what is no vulnerability: `unmaintained`, `unsound`, `notice`.
    informational: Option<&'text str>,
    withdrawn: bool,
    /// Requirements of the versions that are not concerned, patched or never affected.
    harmless: Vec<&'text str>,
}

impl<'text> Advisory<'text> {
    fn parse(text: &'text str) -> Option<Self> {
        let block = text.split_once("```toml")?.1.split_once("```")?.0;
        let mut harmless = strings(block, "patched");
        harmless.extend(strings(block, "unaffected"));
        Some(Self {
            id: strings(block, "id").first()?,
            informational: strings(block, "informational").first().copied(),
            withdrawn: !strings(block, "withdrawn").is_empty(),
            harmless,
        })
    }

    fn judge(&self, place: String, version: &str) -> Option<Finding> {
        let concerned = !self.harmless.iter().any(|requirement| matches(requirement, version));
        if self.withdrawn || !concerned {
            return None;
        }
        Some(match self.informational {
            Some(kind) => Finding::warning(place, format!("{} ({kind})", self.id)),
            None => Finding::failure(place, format!("{}: take a patched version", self.id)),
        })
    }
}

/// The strings of `key = "…"` or `key = ["…", …]`, also over several lines.
fn strings<'text>(block: &'text str, key: &str) -> Vec<&'text str> {
    let mut rest = block;
    while let Some(line_end) = rest.find('\n') {
        let value = rest.strip_prefix(key).and_then(|rest| rest.trim_start().strip_prefix('='));
        if let Some(value) = value {
            let value = value.trim_start();
            let end = if value.starts_with('[') { value.find(']') } else { value.find('\n') };
            return value[..end.unwrap_or(value.len())].split('"').skip(1).step_by(2).collect();
        }
        rest = &rest[line_end + 1..];
    }
    Vec::new()
}

/// Whether a version meets a requirement such as `>= 1.2.3, < 2`. A pre-release counts as the version it leads to.
fn matches(requirement: &str, version: &str) -> bool {
    let Some(version) = numbers(version) else { return false };
    requirement.split(',').all(|part| {
        let part = part.trim();
        let digits = part.find(|letter: char| letter.is_ascii_digit()).unwrap_or(part.len());
        let (operator, bound) = part.split_at(digits);
        let Some(bound) = numbers(bound) else { return part == "*" };
        match operator.trim() {
            ">=" => version >= bound,
            ">" => version > bound,
            "<=" => version <= bound,
            "<" => version < bound,
            "=" => version == bound,
            "~" => version >= bound && version[..2] == bound[..2],
            "^" | "" => version >= bound && same_compatible(version, bound),
            _ => false,
        }
    })
}

/// Cargo's notion of compatible: the leftmost number that is not zero is the same.
fn same_compatible(version: [u64; 3], bound: [u64; 3]) -> bool {
    let leading = bound.iter().position(|&number| number != 0).unwrap_or(2);
    version[..=leading] == bound[..=leading]
}

fn numbers(version: &str) -> Option<[u64; 3]> {
    let plain = version.split(['-', '+']).next()?;
    let mut numbers = [0; 3];
    for (place, part) in plain.trim().split('.').enumerate() {
        *numbers.get_mut(place)? = part.parse().ok()?;
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::super::Weight;
    use super::super::seeded::{Seeded, lines};
    use super::*;

    const FLAW: &str = "```toml\n[advisory]\nid = \"RUSTSEC-2026-0001\"\npackage = \"a\"\n\n[versions]\n\
                        patched = [\n  \">= 1.2.0\",\n]\nunaffected = [\"< 1.0.0\"]\n```\n# Flaw\n";

    fn found(text: &str, version: &str, weight: Weight) -> Vec<String> {
        let seeded = Seeded::new(&[("crates/a/RUSTSEC-2026-0001.md", text)]);
        lines(&check(seeded.path(), &[Package::sample("a", version)]), weight)
    }

    #[test]
    fn a_version_with_a_known_flaw_fails() {
        let expected = ["a 1.1.0: RUSTSEC-2026-0001: take a patched version"];
        assert_eq!(found(FLAW, "1.1.0", Weight::Failure), expected);
        assert_eq!(found(FLAW, "1.2.0", Weight::Failure), Vec::<String>::new());
        assert_eq!(found(FLAW, "0.9.9", Weight::Failure), Vec::<String>::new());
    }

    #[test]
    fn information_is_a_warning_and_a_withdrawn_advisory_nothing() {
        let notice = FLAW.replace("package = ", "informational = \"unmaintained\"\npackage = ");
        assert_eq!(
            found(&notice, "1.1.0", Weight::Warning),
            ["a 1.1.0: RUSTSEC-2026-0001 (unmaintained)"]
        );
        let withdrawn = FLAW.replace("package = ", "withdrawn = \"2026-02-01\"\npackage = ");
        assert_eq!(found(&withdrawn, "1.1.0", Weight::Failure), Vec::<String>::new());
    }

    #[test]
    fn an_advisory_that_cannot_be_read_fails() {
        assert_eq!(found("no block", "1.1.0", Weight::Failure).len(), 1);
    }

    #[test]
    fn requirements_are_read_as_cargo_reads_them() {
        for (requirement, version, expected) in [
            (">= 1.2, < 2", "1.9.9", true),
            (">= 1.2, < 2", "2.0.0", false),
            ("^0.3.1", "0.3.9", true),
            ("^0.3.1", "0.4.0", false),
            ("1.4", "1.5.0", true),
            ("~1.4.2", "1.4.9", true),
            ("~1.4.2", "1.5.0", false),
            ("= 1.0.0", "1.0.0", true),
            ("> 1.0.0", "1.0.0", false),
            ("nonsense", "1.0.0", false),
            ("*", "1.0.0", true),
        ] {
            assert_eq!(matches(requirement, version), expected, "{requirement} {version}");
        }
    }
}
