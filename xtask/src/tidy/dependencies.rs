//! Licences, sources and duplicates of all dependencies, and the manifests that ask for them.
//!
//! Called by `tidy::run`. Packages come from `cargo metadata`, restricted to the platform we build for: a crate for
//! another system is neither linked in nor even fetched. It does not know advisories.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

use super::licence;
use super::{Finding, TextFile, Tree};

/// How Cargo names the one registry that packages may come from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// One package of the dependency graph, as far as the checks look at it.
#[derive(Clone, Debug)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    licence: Option<String>,
    /// Nothing for a package given by path.
    source: Option<String>,
    manifest_path: String,
}

/// Asks Cargo for every package that the workspace builds on this platform. Never uses the network.
pub(super) fn packages(root: &Path) -> anyhow::Result<Vec<Package>> {
    let version = cargo(root, &["rustc", "-vV"])?;
    let platform = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc -vV names no host platform")?;
    let metadata = cargo(
        root,
        &[
            "cargo",
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--offline",
            "--filter-platform",
            platform,
        ],
    )
    .with_context(|| {
        format!(
            "the dependencies are not at hand: run `cargo fetch --locked --target {platform}` once"
        )
    })?;
    parse(&metadata)
}

fn cargo(root: &Path, words: &[&str]) -> anyhow::Result<String> {
    let [program, arguments @ ..] = words else { bail!("no program named") };
    let output = Command::new(program)
        .args(arguments)
        .current_dir(root)
        .output()
        .with_context(|| format!("starting {program}"))?;
    if !output.status.success() {
        bail!("{}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("the output of {program}"))
}

fn parse(metadata: &str) -> anyhow::Result<Vec<Package>> {
    let metadata: Value = serde_json::from_str(metadata).context("the output of cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    packages
        .iter()
        .map(|package| {
            let field = |key: &str| package[key].as_str().map(str::to_owned);
            Ok(Package {
                name: field("name").context("a package without a name")?,
                version: field("version").context("a package without a version")?,
                licence: field("license"),
                source: field("source"),
                manifest_path: field("manifest_path").context("a package without a manifest")?,
            })
        })
        .collect()
}

pub(super) fn check_packages(root: &Path, packages: &[Package]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in packages {
        findings.extend(licence_of(package));
        findings.extend(source_of(root, package));
    }
    findings.extend(duplicates(packages));
    findings
}

fn licence_of(package: &Package) -> Option<Finding> {
    let place = format!("{} {}", package.name, package.version);
    let Some(expression) = &package.licence else {
        return Some(Finding::failure(place, "states no licence in its manifest"));
    };
    match licence::accepted(expression) {
        Ok(true) => None,
        Ok(false) => Some(Finding::failure(
            place,
            format!("licence '{expression}' is not among the accepted ones"),
        )),
        Err(licence::Malformed) => {
            Some(Finding::failure(place, format!("licence '{expression}' is no SPDX expression")))
        }
    }
}

fn source_of(root: &Path, package: &Package) -> Option<Finding> {
    let place = format!("{} {}", package.name, package.version);
    match package.source.as_deref() {
        Some(REGISTRY) => None,
        Some(other) => Some(Finding::failure(place, format!("comes from {other}"))),
        None if Path::new(&package.manifest_path).starts_with(root) => None,
        None => Some(Finding::failure(
            place,
            format!("comes from {}, outside of the repository", package.manifest_path),
        )),
    }
}

fn duplicates(packages: &[Package]) -> Vec<Finding> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in packages {
        versions.entry(&package.name).or_default().push(&package.version);
    }
    versions
        .into_iter()
        .filter(|(_, versions)| versions.len() > 1)
        .map(|(name, versions)| {
            Finding::warning(name, format!("is built in versions {}", versions.join(" and ")))
        })
        .collect()
}

/// The root manifest gives a reason for each group of dependencies, and no other manifest states a version.
pub(super) fn check_manifests(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut offered = Vec::new();
    let mut taken = BTreeSet::new();
    for manifest in tree
        .files
        .iter()
        .filter(|file| file.path == "Cargo.toml" || file.path.ends_with("/Cargo.toml"))
    {
        let in_root = manifest.path == "Cargo.toml";
        for dependency in dependency_lines(manifest) {
            let place = format!("{}:{}", manifest.path, dependency.number);
            if in_root {
                offered.push((place.clone(), dependency.name));
            } else {
                taken.insert(dependency.name);
            }
            if in_root && dependency.reason == Reason::Missing {
                findings.push(Finding::failure(
                    place,
                    format!(
                        "'{}' needs a comment with its reason above its group",
                        dependency.name
                    ),
                ));
            } else if !in_root && !dependency.line.contains("workspace = true") {
                findings.push(Finding::failure(
                    place,
                    format!("'{}' belongs in the root manifest, with its reason", dependency.name),
                ));
            }
        }
    }
    let unused = offered.into_iter().filter(|(_, name)| !taken.contains(name));
    findings.extend(
        unused.map(|(place, name)| Finding::warning(place, format!("no crate uses '{name}'"))),
    );
    findings
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Given,
    Missing,
}

struct DependencyLine<'text> {
    number: usize,
    name: &'text str,
    line: &'text str,
    reason: Reason,
}

/// The lines that name a dependency. A comment is the reason of all lines up to the next blank line or section.
fn dependency_lines(manifest: &TextFile) -> Vec<DependencyLine<'_>> {
    let mut found = Vec::new();
    let mut in_dependencies = false;
    let mut reason = Reason::Missing;
    let mut open_brackets = 0_usize;
    for (number, line) in manifest.text.lines().enumerate() {
        let line = line.trim();
        let continues = open_brackets > 0;
        if let Some(section) = line.strip_prefix('[').filter(|_| !continues) {
            in_dependencies = section.trim_end_matches(']').ends_with("dependencies");
            reason = Reason::Missing;
            continue;
        }
        if line.starts_with('#') {
            reason = Reason::Given;
            continue;
        }
        if line.is_empty() {
            reason = Reason::Missing;
            continue;
        }
        open_brackets += line.matches(['[', '{']).count();
        open_brackets = open_brackets.saturating_sub(line.matches([']', '}']).count());
        if in_dependencies && !continues {
            let name = line.split(['=', '.', ' ']).next().unwrap_or(line);
            // Both `serde.workspace = true` and `serde = { workspace = true }` name serde.
            found.push(DependencyLine { number: number + 1, name, line, reason });
        }
    }
    found
}

#[cfg(test)]
impl Package {
    pub(super) fn sample(name: &str, version: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            licence: Some("MIT".to_owned()),
            source: Some(REGISTRY.to_owned()),
            manifest_path: format!("/registry/{name}-{version}/Cargo.toml"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Weight;
    use super::super::seeded::{Seeded, lines};
    use super::*;

    fn judged(package: Package) -> Vec<String> {
        lines(&check_packages(Path::new("/repository"), &[package]), Weight::Failure)
    }

    #[test]
    fn packages_of_this_workspace_are_listed_with_licence_and_source() {
        let packages = packages(&crate::cache::checkout()).expect("cargo metadata");
        let named = |name: &str| packages.iter().find(|package| package.name == name);
        assert_eq!(named("xtask").expect("xtask").source, None);
        assert_eq!(named("serde_json").expect("serde_json").source.as_deref(), Some(REGISTRY));
    }

    #[test]
    fn metadata_that_is_no_metadata_is_an_error() {
        assert!(parse("{}").is_err());
        assert!(parse("no json").is_err());
        assert!(parse(r#"{"packages":[{"name":"a"}]}"#).is_err());
    }

    #[test]
    fn licences_that_are_missing_foreign_or_unreadable_fail() {
        let sample = Package::sample("a", "1.0.0");
        assert_eq!(judged(sample.clone()), Vec::<String>::new());
        let with = |licence: Option<&str>| Package {
            licence: licence.map(str::to_owned),
            ..sample.clone()
        };
        assert_eq!(judged(with(None)), ["a 1.0.0: states no licence in its manifest"]);
        assert_eq!(
            judged(with(Some("GPL-3.0-only"))),
            ["a 1.0.0: licence 'GPL-3.0-only' is not among the accepted ones"]
        );
        assert_eq!(
            judged(with(Some("MIT OR"))),
            ["a 1.0.0: licence 'MIT OR' is no SPDX expression"]
        );
    }

    #[test]
    fn sources_other_than_the_registry_and_the_repository_fail() {
        let sample = Package::sample("a", "1.0.0");
        let git =
            Package { source: Some("git+https://example.org/a".to_owned()), ..sample.clone() };
        assert_eq!(judged(git), ["a 1.0.0: comes from git+https://example.org/a"]);
        let path =
            |path: &str| Package { source: None, manifest_path: path.to_owned(), ..sample.clone() };
        assert_eq!(judged(path("/repository/crates/a/Cargo.toml")), Vec::<String>::new());
        assert_eq!(judged(path("/elsewhere/a/Cargo.toml")).len(), 1);
    }

    #[test]
    fn two_versions_of_one_crate_are_a_warning() {
        let packages = [
            Package::sample("a", "1.0.0"),
            Package::sample("a", "2.0.0"),
            Package::sample("b", "1.0.0"),
        ];
        let findings = check_packages(Path::new("/"), &packages);
        assert_eq!(lines(&findings, Weight::Warning), ["a: is built in versions 1.0.0 and 2.0.0"]);
        assert_eq!(lines(&findings, Weight::Failure), Vec::<String>::new());
    }

    #[test]
    fn dependencies_of_the_root_need_a_reason_and_the_others_the_root() {
        let root = "[workspace.dependencies]\n# Values.\nserde = { version = \"1\", features = [\n  \"derive\",\n] }\n\
                    json = \"1\"\n\nbare = \"1\"\n\n[profile.dev]\ndebug = 1\n";
        let member =
            "[package]\nname = \"a\"\n\n[dependencies]\nserde.workspace = true\nother = \"1\"\n";
        let seeded = Seeded::new(&[("Cargo.toml", root), ("crates/a/Cargo.toml", member)]);
        assert_eq!(
            lines(&check_manifests(&seeded.tree()), Weight::Failure),
            [
                "Cargo.toml:8: 'bare' needs a comment with its reason above its group",
                "crates/a/Cargo.toml:6: 'other' belongs in the root manifest, with its reason",
            ]
        );
        assert_eq!(
            lines(&check_manifests(&seeded.tree()), Weight::Warning),
            ["Cargo.toml:6: no crate uses 'json'", "Cargo.toml:8: no crate uses 'bare'"]
        );
    }
}
