//! The commands we send, each a type that says its name, its arguments and its answer. Members that we do not know are
//! passed over: agents grow.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::deadline;

/// A request to the agent. It serializes to its arguments.
pub trait Command: Serialize {
    const NAME: &'static str;
    /// How long we wait for the answer.
    const DEADLINE: Duration = deadline::DEFAULT;
    type Answer: DeserializeOwned;
}

/// Answered by the same number, behind a byte that no JSON has: what was said before it is of an earlier conversation.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sync {
    pub id: u64,
}

impl Command for Sync {
    const NAME: &'static str = "guest-sync-delimited";
    type Answer = u64;
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ping {}

impl Command for Ping {
    const NAME: &'static str = "guest-ping";
    type Answer = Done;
}

/// Which agent it is and what it was allowed to do.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Info {}

impl Command for Info {
    const NAME: &'static str = "guest-info";
    type Answer = Abilities;
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct FreezeStatus {}

impl Command for FreezeStatus {
    const NAME: &'static str = "guest-fsfreeze-status";
    type Answer = Freeze;
}

/// Answers with the number of file systems that stand still now.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct FreezeFileSystems {}

impl Command for FreezeFileSystems {
    const NAME: &'static str = "guest-fsfreeze-freeze";
    const DEADLINE: Duration = deadline::FROZEN;
    type Answer = u64;
}

/// Answers with the number of file systems that go on; 0 when none was frozen.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ThawFileSystems {}

impl Command for ThawFileSystems {
    const NAME: &'static str = "guest-fsfreeze-thaw";
    const DEADLINE: Duration = deadline::THAWING;
    type Answer = u64;
}

/// Starts a program in the guest; nothing interprets its arguments.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Exec {
    pub path: String,
    #[serde(rename = "arg")]
    pub arguments: Vec<String>,
    pub capture_output: bool,
}

impl Command for Exec {
    const NAME: &'static str = "guest-exec";
    type Answer = Started;
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct ExecStatus {
    pub pid: i64,
}

impl Command for ExecStatus {
    const NAME: &'static str = "guest-exec-status";
    type Answer = Execution;
}

/// An empty object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abilities {
    pub version: String,
    pub supported_commands: Vec<Ability>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ability {
    pub name: String,
    /// Whether the guest's administrator left it on.
    pub enabled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Freeze {
    Thawed,
    Frozen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// A process number, or what the agent gives for one.
    pub pid: i64,
}

/// How a program fares. Output comes with its end, in base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Execution {
    pub exited: bool,
    #[serde(rename = "exitcode")]
    pub status: Option<i64>,
    pub signal: Option<i64>,
    pub out_data: Option<String>,
    pub err_data: Option<String>,
}
