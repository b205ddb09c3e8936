//! The `[gateway]` table.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::diagnostic::{Fault, Faults, quoted};
use super::file::{At, Key, Span, Table, Value};
use super::model::Gateway;
use super::network;

const NAME: Key = Key::new("name", "name = \"west\"");
const WORKERS: Key = Key::new("workers", "workers = [1]");
const STATE_DIR: Key = Key::new("state_dir", "state_dir = \"/var/lib/simplon/west\"");
const CONTROL_SOCKET: Key = Key::new(
    "control_socket",
    "control_socket = \"/run/simplon/west.sock\"",
);
const CONTROL_GROUP: Key = Key::new("control_group", "control_group = \"simplon\"");
const MEMORY_MIB: Key = Key::new("memory_mib", "memory_mib = 256");
const LAB_KEYS: Key = Key::new("lab_keys", "lab_keys = true");
const ADMIN_PROHIBITED: Key = Key::new("admin_prohibited", "admin_prohibited = true");
const KEYS: &[&Key] = &[
    &NAME,
    &WORKERS,
    &STATE_DIR,
    &CONTROL_SOCKET,
    &CONTROL_GROUP,
    &MEMORY_MIB,
    &LAB_KEYS,
    &ADMIN_PROHIBITED,
];

/// Longest name of a gateway, in characters: as long as a file prefix of DPDK's may be (`Eal::NAME_MAX`).
const MAX_NAME_LEN: usize = 32;
/// The highest core number that DPDK takes, plus one.
const MAX_CORES: u32 = 1024;
/// Longest path of a Unix socket on Linux, in bytes, without the NUL that ends it.
const MAX_SOCKET_PATH_LEN: usize = 107;
/// Longest name of a group, in bytes: no system has longer ones.
const MAX_GROUP_LEN: usize = 255;
const DEFAULT_MEMORY_MIB: u32 = 256;

/// What `[gateway]` says, as far as it could be read.
pub(super) struct GatewayDraft {
    /// `None` where something is wrong.
    pub(super) gateway: Option<Gateway>,
    /// How many workers are asked for, at least one.
    pub(super) workers: usize,
    /// What `lab_keys` says and where; where it is missing, the table.
    pub(super) lab_keys: At<bool>,
}

/// Reads `[gateway]`; `table` is `None` where it is missing, which its caller has complained about.
pub(super) fn read(table: Option<&Table<'_>>, faults: &mut Faults<'_>) -> GatewayDraft {
    let Some(table) = table else {
        return GatewayDraft {
            gateway: None,
            workers: 1,
            // Nothing is known, so nothing is complained about.
            lab_keys: At {
                value: true,
                span: 0..0,
            },
        };
    };
    table.refuse_unknown(KEYS, &[], faults);
    let name = table
        .need(&NAME, faults)
        .and_then(|value| network::name_up_to(MAX_NAME_LEN, &value, faults));
    let workers = table
        .need(&WORKERS, faults)
        .and_then(|value| workers(&value, faults));
    let state_dir = table
        .need(&STATE_DIR, faults)
        .and_then(|value| path(&value, usize::MAX, faults));
    let control_socket = table
        .need(&CONTROL_SOCKET, faults)
        .and_then(|value| path(&value, MAX_SOCKET_PATH_LEN, faults));
    let control_group = match table.find(&CONTROL_GROUP) {
        Some(value) => group(&value, faults).map(Some),
        None => Some(None),
    };
    let memory_mib = match table.find(&MEMORY_MIB) {
        Some(value) => value.number(64..=65_536, faults).map(|number| number.value),
        None => Some(DEFAULT_MEMORY_MIB),
    };
    let lab_keys = match table.find(&LAB_KEYS) {
        Some(value) => value.boolean(faults),
        None => Some(At {
            value: false,
            span: table.span.clone(),
        }),
    };
    let admin_prohibited = match table.find(&ADMIN_PROHIBITED) {
        Some(value) => value.boolean(faults).map(|prohibited| prohibited.value),
        None => Some(false),
    };
    let worker_count = workers.as_ref().map_or(1, Vec::len);
    let gateway = || {
        Some(Gateway {
            name: name?.value.to_owned(),
            workers: workers?,
            state_dir: state_dir?,
            control_socket: control_socket?,
            control_group: control_group?,
            memory_mib: memory_mib?,
            lab_keys: lab_keys.as_ref()?.value,
            admin_prohibited: admin_prohibited?,
        })
    };
    GatewayDraft {
        gateway: gateway(),
        workers: worker_count,
        lab_keys: lab_keys.unwrap_or(At {
            value: true,
            span: 0..0,
        }),
    }
}

fn workers(value: &Value<'_>, faults: &mut Faults<'_>) -> Option<Vec<usize>> {
    let elements = value.list(faults)?;
    if elements.is_empty() {
        let message = "workers is empty: packets would have nobody to move them";
        faults.add(Fault::new(&value.span, message).help(format!("write {}", WORKERS.example)));
        return None;
    }
    let mut seen: BTreeMap<u32, Span> = BTreeMap::new();
    let mut cores = Vec::new();
    for element in &elements {
        let Some(core) = element.number(0..=MAX_CORES - 1, faults) else {
            continue;
        };
        if let Some(first) = seen.get(&core.value) {
            let fault = Fault::new(&core.span, format!("core {} is given twice", core.value));
            faults.add(
                fault
                    .related(first, "first given here")
                    .help("give each worker a core of its own"),
            );
            continue;
        }
        cores.push(usize::try_from(core.value).ok()?);
        seen.insert(core.value, core.span);
    }
    (cores.len() == elements.len()).then_some(cores)
}

/// A name of a group. Whether there is one is asked at start, for the file may be checked on another machine.
fn group(value: &Value<'_>, faults: &mut Faults<'_>) -> Option<String> {
    let text = value.text(faults)?;
    let is_name = (1..=MAX_GROUP_LEN).contains(&text.value.len());
    if is_name && !text.value.contains([':', '\0', '\n']) {
        return Some(text.value.to_owned());
    }
    let message = format!("{} is no name of a group", quoted(text.value));
    let help = format!(
        "write the name of a group of this system: {}",
        CONTROL_GROUP.example
    );
    faults.add(Fault::new(&text.span, message).help(help));
    None
}

/// An absolute path of at most `max_len` bytes.
fn path(value: &Value<'_>, max_len: usize, faults: &mut Faults<'_>) -> Option<PathBuf> {
    let text = value.text(faults)?;
    let (message, help) = if !text.value.starts_with('/') {
        let message = format!("{} is not an absolute path", quoted(text.value));
        (message, "write a path that begins with /".to_owned())
    } else if text.value.contains('\0') {
        (
            format!("{} has a NUL in it", quoted(text.value)),
            "write it without the NUL".to_owned(),
        )
    } else if text.value.len() > max_len {
        let message = format!(
            "the path has {} bytes, and a socket's at most {max_len}",
            text.value.len()
        );
        (
            message,
            format!("write a shorter path: {}", CONTROL_SOCKET.example),
        )
    } else {
        return Some(PathBuf::from(text.value));
    };
    faults.add(Fault::new(&text.span, message).help(help));
    None
}
