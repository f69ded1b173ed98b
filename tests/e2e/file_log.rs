//! A file system that remembers all that was done to it, and so can tell what a power cut would leave at any moment: what was
//! synced, and of the rest as much or as little as the test says. It promises what POSIX does and no more: a file's content
//! counts once the file was synced, and a name once its folder was.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::fuse::{
    Attributes, EEXIST, ENOENT, ENOSYS, ENOTEMPTY, ROOT, Reply, Request, Served, long, number,
    opcode, opened, words,
};

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
/// What of a mode is no kind.
const RIGHTS: u32 = 0o7777;
/// More room than anybody here needs, in blocks.
const ROOM: u64 = 1 << 20;

/// Something that was done.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// It is there and has no name yet.
    Made(u64, Node),
    /// What was given or taken in a folder at once: a renaming is two.
    Named(u64, Vec<(Name, Option<u64>)>),
    Wrote(u64, usize, Vec<u8>),
    Sized(u64, usize),
    Moded(u64, u32),
    Owned(u64, [u32; 2]),
    /// Of a file its content, of a folder its names.
    Synced(u64),
}

pub(crate) type Name = Vec<u8>;

#[derive(Clone, Debug)]
pub(crate) struct Node {
    content: Content,
    rights: u32,
    owner: [u32; 2],
}

#[derive(Clone, Debug)]
enum Content {
    Folder(BTreeMap<Name, u64>),
    File(Vec<u8>),
    Link(Vec<u8>),
}

/// What of a node was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsynced {
    Names,
    Content,
}

/// All nodes, with a name or without.
#[derive(Clone, Debug)]
pub(crate) struct Tree(BTreeMap<u64, Node>);

impl Tree {
    fn new() -> Tree {
        let folder = Content::Folder(BTreeMap::new());
        Tree(BTreeMap::from([(ROOT, Node { content: folder, rights: 0o755, owner: [0, 0] })]))
    }

    /// What a power cut after these events leaves. `kept` says of a node how many of so many things that were done to it, and
    /// not synced, are there all the same: the first of them.
    pub(crate) fn after_cut(
        events: &[Event],
        mut kept: impl FnMut(Unsynced, usize) -> usize,
    ) -> Tree {
        let mut tree = Tree::new();
        let mut unsynced: BTreeMap<u64, Vec<&Event>> = BTreeMap::new();
        for event in events {
            match event {
                Event::Synced(node) => {
                    unsynced.remove(node).iter().flatten().for_each(|event| tree.apply(event));
                }
                Event::Named(node, _) | Event::Wrote(node, ..) | Event::Sized(node, _) => {
                    unsynced.entry(*node).or_default().push(event);
                }
                Event::Made(..) | Event::Moded(..) | Event::Owned(..) => tree.apply(event),
            }
        }
        for (node, events) in unsynced {
            let what = match tree.0[&node].content {
                Content::Folder(_) => Unsynced::Names,
                _ => Unsynced::Content,
            };
            let kept = kept(what, events.len());
            events.iter().take(kept).for_each(|event| tree.apply(event));
        }
        tree
    }

    fn apply(&mut self, event: &Event) {
        match event {
            Event::Made(node, made) => drop(self.0.insert(*node, made.clone())),
            Event::Named(folder, names) => {
                for (name, node) in names {
                    let there = self.names(*folder);
                    match node {
                        Some(node) => drop(there.insert(name.clone(), *node)),
                        None => drop(there.remove(name)),
                    }
                }
            }
            Event::Wrote(node, at, bytes) => {
                let file = self.file(*node);
                let end = at + bytes.len();
                file.resize(file.len().max(end), 0);
                file[*at..end].copy_from_slice(bytes);
            }
            Event::Sized(node, length) => self.file(*node).resize(*length, 0),
            Event::Moded(node, rights) => self.node(*node).rights = *rights,
            Event::Owned(node, owner) => self.node(*node).owner = *owner,
            Event::Synced(_) => {}
        }
    }

    /// The kernel asks about none that it was not told of.
    fn node(&mut self, node: u64) -> &mut Node {
        self.0.get_mut(&node).expect("a node")
    }

    fn names(&mut self, folder: u64) -> &mut BTreeMap<Name, u64> {
        match &mut self.node(folder).content {
            Content::Folder(names) => names,
            _ => panic!("{folder} is no folder"),
        }
    }

    fn file(&mut self, node: u64) -> &mut Vec<u8> {
        match &mut self.node(node).content {
            Content::File(bytes) => bytes,
            _ => panic!("{node} is no file"),
        }
    }

    fn attributes(&self, node: u64) -> Attributes {
        let Node { content, rights, owner } = &self.0[&node];
        let (kind, size) = match content {
            Content::Folder(_) => (FOLDER, 0),
            Content::File(bytes) => (FILE, bytes.len()),
            Content::Link(target) => (LINK, target.len()),
        };
        let folders = self.0.values().filter_map(|node| match &node.content {
            Content::Folder(names) => Some(names),
            _ => None,
        });
        let names = folders.flat_map(BTreeMap::values).filter(|named| **named == node).count();
        let (size, names) = (u64::try_from(size), u32::try_from(names));
        Attributes {
            node,
            size: size.expect("a short file"),
            mode: kind | rights,
            names: names.expect("few names"),
            owner: *owner,
        }
    }

    /// Makes all that has a name, below a folder, but files that `is_left_out`.
    pub(crate) fn write_below(&self, folder: &Path, is_left_out: &impl Fn(&[u8]) -> bool) {
        self.write(ROOT, folder, is_left_out);
    }

    fn write(&self, node: u64, path: &Path, is_left_out: &impl Fn(&[u8]) -> bool) {
        let Node { content, rights, .. } = &self.0[&node];
        match content {
            Content::Link(target) => {
                return symlink(std::ffi::OsStr::from_bytes(target), path).expect("a link");
            }
            Content::File(bytes) => fs::write(path, bytes).expect("a file"),
            Content::Folder(names) => {
                fs::create_dir(path).expect("a folder");
                for (name, node) in names.iter().filter(|(name, _)| !is_left_out(name)) {
                    let path = path.join(std::ffi::OsStr::from_bytes(name));
                    self.write(*node, &path, is_left_out);
                }
            }
        }
        fs::set_permissions(path, Permissions::from_mode(*rights)).expect("its mode");
    }

    /// All that has a name, as a text that two of the same content share.
    pub(crate) fn image(&self, is_left_out: &impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut image = Vec::new();
        self.add_to(&mut image, ROOT, is_left_out);
        image
    }

    fn add_to(&self, image: &mut Vec<u8>, node: u64, is_left_out: &impl Fn(&[u8]) -> bool) {
        let mut add = |kind: u8, bytes: &[u8]| {
            image.push(kind);
            image.extend(bytes.len().to_le_bytes());
            image.extend(bytes);
        };
        match &self.0[&node].content {
            Content::Link(target) => add(b'l', target),
            Content::File(bytes) => add(b'f', bytes),
            Content::Folder(names) => {
                for (name, node) in names.iter().filter(|(name, _)| !is_left_out(name)) {
                    image.push(b'n');
                    image.extend(name);
                    image.push(0);
                    self.add_to(image, *node, is_left_out);
                }
                image.push(b'e');
            }
        }
    }
}

/// A folder that is such a file system.
pub(crate) struct FileLog {
    _served: Served,
    log: Arc<Mutex<Log>>,
}

impl FileLog {
    pub(crate) fn over(folder: &Path) -> FileLog {
        let log = Arc::new(Mutex::new(Log { events: Vec::new(), now: Tree::new() }));
        let ours = Arc::clone(&log);
        let served = Served::over(folder, move |request| {
            locked(&ours).answer(request).unwrap_or_else(Reply::Error)
        });
        FileLog { _served: served, log }
    }

    /// All that was done so far.
    pub(crate) fn events(&self) -> Vec<Event> {
        locked(&self.log).events.clone()
    }

    pub(crate) fn events_count(&self) -> usize {
        locked(&self.log).events.len()
    }
}

fn locked(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().expect("the server lives")
}

struct Log {
    events: Vec<Event>,
    now: Tree,
}

impl Log {
    fn did(&mut self, event: Event) {
        self.now.apply(&event);
        self.events.push(event);
    }

    fn answer(&mut self, request: &Request<'_>) -> Result<Reply, i32> {
        let Request { asked, node, body } = *request;
        Ok(Reply::With(match asked {
            opcode::GETATTR => self.now.attributes(node).answer(),
            opcode::SETATTR => {
                self.set_attributes(node, body);
                self.now.attributes(node).answer()
            }
            opcode::LOOKUP
            | opcode::LINK
            | opcode::UNLINK
            | opcode::RMDIR
            | opcode::RENAME
            | opcode::RENAME2 => self.answer_of_names(request)?,
            opcode::SYMLINK | opcode::MKDIR | opcode::CREATE => self.made(request)?,
            opcode::READLINK => match &self.now.node(node).content {
                Content::Link(target) => target.clone(),
                _ => return Err(ENOENT),
            },
            opcode::OPEN | opcode::OPENDIR => opened(),
            opcode::READ => self.read(node, length(long(body, 8)), number(body, 16) as usize),
            opcode::READDIR => self.listed(node, length(long(body, 8)), number(body, 16) as usize),
            opcode::WRITE => {
                let (at, size) = (length(long(body, 8)), number(body, 16));
                let bytes = body[40..40 + size as usize].to_vec();
                self.did(Event::Wrote(node, at, bytes));
                words(&[size, 0])
            }
            opcode::FSYNC | opcode::FSYNCDIR => {
                self.did(Event::Synced(node));
                Vec::new()
            }
            opcode::STATFS => {
                let counts = [ROOM; 5].map(u64::to_le_bytes).concat();
                [counts, words(&[4096, 255, 4096, 0, 0, 0, 0, 0, 0, 0])].concat()
            }
            opcode::RELEASE | opcode::RELEASEDIR | opcode::FLUSH => Vec::new(),
            opcode::INTERRUPT => return Ok(Reply::Never),
            _ => return Err(ENOSYS),
        }))
    }

    /// What looks for, gives, takes or changes a name in a folder.
    fn answer_of_names(&mut self, request: &Request<'_>) -> Result<Vec<u8>, i32> {
        let Request { asked, node: folder, body } = *request;
        match asked {
            opcode::LOOKUP => {
                let found = self.named(folder, name_in(body, 0))?;
                Ok(self.now.attributes(found).entry())
            }
            opcode::LINK => {
                let (other, name) = (long(body, 0), name_in(body, 8));
                self.must_be_free(folder, name)?;
                self.did(Event::Named(folder, vec![(name.to_vec(), Some(other))]));
                Ok(self.now.attributes(other).entry())
            }
            opcode::UNLINK | opcode::RMDIR => {
                let name = name_in(body, 0);
                let gone = self.named(folder, name)?;
                if matches!(&self.now.node(gone).content, Content::Folder(n) if !n.is_empty()) {
                    return Err(ENOTEMPTY);
                }
                self.did(Event::Named(folder, vec![(name.to_vec(), None)]));
                Ok(Vec::new())
            }
            opcode::RENAME => self.rename(folder, long(body, 0), &body[8..]),
            // Only where the name is free; nobody here exchanges two names.
            opcode::RENAME2 if number(body, 8) == 1 => {
                let names = &body[16..];
                let new = name_in(names, name_in(names, 0).len() + 1);
                self.must_be_free(long(body, 0), new)?;
                self.rename(folder, long(body, 0), names)
            }
            _ => Err(ENOSYS),
        }
    }

    /// A new link, folder or file; that one is opened at once.
    fn made(&mut self, request: &Request<'_>) -> Result<Vec<u8>, i32> {
        let Request { asked, node: folder, body } = *request;
        let (name, mode, content) = match asked {
            opcode::SYMLINK => {
                let name = name_in(body, 0);
                let target = name_in(body, name.len() + 1).to_vec();
                (name, 0o777, Content::Link(target))
            }
            opcode::MKDIR => (name_in(body, 8), number(body, 0), Content::Folder(BTreeMap::new())),
            _ => (name_in(body, 16), number(body, 4), Content::File(Vec::new())),
        };
        let made = self.make(folder, name, content, mode)?;
        let entry = self.now.attributes(made).entry();
        Ok(if asked == opcode::CREATE { [entry, opened()].concat() } else { entry })
    }

    fn read(&mut self, node: u64, at: usize, size: usize) -> Vec<u8> {
        let file = self.now.file(node);
        let at = at.min(file.len());
        file[at..file.len().min(at + size)].to_vec()
    }

    fn named(&mut self, folder: u64, name: &[u8]) -> Result<u64, i32> {
        self.now.names(folder).get(name).copied().ok_or(ENOENT)
    }

    fn must_be_free(&mut self, folder: u64, name: &[u8]) -> Result<(), i32> {
        self.named(folder, name).map_or(Ok(()), |_| Err(EEXIST))
    }

    fn make(&mut self, at: u64, name: &[u8], content: Content, mode: u32) -> Result<u64, i32> {
        self.must_be_free(at, name)?;
        let node = self.now.0.last_key_value().map_or(ROOT, |(last, _)| last + 1);
        let made = Node { content, rights: mode & RIGHTS, owner: [0, 0] };
        self.did(Event::Made(node, made));
        self.did(Event::Named(at, vec![(name.to_vec(), Some(node))]));
        Ok(node)
    }

    fn rename(&mut self, from: u64, to: u64, names: &[u8]) -> Result<Vec<u8>, i32> {
        let old = name_in(names, 0).to_vec();
        let new = name_in(names, old.len() + 1).to_vec();
        let node = self.named(from, &old)?;
        if from == to {
            self.did(Event::Named(from, vec![(old, None), (new, Some(node))]));
        } else {
            self.did(Event::Named(to, vec![(new, Some(node))]));
            self.did(Event::Named(from, vec![(old, None)]));
        }
        Ok(Vec::new())
    }

    /// Which of mode, user, group and size are given stands before them all.
    fn set_attributes(&mut self, node: u64, body: &[u8]) {
        let given = number(body, 0);
        if given & 1 != 0 {
            self.did(Event::Moded(node, number(body, 68) & RIGHTS));
        }
        if given & 0b110 != 0 {
            let [user, group] = self.now.node(node).owner;
            let user = if given & 0b10 != 0 { number(body, 76) } else { user };
            let group = if given & 0b100 != 0 { number(body, 80) } else { group };
            self.did(Event::Owned(node, [user, group]));
        }
        if given & 0b1000 != 0 {
            self.did(Event::Sized(node, length(long(body, 16))));
        }
    }

    /// The names of a folder behind so many: node, which one the next is, the name's length, what kind of file, the name.
    fn listed(&mut self, folder: u64, behind: usize, room: usize) -> Vec<u8> {
        let names: Vec<_> = self.now.names(folder).clone().into_iter().collect();
        let mut listed = Vec::new();
        for (place, (name, node)) in names.iter().enumerate().skip(behind) {
            let kind = self.now.attributes(*node).mode >> 12;
            let next = u64::try_from(place + 1).expect("few names");
            let length = u32::try_from(name.len()).expect("a short name");
            let mut entry = [node.to_le_bytes(), next.to_le_bytes()].concat();
            entry.extend(words(&[length, kind]));
            entry.extend(name);
            entry.resize(entry.len().next_multiple_of(8), 0);
            if listed.len() + entry.len() > room {
                break;
            }
            listed.extend(entry);
        }
        listed
    }
}

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).expect("within memory")
}

/// What begins there and ends with a zero.
fn name_in(body: &[u8], at: usize) -> &[u8] {
    body[at..].split(|byte| *byte == 0).next().unwrap_or_default()
}
