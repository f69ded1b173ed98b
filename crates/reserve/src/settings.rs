//! What `hpvmreserve` is told, as its arguments.

use std::path::PathBuf;

use hpvm_host::users::Ids;

/// How the helper is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// qemu-pr-helper.
    pub helper: PathBuf,
    /// As whom it goes on; `None`: as the starter, who is not root and whose reservations the kernel refuses.
    pub ids: Option<Ids>,
}

/// Why arguments mean nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error(
        "'{0}' is no argument of hpvmreserve; those are helper:PATH, uid:NUMBER and gid:NUMBER"
    )]
    Unknown(String),
    #[error("the helper is not named; helper:PATH does")]
    NoHelper,
    #[error("uid and gid are given both, or neither")]
    HalfIds,
}

impl Settings {
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let helper = format!("helper:{}", self.helper.display());
        let ids = self.ids.map(|Ids { uid, gid }| [format!("uid:{uid}"), format!("gid:{gid}")]);
        [helper].into_iter().chain(ids.into_iter().flatten()).collect()
    }

    pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Settings, SettingsError> {
        let (mut helper, mut uid, mut gid) = (None, None, None);
        for argument in arguments {
            let unknown = || SettingsError::Unknown(argument.clone());
            let (name, value) = argument.split_once(':').ok_or_else(unknown)?;
            match name {
                "helper" if !value.is_empty() => helper = Some(PathBuf::from(value)),
                "uid" => uid = Some(value.parse().map_err(|_| unknown())?),
                "gid" => gid = Some(value.parse().map_err(|_| unknown())?),
                _ => return Err(unknown()),
            }
        }
        let ids = match (uid, gid) {
            (Some(uid), Some(gid)) => Some(Ids { uid, gid }),
            (None, None) => None,
            _ => return Err(SettingsError::HalfIds),
        };
        Ok(Settings { helper: helper.ok_or(SettingsError::NoHelper)?, ids })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood_and_nothing_else() {
        let helper = PathBuf::from("/usr/bin/qemu-pr-helper");
        for ids in [None, Some(Ids { uid: 1_600_007, gid: 1_600_007 })] {
            let settings = Settings { helper: helper.clone(), ids };
            assert_eq!(Settings::parse(settings.arguments().into_iter()), Ok(settings));
        }
        let parse = |text: &str| Settings::parse(text.split(' ').map(str::to_owned));
        assert_eq!(parse("uid:1 gid:2"), Err(SettingsError::NoHelper));
        assert_eq!(parse("helper:/h uid:1"), Err(SettingsError::HalfIds));
        for wrong in ["helper:", "helper", "uid:x", "path:/x"] {
            assert_eq!(parse(wrong), Err(SettingsError::Unknown(wrong.into())));
        }
    }
}
