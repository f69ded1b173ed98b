//! Options that several commands share. Values are parsed into types of the model right here, so that a command never
//! sees a text that means nothing; the sentences about bad ones are the model's.

mod devices;
mod guest;
mod operation;
mod selector;
mod settings;
mod undertaking;

pub use devices::{DeviceStatement, DeviceStatementError, store_to_copy};
pub use guest::{ChangeOptions, GuestOptions};
pub use operation::Operation;
pub use selector::{GuestArgument, Selector, StopTarget};
pub use settings::{CloneSetting, CloneSettings, GuestSettings, Setting, SettingError};
pub use undertaking::Undertaking;
