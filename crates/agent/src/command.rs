//! The commands we send, each a type that says its name, its arguments and its answer. Members that we do not know are
//! passed over: agents grow.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A request to the agent. It serializes to its arguments.
pub trait Command: Serialize {
    const NAME: &'static str;
    type Answer: DeserializeOwned;
}

/// One line a command: type, the agent's name for it, type of the answer.
macro_rules! commands {
    ($($command:ty: $name:literal => $answer:ty;)*) => {
        $(impl Command for $command {
            const NAME: &'static str = $name;
            type Answer = $answer;
        })*

        /// Every command we send.
        pub const NAMES: &[&str] = &[$($name),*];
    };
}

commands! {
    Sync: "guest-sync-delimited" => u64;
    Ping: "guest-ping" => Done;
    Info: "guest-info" => Abilities;
    FreezeStatus: "guest-fsfreeze-status" => Freeze;
    FreezeFileSystems: "guest-fsfreeze-freeze" => u64;
    ThawFileSystems: "guest-fsfreeze-thaw" => u64;
    Exec: "guest-exec" => Started;
    ExecStatus: "guest-exec-status" => Execution;
}

/// Answered by the same number, behind a byte that no JSON has: what was said before it is of an earlier conversation.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sync {
    pub id: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ping {}

/// Which agent it is and what it was allowed to do.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Info {}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct FreezeStatus {}

/// Answers with the number of file systems that stand still now.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct FreezeFileSystems {}

/// Answers with the number of file systems that go on; 0 when none was frozen.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ThawFileSystems {}

/// Starts a program in the guest; nothing interprets its arguments.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Exec {
    pub path: String,
    #[serde(rename = "arg")]
    pub arguments: Vec<String>,
    pub capture_output: bool,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct ExecStatus {
    pub pid: i64,
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
