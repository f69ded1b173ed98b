//! How the firmware of a guest boots over the NIC at a port: what EFI's `lanboot` asks for, kept by the port. The grammar is
//! `dhcp`, or `ADDRESS/PREFIX[,gateway=ADDRESS],server=ADDRESS,file=NAME`, a profile as EFI's `dbprofile` has it.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bytes::shown;

/// Why a text does not say how to boot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LanBootError {
    #[error(
        "'{0}' does not say how to boot; write dhcp, none, or ADDRESS/PREFIX[,gateway=ADDRESS],server=ADDRESS,file=NAME"
    )]
    Malformed(String),
    #[error("{address}/{prefix} is no address of a guest; a network of 1 to 30 bits has some")]
    Address { address: Ipv4Addr, prefix: u8 },
    #[error(
        "{0} is not in the guest's network; write a gateway that is, and one that is not the guest itself"
    )]
    Gateway(Ipv4Addr),
    #[error(
        "{0} is not in the guest's network; name the gateway by which it is reached: gateway=ADDRESS"
    )]
    Server(Ipv4Addr),
    #[error("{0} is the guest's own address; name the server that has the file")]
    OwnServer(Ipv4Addr),
    #[error("'{0}' is no name of a boot file; write 1 to {max} printable ASCII characters", max = BootFile::BYTES_MAX)]
    File(String),
}

/// Where the firmware has its boot file from. It tries the network after the guest's disks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum LanBoot {
    /// From whoever answers to DHCP on the LAN.
    Dhcp,
    /// As the profile says: nobody on the LAN is asked.
    Profile(BootProfile),
}

/// What the firmware would be told by DHCP. Made by reading alone, so its parts agree.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BootProfile {
    address: Ipv4Addr,
    /// 1 to 30.
    prefix: u8,
    gateway: Option<Ipv4Addr>,
    server: Ipv4Addr,
    file: BootFile,
}

/// The name of a file on a TFTP server: what DHCP has room for (RFC 2131, 2), ended by a zero byte.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BootFile(String);

impl BootFile {
    pub const BYTES_MAX: usize = 127;

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BootFile {
    type Err = LanBootError;
    fn from_str(text: &str) -> Result<BootFile, LanBootError> {
        let fits = (1..=Self::BYTES_MAX).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| BootFile(text.to_owned())).ok_or_else(|| LanBootError::File(shown(text)))
    }
}

impl BootProfile {
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    #[must_use]
    pub fn mask(&self) -> Ipv4Addr {
        mask(self.prefix).into()
    }

    #[must_use]
    pub fn gateway(&self) -> Option<Ipv4Addr> {
        self.gateway
    }

    /// Who has the boot file, by TFTP.
    #[must_use]
    pub fn server(&self) -> Ipv4Addr {
        self.server
    }

    #[must_use]
    pub fn file(&self) -> &BootFile {
        &self.file
    }

    fn is_neighbour(&self, other: Ipv4Addr) -> bool {
        let mask = mask(self.prefix);
        other.to_bits() & mask == self.address.to_bits() & mask
    }

    /// Whether the parts agree.
    fn judged(self) -> Result<BootProfile, LanBootError> {
        let BootProfile { address, prefix, gateway, server, .. } = self;
        let host_bits = !mask(prefix);
        let host = address.to_bits() & host_bits;
        let is_one_station = (1..=30).contains(&prefix) && host != 0 && host != host_bits;
        if !is_one_station || address.is_multicast() || address.is_loopback() {
            return Err(LanBootError::Address { address, prefix });
        }
        if let Some(gateway) =
            gateway.filter(|gateway| *gateway == address || !self.is_neighbour(*gateway))
        {
            return Err(LanBootError::Gateway(gateway));
        }
        if server == address {
            return Err(LanBootError::OwnServer(server));
        }
        if gateway.is_none() && !self.is_neighbour(server) {
            return Err(LanBootError::Server(server));
        }
        Ok(self)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

const DHCP: &str = "dhcp";

impl FromStr for LanBoot {
    type Err = LanBootError;
    fn from_str(text: &str) -> Result<LanBoot, LanBootError> {
        if text == DHCP {
            return Ok(LanBoot::Dhcp);
        }
        let malformed = || LanBootError::Malformed(shown(text));
        // The file is the last, so that its name may have commas.
        let (rest, file) = text.split_once(",file=").ok_or_else(malformed)?;
        let mut parts = rest.split(',');
        let (address, prefix) =
            parts.next().and_then(|own| own.split_once('/')).ok_or_else(malformed)?;
        let (mut gateway, mut server) = (None, None);
        for part in parts {
            let (key, value) = part.split_once('=').ok_or_else(malformed)?;
            let place = match key {
                "gateway" => &mut gateway,
                "server" => &mut server,
                _ => return Err(malformed()),
            };
            let is_second = place.replace(value.parse().map_err(|_| malformed())?).is_some();
            if is_second {
                return Err(malformed());
            }
        }
        let profile = BootProfile {
            address: address.parse().map_err(|_| malformed())?,
            prefix: prefix.parse().map_err(|_| malformed())?,
            gateway,
            server: server.ok_or_else(malformed)?,
            file: file.parse()?,
        };
        profile.judged().map(LanBoot::Profile)
    }
}

impl TryFrom<String> for LanBoot {
    type Error = LanBootError;
    fn try_from(text: String) -> Result<LanBoot, LanBootError> {
        text.parse()
    }
}

impl From<LanBoot> for String {
    fn from(boot: LanBoot) -> String {
        boot.to_string()
    }
}

impl fmt::Display for LanBoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LanBoot::Profile(profile) = self else { return f.write_str(DHCP) };
        let BootProfile { address, prefix, gateway, server, file } = profile;
        write!(f, "{address}/{prefix}")?;
        if let Some(gateway) = gateway {
            write!(f, ",gateway={gateway}")?;
        }
        write!(f, ",server={server},file={}", file.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_read_is_written_again() {
        for text in [
            "dhcp",
            "192.0.2.7/24,server=192.0.2.1,file=boot/a,b.efi",
            "192.0.2.7/24,gateway=192.0.2.254,server=203.0.113.1,file=a",
            "10.0.0.1/30,server=10.0.0.2,file=a",
        ] {
            assert_eq!(text.parse::<LanBoot>().map(|boot| boot.to_string()), Ok(text.to_owned()));
        }
        let reordered =
            "192.0.2.7/24,server=192.0.2.1,gateway=192.0.2.254,file=a".parse::<LanBoot>();
        let Ok(LanBoot::Profile(profile)) = reordered else { panic!("{reordered:?}") };
        assert_eq!(profile.mask(), Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(profile.gateway(), Some(Ipv4Addr::new(192, 0, 2, 254)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = "x".repeat(BootFile::BYTES_MAX + 1);
        for (text, word) in [
            ("", "does not say how to boot"),
            ("DHCP", "does not say how to boot"),
            ("192.0.2.7,server=192.0.2.1,file=a", "does not say how to boot"),
            ("192.0.2.7/24,file=a", "does not say how to boot"),
            ("192.0.2.7/24,server=192.0.2.1", "does not say how to boot"),
            ("192.0.2.7/24,server=a,file=a", "does not say how to boot"),
            ("192.0.2.7/24,server=192.0.2.1,server=192.0.2.2,file=a", "does not say how to boot"),
            ("192.0.2.7/24,router=192.0.2.1,server=192.0.2.1,file=a", "does not say how to boot"),
            ("192.0.2.7/0,server=192.0.2.1,file=a", "no address of a guest"),
            ("192.0.2.7/31,server=192.0.2.6,file=a", "no address of a guest"),
            ("192.0.2.7/250,server=192.0.2.6,file=a", "no address of a guest"),
            ("192.0.2.0/24,server=192.0.2.1,file=a", "no address of a guest"),
            ("192.0.2.255/24,server=192.0.2.1,file=a", "no address of a guest"),
            ("127.0.0.2/8,server=127.0.0.1,file=a", "no address of a guest"),
            ("192.0.2.7/24,gateway=192.0.3.1,server=192.0.2.1,file=a", "gateway that is"),
            ("192.0.2.7/24,gateway=192.0.2.7,server=192.0.3.1,file=a", "gateway that is"),
            ("192.0.2.7/24,server=192.0.3.1,file=a", "name the gateway"),
            ("192.0.2.7/24,server=192.0.2.7,file=a", "own address"),
            ("192.0.2.7/24,server=192.0.2.1,file=", "no name of a boot file"),
            ("192.0.2.7/24,server=192.0.2.1,file=a b", "no name of a boot file"),
            (&format!("192.0.2.7/24,server=192.0.2.1,file={long}"), "no name of a boot file"),
        ] {
            let error = text.parse::<LanBoot>().unwrap_err().to_string();
            assert!(error.contains(word), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "(192\\.0\\.2\\.7/)?\\PC{0,40}(,server=192\\.0\\.2\\.1,file=)?\\PC{0,9}") {
            let _ = text.parse::<LanBoot>();
        }
    }
}
