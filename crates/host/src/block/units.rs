//! What systemd mounts and swaps on when it starts: mount, automount and swap units that an administrator enabled.
//!
//! Called by `expected`. A unit is enabled when a target of /etc/systemd/system wants or requires it (systemctl(1), `enable`). Its
//! text is in that folder, or where the link of the target leads, with what drop-ins beside it change (systemd.unit(5),
//! systemd.mount(5), systemd.swap(5)). Units that only others depend on, or that a generator makes, are not looked for: those
//! made of /etc/fstab and /etc/crypttab say what these say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::expected::{Line, Purpose, named, table};
use super::sysfs;

/// More than any host has, of units and of what changes one of them.
const UNITS_MAX: usize = 4096;
const DROP_INS_MAX: usize = 64;

/// The enabled units by name, each with its text.
pub(super) fn enabled(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut units = BTreeMap::new();
    for target in sysfs::entries(folder) {
        if !target.ends_with(".wants") && !target.ends_with(".requires") {
            continue;
        }
        let target = folder.join(target);
        for link in sysfs::entries(&target) {
            if let Some(name) = unit(&link).filter(|_| units.len() < UNITS_MAX) {
                units.insert(name, target.join(link));
            }
        }
    }
    let with_text = |(name, link): (String, PathBuf)| {
        let text = text(folder, &name, &link)?;
        Some((name, text))
    };
    units.into_iter().filter_map(with_text).collect()
}

/// The unit that is mounted or swapped on when this one is started.
fn unit(name: &str) -> Option<String> {
    match name.rsplit_once('.')? {
        (_, "mount" | "swap") => Some(name.to_owned()),
        (mount, "automount") => Some(format!("{mount}.mount")),
        _ => None,
    }
}

/// The administrator's own text, or the one beside what the link leads to, with its drop-ins behind it. A unit that is masked, which
/// is a link to /dev/null, has none.
fn text(folder: &Path, name: &str, link: &Path) -> Option<Vec<u8>> {
    let own = folder.join(name);
    let place = match own.symlink_metadata() {
        Ok(_) => own,
        Err(_) => link.canonicalize().ok()?.parent()?.join(name),
    };
    let mut text = table(&place)?;
    let drop_ins = folder.join(format!("{name}.d"));
    let names = sysfs::entries(&drop_ins).into_iter().filter(|name| name.ends_with(".conf"));
    for drop_in in names.take(DROP_INS_MAX) {
        text.push(b'\n');
        text.extend(table(&drop_ins.join(drop_in)).unwrap_or_default());
    }
    Some(text)
}

/// What a unit's text says; `None` where it names no device.
pub(super) fn line(text: &[u8]) -> Option<Line> {
    let text = String::from_utf8_lossy(text).replace("\\\n", " ");
    let (mut what, mut at, mut kind, mut options, mut section) = (None, "", "", "", "");
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name;
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        match (section, key.trim_end()) {
            ("Mount" | "Swap", "What") => what = Some((section, value.trim())),
            ("Mount", "Where") => at = value.trim(),
            ("Mount", "Type") => kind = value.trim(),
            ("Mount", "Options") => options = value.trim(),
            _ => {}
        }
    }
    let (section, what) = what?;
    // As in /etc/fstab: what begins with two slashes is on a server, and what a bind mount shows is a folder.
    let is_bind = |option: &str| matches!(option, "bind" | "rbind");
    let options = || options.split(',').map(str::trim);
    if what.starts_with("//") || options().any(is_bind) {
        return None;
    }
    let purpose = match section {
        "Swap" => Purpose::Swap,
        _ => Purpose::mount(plain(at)?.into(), kind.as_bytes(), options().map(str::as_bytes)),
    };
    Some(Line { named: named(Path::new(&plain(what)?))?, purpose })
}

/// A value without specifiers, of which only that for the sign itself is known here (systemd.unit(5), 'SPECIFIERS').
fn plain(value: &str) -> Option<String> {
    let parts: Vec<&str> = value.split("%%").collect();
    parts.iter().all(|part| !part.contains('%')).then(|| parts.join("%"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;

    fn one(text: &str) -> Option<(String, Purpose)> {
        let Line { named, purpose } = line(text.as_bytes())?;
        Some((named.path().display().to_string(), purpose))
    }

    #[test]
    fn a_unit_names_one_device() {
        let at = |path: &str| Purpose::Mount(path.into());
        for (text, expected) in [
            (
                "[Unit]\nWhat=/dev/no\n[Mount]\n What = /dev/sdb1 \nWhere=/srv/a\\\n b\n",
                Some(("/dev/sdb1", at("/srv/a  b"))),
            ),
            (
                "[Mount]\n#What=/dev/no\nWhat=LABEL=my disk\nWhere=/x",
                Some((r"/dev/disk/by-label/my\x20disk", at("/x"))),
            ),
            ("[Swap]\nWhat=UUID=1-a\n", Some(("/dev/disk/by-uuid/1-a", Purpose::Swap))),
            (
                "[Mount]\nWhat=/dev/sdb1\nWhere=/100%%\n[Mount]\nWhat=/dev/sdc1",
                Some(("/dev/sdc1", at("/100%"))),
            ),
            ("[Mount]\nWhat=/dev/disk/%i\nWhere=/x", None),
            ("[Mount]\nWhat=/srv/a\nWhere=/x\nOptions=ro,bind", None),
            ("[Mount]\nWhat=//server/x\nWhere=/x", None),
            ("[Mount]\nWhat=server:/x\nWhere=/x", None),
            ("[Mount]\nWhere=/x", None),
            ("What=/dev/sdb1", None),
            ("", None),
        ] {
            let expected = expected.map(|(path, purpose)| (path.to_owned(), purpose));
            assert_eq!(one(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_enabled_is_read_where_systemd_reads_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let (etc, lib) = (folder.path().join("etc"), folder.path().join("lib"));
        for made in ["local.target.wants", "all.target.requires", "own.mount.d", "odd"] {
            fs::create_dir_all(etc.join(made)).expect("made");
        }
        fs::create_dir(&lib).expect("made");
        for name in [
            "own.mount",
            "shipped.mount",
            "later.mount",
            "later.automount",
            "idle.mount",
            "off.swap",
        ] {
            fs::write(lib.join(name), format!("shipped {name}")).expect("written");
        }
        fs::write(etc.join("own.mount"), "own").expect("written");
        for (name, text) in [("2.conf", "second"), ("1.conf", "first"), ("x", "neither")] {
            fs::write(etc.join("own.mount.d").join(name), text).expect("written");
        }
        symlink("/dev/null", etc.join("off.swap")).expect("masked");
        for (target, name) in [
            ("local.target.wants", "own.mount"),
            ("local.target.wants", "shipped.mount"),
            ("all.target.requires", "shipped.mount"),
            ("all.target.requires", "later.automount"),
            ("all.target.requires", "off.swap"),
            ("all.target.requires", "gone.mount"),
            ("odd", "idle.mount"),
        ] {
            symlink(lib.join(name), etc.join(target).join(name)).expect("enabled");
        }
        let found: Vec<(String, String)> = enabled(&etc)
            .into_iter()
            .map(|(name, text)| (name, String::from_utf8(text).expect("text")))
            .collect();
        let expected = [
            ("later.mount", "shipped later.mount"),
            ("own.mount", "own\nfirst\nsecond"),
            ("shipped.mount", "shipped shipped.mount"),
        ];
        assert_eq!(found, expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
        assert_eq!(enabled(&folder.path().join("none")), []);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn nonsense_is_no_panic(text in "(\\[|\\]|Mount|Swap|What|Where|=|%|/|\\n|\\\\|[ -~]){0,40}") {
            line(text.as_bytes());
        }
    }
}
