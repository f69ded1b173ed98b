//! The registry: one SQLite file that says which guests and virtual switches a VM Host has, what each should be, which
//! guests were removed and are still kept, and what was done to them by whom. It holds what must survive a boot of the host, and nothing else.
//!
//! Commands open it, read or change it, and end; there is no daemon. Readers never wait for writers, and see the state
//! before or after a change, never a part of it. It knows nothing of QEMU, processes, or the guests' folders, save one
//! text in each from which a lost registry is rebuilt ([`portable`], [`rebuild()`]).
//!
//! ```no_run
//! # use hpvm_registry::{Access, Identities, Registry, Selector};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut registry = Registry::open("/var/opt/hpvm/hpvm.db".as_ref(), Access::ReadWrite)?;
//! let change = registry.change()?;
//! let mut guest = change.guest(&Selector::Name("web1".parse()?))?.expect("defined before");
//! guest.name = "web2".parse()?;
//! change.update(&guest, &Identities::new())?;
//! change.commit()?;
//! # Ok(())
//! # }
//! ```

mod change;
mod entry;
mod error;
mod export;
mod guest;
mod open;
mod operation;
pub mod portable;
mod rebuild;
mod remembered;
mod schema;
mod step;
mod upgrade;
mod view;
mod vswitch;

pub use change::Change;
pub use entry::{Entry, Keys};
pub use error::{RegistryError, is_mounted_read_only};
pub use guest::{GuestSummary, Identities, RemovedGuest, Selector, Sharer};
pub use hpvm_model::FileIdentity;
pub use open::{Access, Registry, State};
pub use operation::{Operation, OperationId, Outcome, Owner, RecordedOperation, Subject};
pub use rebuild::{Found, Rebuild, Rebuilt, Skipped, Sources, rebuild, rehearse};
pub use remembered::{Lost, Part};
pub use step::{Step, UnknownStep};
pub use view::View;
pub use vswitch::{NicRow, SwitchSelector};
