//! Descriptor sets and block nodes.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{fstat, ftruncate};
use serde_json::{Value, json};

use super::{Answer, Arguments, Machine, Refusal, done};

/// The set of what was opened without one.
const NO_SET: i64 = -1;

/// A set stays while it has descriptors or a node was opened from it.
#[derive(Debug, Default)]
pub(super) struct FdSet {
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    fd: OwnedFd,
    opaque: Option<String>,
}

#[derive(Debug)]
pub(super) struct Node {
    pub name: String,
    driver: String,
    filename: String,
    pub read_only: bool,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// A descriptor of the node's own, from this set.
    File { set: i64, fd: OwnedFd },
    /// Another node.
    Node(String),
}

impl Machine {
    pub(super) fn add_fd(&mut self, arguments: &Arguments, fd: Option<OwnedFd>) -> Answer {
        let fd =
            fd.ok_or_else(|| Refusal::generic("No file descriptor supplied via SCM_RIGHTS"))?;
        let set = arguments.number("fdset-id");
        let opaque = arguments.optional_text("opaque").map(str::to_owned);
        let (set, number) = self.put_fd(set, opaque, fd);
        Ok(json!({ "fd": number, "fdset-id": set }))
    }

    pub(in crate::fake) fn put_fd(
        &mut self,
        set: Option<i64>,
        opaque: Option<String>,
        fd: OwnedFd,
    ) -> (i64, i32) {
        let free = || (0..).find(|id| !self.fdsets.contains_key(id)).unwrap_or_default();
        let set = set.unwrap_or_else(free);
        let number = fd.as_raw_fd();
        self.fdsets.entry(set).or_default().members.push(Member { fd, opaque });
        (set, number)
    }

    /// A copy of a set's descriptor.
    pub(in crate::fake) fn duplicate_fd(&self, set: i64) -> Option<OwnedFd> {
        self.fdsets.get(&set)?.members.first()?.fd.try_clone().ok()
    }

    pub(super) fn remove_fd(&mut self, arguments: &Arguments) -> Answer {
        let id = arguments.number("fdset-id").unwrap_or(-1);
        match self.fdsets.get_mut(&id) {
            Some(set) => set.members.clear(),
            None => {
                let text = format!("File descriptor named 'fdset-id:{id}' not found");
                return Err(Refusal::generic(text));
            }
        }
        self.forget_empty_sets();
        done()
    }

    pub(super) fn query_fdsets(&self) -> Value {
        let sets = self.fdsets.iter().rev().map(|(id, set)| {
            let fds = set.members.iter().map(|member| match &member.opaque {
                Some(opaque) => json!({ "fd": member.fd.as_raw_fd(), "opaque": opaque }),
                None => json!({ "fd": member.fd.as_raw_fd() }),
            });
            json!({ "fds": fds.collect::<Vec<_>>(), "fdset-id": id })
        });
        sets.collect()
    }

    pub(super) fn add_node(&mut self, arguments: &Arguments) -> Answer {
        let driver = arguments.text("driver")?.to_owned();
        let name = match arguments.optional_text("node-name") {
            Some(name) => name.to_owned(),
            None => {
                return Err(Refusal::generic("'node-name' must be specified for the root node"));
            }
        };
        if self.node(&name).is_some() {
            return Err(Refusal::generic(format!("Duplicate nodes with node-name='{name}'")));
        }
        let read_only = matches!(arguments.0.get("read-only"), Some(Value::Bool(true)))
            || arguments.optional_text("read-only") == Some("on");
        let (filename, content) = match driver.as_str() {
            "file" | "host_device" | "host_cdrom" => self.open(arguments.text("filename")?)?,
            "raw" if arguments.optional_text("file").is_some() => {
                self.below(arguments.text("file")?)?
            }
            // The layer below is given in place, and what it holds is as large as its file.
            "raw" | "qcow2" => {
                let file = arguments.0.get("file").and_then(|file| file.get("filename"));
                let filename = file
                    .and_then(Value::as_str)
                    .ok_or_else(|| Refusal::generic("Parameter 'file.filename' is missing"))?;
                self.open(filename)?
            }
            other => return Err(Refusal::generic(format!("Unknown driver '{other}'"))),
        };
        self.nodes.insert(0, Node { name, driver, filename, read_only, content });
        done()
    }

    /// The node an `eject` and `blockdev-change-medium` make for themselves.
    pub(super) fn add_nameless_node(
        &mut self,
        filename: &str,
        read_only: bool,
    ) -> Result<String, Refusal> {
        let (filename, content) = self.open(filename)?;
        self.nameless_nodes += 1;
        let name = format!("#block{}", self.nameless_nodes);
        let driver = "raw".into();
        self.nodes.insert(0, Node { name: name.clone(), driver, filename, read_only, content });
        Ok(name)
    }

    pub(super) fn delete_node(&mut self, arguments: &Arguments) -> Answer {
        let name = arguments.text("node-name")?;
        if self.node(name).is_none() {
            let text = format!("Failed to find node with node-name='{name}'");
            return Err(Refusal::generic(text));
        }
        if self.mirrors(name) {
            let text =
                format!("Node '{name}' is busy: block device is in use by block job: mirror");
            return Err(Refusal::generic(text));
        }
        if self.is_in_use(name) {
            return Err(Refusal::generic(format!("Node {name} is in use")));
        }
        let name = name.to_owned();
        self.drop_node(&name);
        done()
    }

    pub(super) fn drop_node(&mut self, name: &str) {
        self.nodes.retain(|node| node.name != name);
        self.forget_empty_sets();
    }

    /// As QEMU: a smaller size cuts the file.
    pub(super) fn resize(&mut self, arguments: &Arguments) -> Answer {
        let name = arguments.text("node-name")?;
        let Some(node) = self.node(name) else {
            return Err(Refusal::generic(format!("Cannot find device='' nor node-name='{name}'")));
        };
        let size = arguments.number("size").and_then(|size| u64::try_from(size).ok());
        let size = size.ok_or_else(|| Refusal::generic("Parameter 'size' expects a >0 size"))?;
        match self.file_of(node).map(|fd| ftruncate(fd, size)) {
            Some(Ok(())) => done(),
            _ => Err(Refusal::generic("Failed to resize the underlying file")),
        }
    }

    pub(super) fn query_nodes(&self) -> Value {
        self.nodes.iter().map(|node| self.describe(node)).collect()
    }

    pub(super) fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    pub(super) fn is_in_use(&self, name: &str) -> bool {
        let below = |node: &Node| matches!(&node.content, Content::Node(child) if child == name);
        self.flash.iter().any(|flash| flash == name)
            || self.devices.iter().any(|device| device.node.as_deref() == Some(name))
            || self.is_written_by_mirror(name)
            || self.nodes.iter().any(below)
    }

    pub(super) fn describe(&self, node: &Node) -> Value {
        let file = self.file_of(node).and_then(|fd| fstat(fd).ok());
        let (size, blocks) = file.map_or((0, 0), |stat| (stat.st_size, stat.st_blocks));
        json!({
            "iops_rd": 0, "detect_zeroes": "off", "active": true,
            "image": {
                "virtual-size": size, "filename": node.filename, "format": node.driver,
                "actual-size": blocks * 512, "dirty-flag": false,
            },
            "iops_wr": 0, "ro": node.read_only, "node-name": node.name, "backing_file_depth": 0,
            "drv": node.driver, "iops": 0, "bps_wr": 0, "write_threshold": 0, "encrypted": false,
            "bps": 0, "bps_rd": 0,
            "cache": { "no-flush": false, "direct": false, "writeback": true },
            "file": node.filename,
        })
    }

    fn open(&self, filename: &str) -> Result<(String, Content), Refusal> {
        // Opened anew, as QEMU does with every name but that of a set.
        if filename.starts_with("/proc/self/fd/")
            && let Ok(file) = File::options().read(true).write(true).open(filename)
        {
            return Ok((filename.to_owned(), Content::File { set: NO_SET, fd: file.into() }));
        }
        let Some(id) = filename.strip_prefix("/dev/fdset/") else {
            let text = format!("Could not open '{filename}': No such file or directory");
            return Err(Refusal::generic(text));
        };
        let set = id.parse().unwrap_or(-1);
        match self.duplicate_fd(set) {
            Some(fd) => Ok((filename.to_owned(), Content::File { set, fd })),
            None => Err(Refusal::generic(format!("Failed to find fdset /dev/fdset/{id}"))),
        }
    }

    fn below(&self, child: &str) -> Result<(String, Content), Refusal> {
        match self.node(child) {
            Some(node) => Ok((node.filename.clone(), Content::Node(child.to_owned()))),
            None => {
                let text = format!("Cannot find device='' nor node-name='{child}'");
                Err(Refusal::generic(text))
            }
        }
    }

    pub(super) fn file_of<'a>(&'a self, node: &'a Node) -> Option<&'a OwnedFd> {
        match &node.content {
            Content::File { fd, .. } => Some(fd),
            Content::Node(child) => self.file_of(self.node(child)?),
        }
    }

    fn forget_empty_sets(&mut self) {
        let nodes = &self.nodes;
        let is_open = |id: i64| {
            nodes.iter().any(|n| matches!(n.content, Content::File { set, .. } if set == id))
        };
        self.fdsets.retain(|id, set| !set.members.is_empty() || is_open(*id));
    }
}
