//! Debian packages as raw material: resolved and downloaded by apt, unpacked without being installed.
//!
//! The images need kernels, busybox and an EFI stub that have no business on the host. Downloads are kept in
//! `.cache/debs`, because container-like hosts empty apt's own cache after each run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cache::{self, Key};
use crate::tool::{output, perform, tool};

const QUERY: Duration = Duration::from_secs(30);
const DOWNLOAD: Duration = Duration::from_secs(600);
const UNPACK: Duration = Duration::from_secs(120);

/// The candidate version of each package, by the host's own package lists.
pub(crate) fn versions(packages: &[&str]) -> Result<BTreeMap<String, String>> {
    let shown = ask(&[&["show", "--no-all-versions"], packages].concat())
        .context("asking apt for versions (package lists missing? apt-get update)")?;
    let field =
        |line: &str, name: &str| line.strip_prefix(name).map(|value| value.trim().to_owned());
    let mut found = BTreeMap::new();
    let mut name = None;
    for line in shown.lines() {
        if let Some(package) = field(line, "Package:") {
            name = Some(package);
        } else if let (Some(version), Some(package)) = (field(line, "Version:"), &name) {
            found.insert(package.clone(), version);
        }
    }
    match packages.iter().find(|package| !found.contains_key(**package)) {
        Some(package) => bail!("apt knows no package {package} (run apt-get update)"),
        None => Ok(found),
    }
}

/// The package with the kernel itself, which the empty package `meta` depends on.
pub(crate) fn kernel_package(meta: &str) -> Result<String> {
    let listed = ask(&["depends", "--important", meta])?;
    listed
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with("linux-image-"))
        .map(str::to_owned)
        .with_context(|| format!("{meta} depends on no kernel (run apt-get update)"))
}

/// The answer of apt-cache. It takes apt a second, more than a whole task whose product is there, so an answer is kept
/// for as long as the host's package lists, sources and preferences are what they were.
fn ask(question: &[&str]) -> Result<String> {
    let mut basis = question.join(" ");
    for folder in
        ["/var/lib/apt/lists", "/etc/apt", "/etc/apt/sources.list.d", "/etc/apt/preferences.d"]
    {
        basis += &listing(Path::new(folder));
    }
    let kept = cache::folder("apt/answers")?.join(Key::of([basis.as_str()]).to_string());
    if let Ok(answer) = fs::read_to_string(&kept) {
        return Ok(answer);
    }
    let answer = output(tool("apt-cache", QUERY).args(question))?;
    let arriving = kept.with_extension(std::process::id().to_string());
    fs::write(&arriving, &answer)
        .and_then(|()| fs::rename(&arriving, &kept))
        .with_context(|| format!("writing {}", kept.display()))?;
    Ok(answer)
}

/// Names, sizes and times of a folder's files as text; empty for one that is not there.
fn listing(folder: &Path) -> String {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut lines: Vec<String> = entries
        .filter_map(|entry| {
            let facts = entry.metadata().ok().filter(fs::Metadata::is_file)?;
            Some(format!("{:?} {} {:?}\n", entry.path(), facts.len(), facts.modified().ok()?))
        })
        .collect();
    lines.sort();
    lines.concat()
}

/// Sources entries of `kind` (deb or deb-src) for Debian 12 and its security fixes, with the host's own mirrors.
pub(crate) fn source_entries(kind: &str) -> Result<String> {
    let script = cache::checkout().join("scripts/apt-entry");
    let entry = |suite| output(tool(&script.to_string_lossy(), QUERY).args([kind, suite]));
    let release = entry("bookworm")?;
    // A machine without the security suite builds from the release alone.
    Ok(entry("bookworm-security").map_or(release.clone(), |fixes| format!("{release}\n{fixes}")))
}

/// The sources entry of bookworm-backports, with the host's own mirror.
pub(crate) fn backports_entry() -> Result<String> {
    let script = cache::checkout().join("scripts/apt-entry");
    let words = ["deb", "bookworm", "bookworm-backports"];
    output(tool(&script.to_string_lossy(), QUERY).args(words))
}

/// Unpacks `package` in `version` below `folder`, downloading it when the cache has it not.
pub(crate) fn unpack(package: &str, version: &str, folder: &Path) -> Result<()> {
    let file = deb(package, version)?;
    perform(tool("dpkg-deb", UNPACK).arg("--extract").arg(&file).arg(folder))
}

fn deb(package: &str, version: &str) -> Result<PathBuf> {
    let debs = cache::folder("debs")?;
    // apt writes the colon of an epoch as %3a.
    let start = format!("{package}_{}_", version.replace(':', "%3a"));
    let find = || -> Result<Option<PathBuf>> {
        let mut names = fs::read_dir(&debs).context("reading .cache/debs")?.filter_map(Result::ok);
        let found = names.find(|entry| {
            let name = entry.file_name();
            name.to_str().is_some_and(|name| name.starts_with(&start) && name.ends_with(".deb"))
        });
        Ok(found.map(|entry| entry.path()))
    };
    if let Some(path) = find()? {
        return Ok(path);
    }
    let wanted = format!("{package}={version}");
    // In a folder of its own, since apt writes under the final name from the first byte on.
    let arriving = debs.join(format!(".{}", std::process::id()));
    fs::create_dir_all(&arriving).with_context(|| format!("making {}", arriving.display()))?;
    let result = download(&wanted, &arriving, &debs);
    fs::remove_dir_all(&arriving).with_context(|| format!("removing {}", arriving.display()))?;
    result?;
    find()?.with_context(|| format!("apt-get download {wanted} left no file"))
}

fn download(wanted: &str, arriving: &Path, debs: &Path) -> Result<()> {
    // Root needs no other user for it here: apt verifies the hash either way.
    perform(
        tool("apt-get", DOWNLOAD)
            .args(["-qq", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3"])
            .args(["download", wanted])
            .current_dir(arriving),
    )?;
    for entry in fs::read_dir(arriving).context("reading what apt downloaded")? {
        let entry = entry.context("reading what apt downloaded")?;
        fs::rename(entry.path(), debs.join(entry.file_name())).context("keeping a download")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// What scripts/apt-entry prints on a machine whose /etc/apt has one `file` with this text.
    fn entry(file: &str, text: &str, arguments: &[&str]) -> Option<String> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let etc = std::env::temp_dir().join(format!("apt-entry-{}-{count}", std::process::id()));
        let path = etc.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        let script = cache::checkout().join("scripts/apt-entry");
        let output = Command::new(script).args(arguments).env("APT_ETC", &etc).output().unwrap();
        fs::remove_dir_all(&etc).unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    const BACKPORTS: [&str; 3] = ["deb", "bookworm", "bookworm-backports"];

    #[test]
    fn an_entry_of_one_line_is_copied_with_its_options() {
        let line = "# mirror of the house\ndeb [arch=amd64 signed-by=/k.gpg] http://m/d bookworm main contrib\n";
        assert_eq!(
            entry("sources.list", line, &BACKPORTS).unwrap(),
            "Types: deb\nSuites: bookworm-backports\nComponents: main\nURIs: http://m/d\n\
             Architectures: amd64\nSigned-By: /k.gpg\n"
        );
    }

    #[test]
    fn a_stanza_is_copied_with_a_key_of_several_lines() {
        let stanzas = "Types: deb\nURIs: http://other/\nSuites: trixie\nComponents: main\n\n\
             Types: deb deb-src\n# a remark\nURIs: http://m/d\nSuites: bookworm bookworm-updates\n\
             Components: main\nSigned-By:\n -----BEGIN KEY-----\n .\n abc\n";
        assert_eq!(
            entry("sources.list.d/debian.sources", stanzas, &["deb-src", "bookworm"]).unwrap(),
            "Types: deb-src\nSuites: bookworm\nComponents: main\nURIs: http://m/d\n\
             Signed-By:\n -----BEGIN KEY-----\n .\n abc\n"
        );
    }

    #[test]
    fn disabled_and_foreign_entries_are_not_copied() {
        let disabled =
            "Enabled: no\nTypes: deb\nURIs: http://m/d\nSuites: bookworm\nComponents: main\n";
        assert_eq!(entry("sources.list.d/debian.sources", disabled, &BACKPORTS), None);
        let foreign = "deb http://m/tool bookworm stable\n#deb http://m/d bookworm main\n";
        assert_eq!(entry("sources.list.d/tool.list", foreign, &BACKPORTS), None);
    }
}
