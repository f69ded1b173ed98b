//! Port forwards of a NAT wire: what comes in at a port of the VM Host goes to a port of a guest.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bytes::shown;

/// Why a text is no port forward.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    #[error(
        "'{0}' is no port forward; write such as tcp:8080:10.0.2.15:80 or udp:127.0.0.1:53:10.0.2.15:53"
    )]
    Malformed(String),
    #[error("'{0}' names no protocol that is forwarded; write tcp or udp")]
    Transport(String),
    #[error("'{0}' is no port; ports are 1 to 65535")]
    Port(String),
    #[error("'{0}' is no IPv4 address")]
    Address(String),
}

/// What is carried on top of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        }
    }
}

/// `tcp|udp:[ADDR:]PORT:GUESTADDR:PORT`. Without ADDR every IPv4 address of the VM Host is meant: `0.0.0.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Forward {
    pub transport: Transport,
    /// Where the VM Host listens.
    pub host: SocketAddrV4,
    pub guest: SocketAddrV4,
}

impl Forward {
    /// Whether two forwards want the same port of the VM Host.
    #[must_use]
    pub fn collides_with(&self, other: &Forward) -> bool {
        let (ours, theirs) = (self.host.ip(), other.host.ip());
        self.transport == other.transport
            && self.host.port() == other.host.port()
            && (ours == theirs || ours.is_unspecified() || theirs.is_unspecified())
    }
}

impl FromStr for Forward {
    type Err = ForwardError;
    fn from_str(text: &str) -> Result<Forward, ForwardError> {
        let parts: Vec<&str> = text.split(':').collect();
        let (transport, host, guest) = match parts[..] {
            [transport, port, guest, guest_port] => {
                (transport, ("0.0.0.0", port), (guest, guest_port))
            }
            [transport, address, port, guest, guest_port] => {
                (transport, (address, port), (guest, guest_port))
            }
            _ => return Err(ForwardError::Malformed(shown(text))),
        };
        let transport = match transport {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            other => return Err(ForwardError::Transport(shown(other))),
        };
        Ok(Forward { transport, host: place(host)?, guest: place(guest)? })
    }
}

fn place((address, port): (&str, &str)) -> Result<SocketAddrV4, ForwardError> {
    let number = port
        .parse()
        .ok()
        .filter(|number: &u16| *number != 0 && port.bytes().all(|digit| digit.is_ascii_digit()));
    let number = number.ok_or_else(|| ForwardError::Port(shown(port)))?;
    let address: Ipv4Addr = address.parse().map_err(|_| ForwardError::Address(shown(address)))?;
    Ok(SocketAddrV4::new(address, number))
}

impl TryFrom<String> for Forward {
    type Error = ForwardError;
    fn try_from(text: String) -> Result<Forward, ForwardError> {
        text.parse()
    }
}

impl From<Forward> for String {
    fn from(forward: Forward) -> String {
        forward.to_string()
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Forward { transport, host, guest } = self;
        write!(f, "{}:", transport.as_str())?;
        match host.ip().is_unspecified() {
            true => write!(f, "{}", host.port())?,
            false => write!(f, "{host}")?,
        }
        write!(f, ":{guest}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_forward_is_read_as_it_is_written() {
        for text in ["tcp:8080:10.0.2.15:80", "udp:127.0.0.1:53:10.0.2.15:53"] {
            assert_eq!(text.parse::<Forward>().expect("a forward").to_string(), text);
        }
        let everywhere: Forward = "tcp:0.0.0.0:8080:10.0.2.15:80".parse().expect("a forward");
        assert_eq!(everywhere.to_string(), "tcp:8080:10.0.2.15:80");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |text: &str| text.parse::<Forward>().expect_err(text);
        assert!(matches!(refused("tcp:80"), ForwardError::Malformed(_)));
        assert!(matches!(refused("sctp:80:10.0.2.15:80"), ForwardError::Transport(_)));
        assert!(matches!(refused("tcp:0:10.0.2.15:80"), ForwardError::Port(_)));
        assert!(matches!(refused("tcp:+1:10.0.2.15:80"), ForwardError::Port(_)));
        assert!(matches!(refused("tcp:80:10.0.2.15:65536"), ForwardError::Port(_)));
        assert!(matches!(refused("tcp:80:10.0.2:80"), ForwardError::Address(_)));
        assert!(matches!(refused("tcp:::1:80:10.0.2.15:80"), ForwardError::Malformed(_)));
    }

    #[test]
    fn every_address_collides_with_each_on_the_same_port() {
        let forward = |text: &str| text.parse::<Forward>().expect(text);
        let all = forward("tcp:80:10.0.2.15:80");
        assert!(all.collides_with(&forward("tcp:127.0.0.1:80:10.0.2.16:80")));
        assert!(!all.collides_with(&forward("udp:80:10.0.2.15:80")));
        assert!(!all.collides_with(&forward("tcp:81:10.0.2.15:80")));
        let one = forward("tcp:127.0.0.1:80:10.0.2.15:80");
        assert!(!one.collides_with(&forward("tcp:127.0.0.2:80:10.0.2.15:80")));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in any::<String>()) {
            let _ = text.parse::<Forward>();
        }
    }
}
