//! What is asked and told of changes of the policy, as it goes over the control socket.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::control::events::PolicyChange;

/// How a change is to be made.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct ChangeSettings {
    /// Keys of which the gateway has no record have never sealed a packet.
    pub fresh_keys: bool,
    /// Seconds after which all is as it was before, unless the change is confirmed.
    pub confirm_s: Option<u32>,
    /// Seconds after which new SAs seal that take the place of others, whether or not the peer has used its own.
    pub outbound_after_s: u32,
    /// Seconds for which SAs open after others have taken their place.
    pub grace_s: u32,
}

impl Default for ChangeSettings {
    fn default() -> Self {
        Self {
            fresh_keys: false,
            confirm_s: None,
            outbound_after_s: 10,
            grace_s: 30,
        }
    }
}

/// Parameters of `policy.load`.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct LoadParams {
    /// The file, absolute.
    pub path: PathBuf,
    /// How.
    #[serde(default)]
    pub settings: ChangeSettings,
}

/// Parameters of `policy.diff`.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct DiffParams {
    /// The file, absolute.
    pub path: PathBuf,
}

/// Parameters of `policy.add` and `policy.replace`.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct TablesParams {
    /// Tables, as they stand in a policy file.
    pub text: String,
    /// How.
    #[serde(default)]
    pub settings: ChangeSettings,
}

/// Parameters of `policy.remove`.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct RemoveParams {
    /// Names of tunnels and policies.
    pub names: Vec<String>,
    /// How.
    #[serde(default)]
    pub settings: ChangeSettings,
}

/// Parameters of `policy.job`.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct JobParams {
    /// Its number.
    pub job: u64,
}

/// What has been asked for.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// A file.
    Load,
    /// What is different in a file.
    Diff,
    /// More tables.
    Add,
    /// Fewer.
    Remove,
    /// Others.
    Replace,
    /// What was before.
    RollBack,
}

impl From<ChangeKind> for PolicyChange {
    fn from(kind: ChangeKind) -> Self {
        match kind {
            ChangeKind::Load | ChangeKind::Diff => Self::Loaded,
            ChangeKind::Add => Self::Added,
            ChangeKind::Remove => Self::Removed,
            ChangeKind::Replace => Self::Replaced,
            ChangeKind::RollBack => Self::RolledBack,
        }
    }
}

/// How far a job is.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Others are before it, or it is in work.
    Running,
    /// It is done.
    Done,
    /// It was refused, and everything is as it was.
    Refused,
}

/// A job, as `policy.job` tells.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct JobReport {
    /// Its number.
    pub job: u64,
    /// What was asked for.
    pub what: ChangeKind,
    /// How far it is.
    pub state: JobState,
    /// What is being done: `waiting`, `reading`, `comparing`, `compiling`, `installing`.
    pub phase: String,
    /// How much of that is done, in thousandths.
    pub permille: u16,
    /// The number of the policy that came into force with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Microseconds of the control thread's time that it took, once it is done: all else is another thread's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_us: Option<u64>,
    /// What is different, a line each.
    pub difference: Vec<String>,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Seconds until all is as it was before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_within_s: Option<u64>,
}

/// `policy.show`.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct PolicyTextReport {
    /// The file it is from.
    pub path: PathBuf,
    /// The policy in force, which may have been changed since.
    pub text: String,
    /// Its number: 1 when the gateway started.
    pub generation: u64,
    /// Seconds until all is as it was before, where a change waits to be confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_within_s: Option<u64>,
}
