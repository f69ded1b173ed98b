//! An initramfs: a cpio archive in the `newc` format, made in memory.
//!
//! Everything belongs to root and has no date, so that the same input gives the same bytes and no privilege is needed for
//! the console's device node.

use std::collections::BTreeSet;

/// An archive under construction. Folders are made as the files below them need them.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    entries: u32,
}

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

impl Archive {
    pub(crate) fn folder(&mut self, path: &str) {
        if path.is_empty() || !self.folders.insert(path.to_owned()) {
            return;
        }
        self.folder_of(path);
        self.entry(path, FOLDER, (0, 0), b"");
    }

    /// A file, executable by all: what an initramfs holds is mostly programs.
    pub(crate) fn file(&mut self, path: &str, content: &[u8]) {
        self.folder_of(path);
        self.entry(path, PROGRAM, (0, 0), content);
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.folder_of(path);
        self.entry(path, LINK, (0, 0), target.as_bytes());
    }

    pub(crate) fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.folder_of(path);
        self.entry(path, CHARACTER_DEVICE, (major, minor), b"");
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), b"");
        self.bytes
    }

    fn folder_of(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent);
        }
    }

    /// Thirteen numbers of eight hexadecimal digits, the name with its NUL, the content; both padded to four bytes.
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let size = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let [inode, owner, group, links, date, checksum] = [self.entries, 0, 0, 1, 0, 0];
        let numbers = [
            inode,
            mode,
            owner,
            group,
            links,
            date,
            size(content.len()),
            0,
            0,
            device.0,
            device.1,
            size(name.len() + 1),
            checksum,
        ];
        self.bytes.extend_from_slice(b"070701");
        for number in numbers {
            self.bytes.extend_from_slice(format!("{number:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn cpio_lists_what_was_put_in_with_its_folders() {
        let mut archive = Archive::default();
        archive.file("a/b/init", b"#!/bin/sh\n");
        archive.link("a/link", "b/init");
        archive.character_device("dev/console", 5, 1);
        let bytes = archive.finish();
        let mut cpio = Command::new("cpio")
            .args(["--list", "--verbose", "--numeric-uid-gid", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        cpio.stdin.take().unwrap().write_all(&bytes).unwrap();
        let listed = String::from_utf8(cpio.wait_with_output().unwrap().stdout).unwrap();
        let lines: Vec<&str> = listed.lines().collect();
        assert_eq!(lines.len(), 6, "{listed}");
        for (line, (start, end)) in lines.iter().zip([
            ("drwxr-xr-x", "a"),
            ("drwxr-xr-x", "a/b"),
            ("-rwxr-xr-x", "a/b/init"),
            ("lrwxrwxrwx", "a/link -> b/init"),
            ("drwxr-xr-x", "dev"),
            ("crw-------", "dev/console"),
        ]) {
            assert!(line.starts_with(start) && line.ends_with(end), "{listed}");
        }
        assert!(lines[5].contains("5,") && lines[2].contains(" 10 "), "{listed}");
    }
}
