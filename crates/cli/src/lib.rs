//! The commands of hpvm as administrators type them: the tables of options, the dispatch, what is printed. Called by
//! `main.rs`, and by tests that compare the tables with the documentation.
//!
//! Nothing here is of use to another front end; what a command does is a function of `hpvm_operations`.

pub mod args;
pub mod commands;
pub mod dispatch;
pub mod dry_run;
mod entries;
pub mod exit;
pub mod later;
mod luns;
pub mod messages;
pub mod output;
pub mod progress;
mod reference;
#[cfg(test)]
mod schema;
pub mod status;
pub mod switch;
mod table;
mod usage;
