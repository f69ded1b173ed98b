//! A Debian kernel as material for an initramfs: its image, and modules with what they depend on.
//!
//! Dependencies are read from the modules themselves (`depends=` in their `.modinfo`), so that no `depmod` has to walk
//! four thousand of them. What a module needs without saying so there (a checksum asked for by name) is the caller's to
//! list.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::cpio::Archive;

/// The kernel in an unpacked package or a root tree.
pub(crate) struct Kernel {
    pub(crate) release: String,
    pub(crate) image: Vec<u8>,
    modules: BTreeMap<String, PathBuf>,
    root: PathBuf,
}

impl Kernel {
    pub(crate) fn find(root: &Path) -> Result<Self> {
        let folder = root.join("lib/modules");
        let mut releases = fs::read_dir(&folder)
            .with_context(|| format!("reading {}", folder.display()))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let release = releases.next().context("the kernel package holds no modules")?;
        ensure!(releases.next().is_none(), "more than one kernel below {}", folder.display());
        let image_path = root.join(format!("boot/vmlinuz-{release}"));
        let image =
            fs::read(&image_path).with_context(|| format!("reading {}", image_path.display()))?;
        let mut modules = BTreeMap::new();
        collect(&folder.join(&release).join("kernel"), &mut modules)?;
        Ok(Self { release, image, modules, root: root.to_owned() })
    }

    /// Puts the wanted modules and all they depend on into `archive`, with the table modprobe reads.
    pub(crate) fn add_modules(&self, wanted: &[&str], archive: &mut Archive) -> Result<()> {
        let mut table = BTreeMap::new();
        for name in wanted {
            self.add_module(name, archive, &mut table)?;
        }
        let lines: String = table
            .values()
            .map(|module| format!("{}:{}\n", module.path, module.needs.concat()))
            .collect();
        archive.file(&format!("lib/modules/{}/modules.dep", self.release), lines.as_bytes());
        Ok(())
    }

    fn add_module(
        &self,
        name: &str,
        archive: &mut Archive,
        table: &mut BTreeMap<String, Module>,
    ) -> Result<()> {
        if table.contains_key(name) {
            return Ok(());
        }
        let path = self
            .modules
            .get(name)
            .with_context(|| format!("kernel {} has no module {name}", self.release))?;
        let content = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let mut needs = Vec::new();
        for needed in dependencies(&content) {
            self.add_module(&needed, archive, table)?;
            // modprobe loads from right to left: nearest first, then what that one needs.
            let module = &table[&needed];
            needs.push(format!(" {}", module.path));
            needs.extend(module.needs.iter().cloned());
        }
        let inside = path.strip_prefix(&self.root)?.to_string_lossy().into_owned();
        archive.file(&inside, &content);
        let below = inside.trim_start_matches(&format!("lib/modules/{}/", self.release)).to_owned();
        table.insert(name.to_owned(), Module { path: below, needs });
        Ok(())
    }
}

/// One line of modules.dep.
struct Module {
    path: String,
    needs: Vec<String>,
}

/// All modules below `folder` by name; a name has underscores where its file may have hyphens.
fn collect(folder: &Path, modules: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let reading = || format!("reading {}", folder.display());
    for entry in fs::read_dir(folder).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        if path.is_dir() {
            collect(&path, modules)?;
        } else if path.extension().is_some_and(|extension| extension == "ko")
            && let Some(stem) = path.file_stem().and_then(|stem| stem.to_str())
        {
            modules.insert(stem.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn dependencies(module: &[u8]) -> Vec<String> {
    const MARK: &[u8] = b"\0depends=";
    let Some(at) = module.windows(MARK.len()).position(|window| window == MARK) else {
        return Vec::new();
    };
    let list = module[at + MARK.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    let list = String::from_utf8_lossy(list);
    list.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        assert_eq!(dependencies(b"x\0depends=mptbase,scsi-mod\0name=y"), ["mptbase", "scsi_mod"]);
        assert!(dependencies(b"x\0depends=\0name=y").is_empty());
        assert!(dependencies(b"no module at all").is_empty());
    }
}
