//! What is behind NICs: sockets to switches, and what sends over them. Nothing is connected and no frame comes out: a test that
//! needs a guest's frames speaks for it at the switch's socket.

use super::{Answer, Arguments, Machine, Refusal, done};

/// What a NIC sends over.
#[derive(Debug)]
pub(super) struct Netdev {
    id: String,
    /// The socket of a vhost-user one.
    chardev: Option<String>,
}

impl Machine {
    pub(super) fn add_chardev(&mut self, arguments: &Arguments) -> Answer {
        let id = arguments.text("id")?;
        if self.has_chardev(id) {
            return Err(Refusal::generic(format!("Chardev with id '{id}' already exists")));
        }
        self.chardevs.push(id.to_owned());
        done()
    }

    pub(super) fn remove_chardev(&mut self, arguments: &Arguments) -> Answer {
        let id = arguments.text("id")?;
        if !self.has_chardev(id) {
            return Err(Refusal::generic(format!("Chardev '{id}' not found")));
        }
        if self.netdevs.iter().any(|netdev| netdev.chardev.as_deref() == Some(id)) {
            return Err(Refusal::generic(format!("Chardev '{id}' is busy")));
        }
        self.chardevs.retain(|known| known != id);
        done()
    }

    pub(super) fn add_netdev(&mut self, arguments: &Arguments) -> Answer {
        let id = arguments.text("id")?;
        if self.has_netdev(id) {
            return Err(Refusal::generic(format!("Duplicate ID '{id}'")));
        }
        let chardev = arguments.optional_text("chardev");
        if let Some(unknown) = chardev.filter(|id| !self.has_chardev(id)) {
            return Err(Refusal::generic(format!("chardev \"{unknown}\" not found")));
        }
        self.netdevs.push(Netdev { id: id.to_owned(), chardev: chardev.map(str::to_owned) });
        done()
    }

    /// QEMU does not ask whether a NIC has it.
    pub(super) fn delete_netdev(&mut self, arguments: &Arguments) -> Answer {
        let id = arguments.text("id")?;
        if !self.has_netdev(id) {
            return Err(Refusal::no_device(id));
        }
        self.netdevs.retain(|netdev| netdev.id != id);
        done()
    }

    pub(super) fn set_link(&self, arguments: &Arguments) -> Answer {
        let name = arguments.text("name")?;
        match self.has_netdev(name) || self.has_nic(name) {
            true => done(),
            false => Err(Refusal::no_device(name)),
        }
    }

    pub(super) fn has_netdev(&self, id: &str) -> bool {
        self.netdevs.iter().any(|netdev| netdev.id == id)
    }

    fn has_chardev(&self, id: &str) -> bool {
        self.chardevs.iter().any(|known| known == id)
    }
}
