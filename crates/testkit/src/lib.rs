//! What tests stand on: stand-ins and throw-away surroundings. Never linked into the product.

pub mod fake;
pub mod guest;
pub mod processors;
mod script;
pub mod vm_host;
pub mod wait;

pub use script::write_script;
pub use vm_host::{Engine, Outcome, VmHost};
