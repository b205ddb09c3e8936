//! Makes the next policy of a running gateway, on a thread of its own: reading and compiling 60,000 tunnels takes seconds, in
//! which sequence numbers have to be leased and clients answered.
//!
//! One thing is made after the other, and each from what was in force when the one before had been taken up.

pub mod report;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use tracing::error;

use crate::control::keeper::{StartError, Starter, Unknown};
use crate::control::pairs::{ReadyPair, make_ready};
use crate::control::peers::Peers;
use crate::control::rows::{Refusals, Rows};
use crate::ids::{SaIndex, TunnelIndex};
use crate::ipsec::traffic::Direction;
use crate::policy::compile::{Changes, Compiled, Topology, endpoint_sets};
use crate::policy::difference::Difference;
use crate::policy::edit::Edit;
use crate::policy::model::{EndpointSet, Policy, Tunnel};
use crate::policy::progress::{Phase, Progress};
use crate::policy::standing::{Departures, Standing, Step};
use crate::policy::{Secrets, Source, parse_watched, read, render};

/// The text of a policy, and where it is from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyText {
    /// The file. What is relative in the text starts at its directory.
    pub path: PathBuf,
    /// What stands in it, with what was changed since.
    pub text: String,
}

/// What a gateway runs by, and can come back to.
#[derive(Clone)]
pub struct InForce {
    /// The policy, its slots, and what is beside it.
    pub standing: Arc<Standing>,
    /// Its text.
    pub text: Arc<PolicyText>,
    /// What it came to.
    pub compiled: Arc<Compiled>,
    /// What of it was not started.
    pub refused: Arc<Refusals>,
}

/// What is to be made.
pub enum Wish {
    /// The policy in this file.
    Load(PathBuf),
    /// The policy in force with this change.
    Edit(Edit),
    /// What was in force before.
    Back(Box<InForce>),
    /// The policy in force, with these pairs sealing by themselves, and those gone for good.
    Settle {
        /// Pairs that others have sealed for.
        moved: Vec<SaIndex>,
        /// Pairs that have left.
        dropped: Vec<SaIndex>,
    },
}

/// What has been made, ready to be taken up.
pub struct Made {
    /// What will be in force.
    pub in_force: InForce,
    /// Which pairs come and go.
    pub step: Step,
    /// The pairs to be installed: those that come.
    pub pairs: Vec<ReadyPair>,
    /// What is different in what the policy came to.
    pub changes: Changes,
    /// What is different beside it.
    pub departures: Departures,
    /// Every pair; `None` where they are as they were.
    pub rows: Option<Rows>,
    /// The peers of the fresh pairs.
    pub peers: Peers,
    /// What is different, a line each.
    pub difference: Vec<String>,
}

/// How something is to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// To be looked at: no SA is started.
    ToLookAt,
    /// To be taken up, with keys of which there are records.
    WithKnownKeys,
    /// To be taken up; keys of which there is no record are fresh.
    WithFreshKeys,
}

struct Task {
    wish: Wish,
    how: How,
    now: InForce,
}

enum Order {
    Make(Box<Task>),
    /// To be freed here: what has 60,000 parts takes a while.
    Free(Box<dyn Send>),
}

/// Why nothing was made: every reason, as people read it.
pub type Refusal = String;

/// The thread.
pub struct Maker {
    orders: Option<Sender<Order>>,
    made: Receiver<Result<Box<Made>, Refusal>>,
    progress: Arc<Progress>,
    thread: Option<JoinHandle<()>>,
}

impl Maker {
    /// Starts the thread, on the cores that the calling one may use.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn start(secrets: Secrets, topology: Topology, starter: Starter) -> std::io::Result<Self> {
        let (orders, taken) = channel::<Order>();
        let (made, results) = channel();
        let progress = Arc::new(Progress::default());
        let shown = Arc::clone(&progress);
        let body = move || {
            for order in taken {
                let task = match order {
                    Order::Make(task) => task,
                    Order::Free(what) => {
                        drop(what);
                        continue;
                    }
                };
                let tools = Tools {
                    secrets: &secrets,
                    topology: &topology,
                    starter: &starter,
                    progress: &shown,
                };
                let result = make(*task, &tools);
                if made.send(result.map(Box::new)).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("policy".into())
            .spawn(body)?;
        Ok(Self {
            orders: Some(orders),
            made: results,
            progress,
            thread: Some(thread),
        })
    }

    /// Has `wish` made out of what is in force `now`. What is to be taken up has to be, for its SAs have been started.
    pub fn begin(&self, wish: Wish, how: How, now: InForce) {
        self.progress.begin(Phase::Waiting, 0);
        self.order(Order::Make(Box::new(Task { wish, how, now })));
    }

    /// Has something freed there.
    pub fn free(&self, what: impl Send + 'static) {
        self.order(Order::Free(Box::new(what)));
    }

    fn order(&self, order: Order) {
        // The thread ends after this does.
        let sent = self.orders.as_ref().map(|orders| orders.send(order));
        debug_assert!(matches!(sent, Some(Ok(()))), "the thread is there");
    }

    /// What was made since, or why nothing was.
    pub fn take(&self) -> Option<Result<Box<Made>, Refusal>> {
        match self.made.try_recv() {
            Ok(made) => Some(made),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                error!("the thread that reads policies has ended; please report this");
                Some(Err(
                    "the thread that reads policies has ended: stop and start the gateway".into(),
                ))
            }
        }
    }

    /// How far it is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the thread that reads policies has panicked");
        }
    }
}

/// What things are made with.
struct Tools<'a> {
    secrets: &'a Secrets,
    topology: &'a Topology,
    starter: &'a Starter,
    progress: &'a Progress,
}

fn make(task: Task, tools: &Tools<'_>) -> Result<Made, Refusal> {
    let Task { wish, how, now } = task;
    let progress = tools.progress;
    match wish {
        Wish::Load(path) => {
            progress.begin(Phase::Reading, 0);
            let text = read(&path).map_err(|error| error.render(false))?;
            let text = PolicyText { path, text };
            let policy = check(&text, tools)?;
            build(policy, (&now, text, None), how, tools)
        }
        Wish::Edit(edit) => {
            progress.begin(Phase::Reading, 0);
            let (text, names) = edit
                .apply(&now.text.text)
                .map_err(|error| format!("error: {error}\n"))?;
            let path = now.text.path.clone();
            let text = PolicyText { path, text };
            let policy = check(&text, tools).map_err(|refusal| {
                refusal
                    + "note: these are lines of the policy in force (`simplon policy show`) with what was given, not of the file\n"
            })?;
            build(policy, (&now, text, Some(&names)), how, tools)
        }
        Wish::Back(before) => {
            progress.begin(Phase::Comparing, 0);
            let policy = Arc::clone(before.standing.policy());
            let (standing, step) = now.standing.follow(Arc::clone(&policy));
            let difference = Difference::new(&policy, now.standing.policy());
            let rows = rows(&policy, &now.refused);
            Ok(Made {
                step,
                rows: Some(rows),
                difference: lines(&difference),
                ..made(standing, (&now, before.text), tools)
            })
        }
        Wish::Settle { moved, dropped } => {
            let standing = now.standing.settle(&moved, &dropped);
            let mut made = made(standing, (&now, Arc::clone(&now.text)), tools);
            let is_dropped = |slot: &SaIndex| dropped.contains(slot);
            if now.refused.keys().any(|(slot, _)| is_dropped(slot)) {
                let refused = Arc::make_mut(&mut made.in_force.refused);
                refused.retain(|(slot, _), _| !is_dropped(slot));
            }
            Ok(made)
        }
    }
}

/// What `standing` comes to, with nothing installed.
fn made(standing: Standing, (now, text): (&InForce, Arc<PolicyText>), tools: &Tools<'_>) -> Made {
    tools.progress.begin(Phase::Compiling, 0);
    let compiled = Compiled::new(standing.policy(), standing.beside(), tools.topology);
    Made {
        step: Step::default(),
        pairs: Vec::new(),
        changes: compiled.changes_from(&now.compiled),
        departures: standing.departures_from(&now.standing),
        rows: None,
        peers: Peers::default(),
        difference: Vec::new(),
        in_force: InForce {
            standing: Arc::new(standing),
            text,
            compiled: Arc::new(compiled),
            refused: Arc::clone(&now.refused),
        },
    }
}

/// The pairs of `policy`, and which of those that there are was refused.
fn rows(policy: &Policy, refused: &Refusals) -> Rows {
    let mut rows = Rows::new(policy);
    for ((slot, direction), reason) in refused {
        rows.refuse(*slot, *direction, reason.clone());
    }
    rows
}

fn check(text: &PolicyText, tools: &Tools<'_>) -> Result<Policy, Refusal> {
    let source = Source::new(&text.path, &text.text);
    parse_watched(&source, tools.secrets, tools.progress)
        .map_err(|errors| render(&errors, &source, false))
}

/// From a policy that was just read to all that it takes to go by it. With `names`, nothing else may be touched.
fn build(
    mut policy: Policy,
    (now, text, names): (&InForce, PolicyText, Option<&[String]>),
    how: How,
    tools: &Tools<'_>,
) -> Result<Made, Refusal> {
    tools.progress.begin(Phase::Comparing, 0);
    let standing = &now.standing;
    if let Err(obstacles) = standing.place(&mut policy) {
        let lines = obstacles.iter().map(|error| format!("error: {error}\n"));
        return Err(lines.collect());
    }
    let difference = Difference::new(&policy, standing.policy());
    if let Some(names) = names {
        refuse_untold(&difference, names, &text.path)?;
    }
    // The keys of what is new go into their SAs; the policy has none from here on.
    let old: HashSet<SaIndex> = standing.slots().chain(standing.gone_slots()).collect();
    let mut fresh = Vec::new();
    for (at, tunnel) in (0u32..).map(TunnelIndex).zip(&mut policy.tunnels) {
        for set in &mut tunnel.endpoints {
            let whole = set.take();
            if !old.contains(&set.slot) {
                fresh.push((at, whole));
            }
        }
    }
    let policy = Arc::new(policy);
    let (standing, step) = standing.follow(Arc::clone(&policy));
    let of_fresh: HashSet<SaIndex> = step.fresh.iter().copied().collect();
    let of_fresh = endpoint_sets(&policy).filter(|(slot, ..)| of_fresh.contains(slot));
    let made = Made {
        step,
        rows: Some(rows(&policy, &now.refused)),
        peers: Peers::of(of_fresh, Instant::now()),
        difference: lines(&difference),
        ..made(standing, (now, Arc::new(text)), tools)
    };
    // At the very end: what has been started is taken up.
    Ok(Made {
        pairs: start(&policy, &fresh, how, tools.starter)?,
        ..made
    })
}

/// Starts what is new. Where that is refused nothing has changed but records, of numbers that are skipped.
fn start(
    policy: &Policy,
    fresh: &[(TunnelIndex, EndpointSet)],
    how: How,
    starter: &Starter,
) -> Result<Vec<ReadyPair>, Refusal> {
    let unknown = match how {
        How::ToLookAt => return Ok(Vec::new()),
        How::WithKnownKeys => Unknown::Refuse,
        How::WithFreshKeys => Unknown::Declare,
    };
    let sets = fresh.iter().filter_map(|(at, set)| {
        let tunnel = policy.tunnels.get(at.index())?;
        Some((tunnel, set))
    });
    let sets: Vec<(&Tunnel, &EndpointSet)> = sets.collect();
    let count = endpoint_sets(policy).count();
    make_ready(&sets, starter, (unknown, count)).map_err(|error| match error {
        StartError::NoState(reason) => format!("error: no SA can be started: {reason}\n"),
        StartError::Unknown(places) => unknown_keys(&sets, &places),
    })
}

/// Names the SAs whose keys nobody knows; `places` are as of [`make_ready`].
fn unknown_keys(sets: &[(&Tunnel, &EndpointSet)], places: &[usize]) -> Refusal {
    let line = |place: &usize| {
        let (tunnel, set) = sets.get(place / 2)?;
        let (direction, spi) = match place % 2 {
            0 => (Direction::Outbound, set.outbound.spi),
            _ => (Direction::Inbound, set.inbound.spi),
        };
        let (direction, name) = (direction.name(), &tunnel.name);
        Some(format!(
            "error: no record of the key of the {direction} SA {spi} of tunnel \"{name}\"\n"
        ))
    };
    let lines: String = places.iter().filter_map(line).collect();
    lines
        + "help: if these keys have never sealed a packet, load with --fresh-keys; if they have, give both ends new ones\n"
}

/// A key file that has changed since must not change a tunnel that nobody named.
fn refuse_untold(difference: &Difference, names: &[String], path: &Path) -> Result<(), Refusal> {
    let is_named = |name: &&str| !names.iter().any(|named| named == name);
    let untold: Vec<&str> = difference.names().filter(is_named).collect();
    if untold.is_empty() {
        return Ok(());
    }
    Err(format!(
        "error: {} would change too, for its keys are others now than when {} was loaded: load the whole file, or put the keys \
         back\n",
        untold.join(", "),
        path.display()
    ))
}

fn lines(difference: &Difference) -> Vec<String> {
    let text = difference.to_string();
    text.lines().map(str::to_owned).collect()
}

#[cfg(test)]
#[path = "change/tests.rs"]
mod tests;
