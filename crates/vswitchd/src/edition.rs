//! Which version of hpvmnetd this is, and what it makes of what another one wrote. The owner of a switch begins with it.

use hpvm_model::SwitchState;
use hpvm_vswitchd::kept::Kept;
use hpvm_vswitchd::wanted::{Unreadable, Wanted};

use crate::Failure;
use crate::log::Log;

/// What this version can do. One argument, `without:HEX`, leaves features out that ports could be given: so tests have one
/// version replaced by another that has less or more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Edition {
    pub(crate) features: u64,
}

impl Edition {
    pub(crate) fn of(arguments: impl Iterator<Item = String>) -> Result<Edition, Failure> {
        let mut features = hpvm_vswitch::FEATURES;
        for argument in arguments {
            let left_out = argument.strip_prefix("without:");
            let left_out = left_out.and_then(|hex| u64::from_str_radix(hex, 16).ok());
            features &= !left_out.ok_or(Failure::Argument(argument))?;
        }
        Ok(Edition { features })
    }
}

/// What the switch is to be, and what else stands there. Of a format that is not known only number and name are taken: the
/// next command that boots the switch says the rest anew.
pub(crate) fn what_to_be(text: &str, log: &mut Log) -> Result<(Wanted, Kept), Failure> {
    match Wanted::read(text) {
        Ok(wanted) => {
            let kept = Kept::of(text);
            for field in kept.unknown(&wanted) {
                log.say(&format!(
                    "another version of hpvmnetd wrote '{field}', which this one keeps and does not carry out"
                ));
            }
            Ok((wanted, kept))
        }
        Err(Unreadable::Newer(head)) => {
            let (number, name) = (head.number, head.name.clone());
            log.say(&format!(
                "{}; ports and wire come back by `hpvmnet -S {name} -r`",
                Unreadable::Newer(head)
            ));
            Ok((Wanted::new(number, name, SwitchState::Up), Kept::default()))
        }
        Err(malformed @ Unreadable::Malformed) => Err(malformed.into()),
    }
}
