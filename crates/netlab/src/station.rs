//! A machine of its own on a test's LAN: another network namespace, held by a process that ends with the test.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::{ip, wait_until_up};

/// The kernel's whole network stack, with one interface.
pub struct Station {
    holder: Child,
    interface: String,
}

impl Station {
    /// Takes one end of a pair that is not connected to anything else.
    ///
    /// # Panics
    ///
    /// When the namespace cannot be made.
    #[must_use]
    pub fn behind(near: &str, far: &str) -> Station {
        ip(&format!("link add {near} type veth peer name {far}"));
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo there; read ended"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare of package util-linux");
        let mut said = String::new();
        let output = holder.stdout.take().expect("piped");
        BufReader::new(output).read_line(&mut said).expect("it begins");
        assert_eq!(said, "there\n");
        ip(&format!("link set {far} netns {}", holder.id()));
        let station = Station { holder, interface: far.to_owned() };
        // Nobody else is there whose address it could be.
        station.run(&format!("echo 0 > /proc/sys/net/ipv6/conf/{far}/accept_dad"));
        station
    }

    /// Sets both ends up, and waits until frames pass.
    ///
    /// # Panics
    ///
    /// When they do not within ten seconds.
    pub fn set_up(&self, near: &str) {
        self.run(&format!("ip link set {} up", self.interface));
        ip(&format!("link set {near} up"));
        wait_until_up(near);
    }

    /// Runs a line of shell as this machine.
    ///
    /// # Panics
    ///
    /// When it fails.
    pub fn run(&self, line: &str) {
        let namespace = format!("--net=/proc/{}/ns/net", self.holder.id());
        let status = Command::new("nsenter").args([&namespace, "sh", "-c", line]).status();
        let status = status.expect("nsenter of package util-linux");
        assert!(status.success(), "{line}: {status}");
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
