//! What `hpvmnat` is told when it starts, as its arguments.

use std::fmt;
use std::str::FromStr;

use hpvm_host::users::Ids;
use hpvm_model::{Forward, ForwardError, NatSubnet, SubnetError};

/// Why arguments are no settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("'{0}' is no setting of hpvmnat; it knows subnet, mtu, host, forward, uid and gid")]
    Unknown(String),
    #[error("'{0}' is no MTU; write {min} to {max}", min = Settings::MTU_MIN, max = Settings::MTU_MAX)]
    Mtu(String),
    #[error(
        "'{0}' does not say whether guests may reach the VM Host; write host:hidden or host:reachable"
    )]
    HostAccess(String),
    #[error("'{0}' is no user or group id")]
    Id(String),
    #[error("uid and gid are given together or not at all")]
    HalfOfIds,
    #[error(transparent)]
    Subnet(#[from] SubnetError),
    #[error(transparent)]
    Forward(#[from] ForwardError),
}

/// Whether guests reach, by the gateway's address, what listens on the VM Host's loopback.
///
/// Services there trust whoever is on the host itself: hidden unless the administrator says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostAccess {
    #[default]
    Hidden,
    Reachable,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub subnet: NatSubnet,
    /// The largest IP packet, in bytes; told to guests by DHCP.
    pub mtu: u16,
    pub host_access: HostAccess,
    /// Forwards from the first moment; more can be asked for later.
    pub forwards: Vec<Forward>,
    /// As whom it goes on, if root starts it.
    pub ids: Option<Ids>,
}

impl Settings {
    /// Each IPv4 host takes so much (RFC 791, section 3.1).
    pub const MTU_MIN: u16 = 576;
    /// The most that libslirp takes.
    pub const MTU_MAX: u16 = 65_521;

    /// Reads what [`Settings::arguments`] wrote.
    pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Settings, SettingsError> {
        let mut settings = Settings::default();
        let (mut uid, mut gid) = (None, None);
        for argument in arguments {
            let (name, value) =
                argument.split_once(':').ok_or_else(|| SettingsError::Unknown(argument.clone()))?;
            match name {
                "subnet" => settings.subnet = value.parse()?,
                "mtu" => settings.mtu = mtu(value)?,
                "host" => settings.host_access = value.parse()?,
                "forward" => settings.forwards.push(value.parse()?),
                "uid" => uid = Some(id(value)?),
                "gid" => gid = Some(id(value)?),
                _ => return Err(SettingsError::Unknown(argument)),
            }
        }
        settings.ids = match (uid, gid) {
            (Some(uid), Some(gid)) => Some(Ids { uid, gid }),
            (None, None) => None,
            _ => return Err(SettingsError::HalfOfIds),
        };
        Ok(settings)
    }

    /// The arguments that start a `hpvmnat` so.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("subnet:{}", self.subnet),
            format!("mtu:{}", self.mtu),
            format!("host:{}", self.host_access),
        ];
        arguments.extend(self.forwards.iter().map(|forward| format!("forward:{forward}")));
        if let Some(Ids { uid, gid }) = self.ids {
            arguments.extend([format!("uid:{uid}"), format!("gid:{gid}")]);
        }
        arguments
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            subnet: NatSubnet::default(),
            mtu: 1500,
            host_access: HostAccess::default(),
            forwards: Vec::new(),
            ids: None,
        }
    }
}

fn mtu(text: &str) -> Result<u16, SettingsError> {
    let fits = |mtu: &u16| (Settings::MTU_MIN..=Settings::MTU_MAX).contains(mtu);
    text.parse().ok().filter(fits).ok_or_else(|| SettingsError::Mtu(text.to_owned()))
}

fn id(text: &str) -> Result<u32, SettingsError> {
    text.parse().map_err(|_| SettingsError::Id(text.to_owned()))
}

impl FromStr for HostAccess {
    type Err = SettingsError;
    fn from_str(text: &str) -> Result<HostAccess, SettingsError> {
        match text {
            "hidden" => Ok(HostAccess::Hidden),
            "reachable" => Ok(HostAccess::Reachable),
            _ => Err(SettingsError::HostAccess(text.to_owned())),
        }
    }
}

impl fmt::Display for HostAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HostAccess::Hidden => "hidden",
            HostAccess::Reachable => "reachable",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Settings, SettingsError> {
        Settings::parse(arguments.iter().map(|&argument| argument.to_owned()))
    }

    #[test]
    fn settings_come_back_from_their_arguments() {
        let settings = Settings {
            subnet: "192.168.7.0/24".parse().expect("a network"),
            mtu: 9000,
            host_access: HostAccess::Reachable,
            forwards: vec!["tcp:8080:192.168.7.15:80".parse().expect("a forward")],
            ids: Some(Ids { uid: 1_000_001, gid: 1_000_002 }),
        };
        assert_eq!(Settings::parse(settings.arguments().into_iter()).expect("read"), settings);
        assert_eq!(parse(&[]).expect("nothing is said"), Settings::default());
    }

    #[test]
    fn what_is_no_setting_is_refused() {
        assert!(matches!(parse(&["color:red"]), Err(SettingsError::Unknown(_))));
        assert!(matches!(parse(&["subnet"]), Err(SettingsError::Unknown(_))));
        assert!(matches!(parse(&["mtu:575"]), Err(SettingsError::Mtu(_))));
        assert!(matches!(parse(&["host:maybe"]), Err(SettingsError::HostAccess(_))));
        assert!(matches!(parse(&["uid:7"]), Err(SettingsError::HalfOfIds)));
        assert!(matches!(parse(&["forward:tcp:1"]), Err(SettingsError::Forward(_))));
    }
}
