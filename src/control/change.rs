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

use crate::control::peers::Peers;
use crate::control::rows::Rows;
use crate::crypto::aead::KeyFingerprint;
use crate::ids::{SaIndex, TunnelIndex};
use crate::policy::compile::{Compiled, Topology, endpoint_sets};
use crate::policy::difference::Difference;
use crate::policy::edit::Edit;
use crate::policy::model::{EndpointSet, Policy};
use crate::policy::progress::{Phase, Progress};
use crate::policy::standing::{Standing, Step};
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
    pub standing: Standing,
    /// Its text.
    pub text: Arc<PolicyText>,
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
    /// The pairs to be installed, with their keys.
    pub pairs: Vec<FreshPair>,
    /// What the policy came to.
    pub compiled: Compiled,
    /// Every pair; `None` where they are as they were.
    pub rows: Option<Rows>,
    /// The peers of the fresh pairs.
    pub peers: Peers,
    /// What is different, a line each.
    pub difference: Vec<String>,
}

/// An SA pair that is to be made.
pub struct FreshPair {
    /// The tunnel it belongs to.
    pub tunnel: TunnelIndex,
    /// What it is made of.
    pub set: EndpointSet,
}

impl FreshPair {
    /// What names its keys: of the outbound half and of the inbound half.
    pub fn fingerprints(&self) -> (KeyFingerprint, KeyFingerprint) {
        let set = &self.set;
        (
            set.outbound.key.fingerprint(),
            set.inbound.key.fingerprint(),
        )
    }
}

struct Task {
    wish: Wish,
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
    pub fn start(secrets: Secrets, topology: Topology) -> std::io::Result<Self> {
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
                let result = make(*task, &secrets, &topology, &shown);
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

    /// Has `wish` made out of what is in force `now`.
    pub fn begin(&self, wish: Wish, now: InForce) {
        self.progress.begin(Phase::Waiting, 0);
        self.order(Order::Make(Box::new(Task { wish, now })));
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

fn make(
    task: Task,
    secrets: &Secrets,
    topology: &Topology,
    progress: &Progress,
) -> Result<Made, Refusal> {
    let Task { wish, now } = task;
    match wish {
        Wish::Load(path) => {
            progress.begin(Phase::Reading, 0);
            let text = read(&path).map_err(|error| error.render(false))?;
            let text = PolicyText { path, text };
            let policy = check(&text, secrets, progress)?;
            build(policy, (&now, text, None), topology, progress)
        }
        Wish::Edit(edit) => {
            progress.begin(Phase::Reading, 0);
            let (text, names) = edit
                .apply(&now.text.text)
                .map_err(|error| format!("error: {error}\n"))?;
            let path = now.text.path.clone();
            let text = PolicyText { path, text };
            let policy = check(&text, secrets, progress).map_err(|refusal| {
                refusal
                    + "note: these are lines of the policy in force (`simplon policy show`) with what was given, not of the file\n"
            })?;
            build(policy, (&now, text, Some(&names)), topology, progress)
        }
        Wish::Back(before) => {
            progress.begin(Phase::Comparing, 0);
            let policy = Arc::clone(before.standing.policy());
            let (standing, step) = now.standing.follow(Arc::clone(&policy));
            let difference = Difference::new(&policy, now.standing.policy());
            let rows = Rows::new(&policy);
            progress.begin(Phase::Compiling, 0);
            let text = before.text;
            Ok(Made {
                compiled: Compiled::new(&policy, standing.beside(), topology),
                in_force: InForce { standing, text },
                step,
                pairs: Vec::new(),
                rows: Some(rows),
                peers: Peers::default(),
                difference: lines(&difference),
            })
        }
        Wish::Settle { moved, dropped } => {
            progress.begin(Phase::Compiling, 0);
            let standing = now.standing.settle(&moved, &dropped);
            Ok(Made {
                compiled: Compiled::new(standing.policy(), standing.beside(), topology),
                in_force: InForce {
                    standing,
                    text: now.text,
                },
                step: Step::default(),
                pairs: Vec::new(),
                rows: None,
                peers: Peers::default(),
                difference: Vec::new(),
            })
        }
    }
}

fn check(text: &PolicyText, secrets: &Secrets, progress: &Progress) -> Result<Policy, Refusal> {
    let source = Source::new(&text.path, &text.text);
    parse_watched(&source, secrets, progress).map_err(|errors| render(&errors, &source, false))
}

/// From a policy that was just read to all that it takes to go by it. With `names`, nothing else may be touched.
fn build(
    mut policy: Policy,
    (now, text, names): (&InForce, PolicyText, Option<&[String]>),
    topology: &Topology,
    progress: &Progress,
) -> Result<Made, Refusal> {
    progress.begin(Phase::Comparing, 0);
    let standing = &now.standing;
    if let Err(obstacles) = standing.place(&mut policy) {
        let lines = obstacles.iter().map(|error| format!("error: {error}\n"));
        return Err(lines.collect());
    }
    let difference = Difference::new(&policy, standing.policy());
    if let Some(names) = names {
        refuse_untold(&difference, names, &text.path)?;
    }
    // The keys of what is new go with the pairs; the policy has none from here on.
    let old: HashSet<SaIndex> = standing.slots().chain(standing.gone_slots()).collect();
    let mut pairs = Vec::new();
    for (at, tunnel) in (0u32..).map(TunnelIndex).zip(&mut policy.tunnels) {
        for set in &mut tunnel.endpoints {
            let whole = set.take();
            if !old.contains(&set.slot) {
                pairs.push(FreshPair {
                    tunnel: at,
                    set: whole,
                });
            }
        }
    }
    let rows = Rows::new(&policy);
    let policy = Arc::new(policy);
    let (standing, step) = standing.follow(Arc::clone(&policy));
    let fresh: HashSet<SaIndex> = step.fresh.iter().copied().collect();
    let of_fresh = endpoint_sets(&policy).filter(|(slot, ..)| fresh.contains(slot));
    let peers = Peers::of(of_fresh, Instant::now());
    progress.begin(Phase::Compiling, 0);
    Ok(Made {
        compiled: Compiled::new(&policy, standing.beside(), topology),
        in_force: InForce {
            standing,
            text: Arc::new(text),
        },
        step,
        pairs,
        rows: Some(rows),
        peers,
        difference: lines(&difference),
    })
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
