//! Changes the policy of a gateway that carries traffic: what a change does not name is not touched.
//!
//! A change is made on a thread of its own ([`crate::control::change`]) and taken up here in turns of the control thread: SAs
//! first, then the tables in one store, so that workers see all of it or nothing. Pairs that take the place of others open at once
//! and seal once the peer has used its own, or some time has passed; the others open on for a while and leave then.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use super::records::Records;
use crate::control::change::report::{
    ChangeKind, ChangeSettings, JobReport, JobState, PolicyTextReport,
};
use crate::control::change::{How, InForce, Made, Maker, PolicyText, Wish};
use crate::control::events::{Event, EventQueue, PolicyChange};
use crate::control::protocol::{ApiError, REFUSED};
use crate::ids::SaIndex;
use crate::ipsec::sad::Sad;
use crate::policy::compile::{Changes, Compiled};
use crate::policy::edit::Edit;
use crate::policy::model::Policy;
use crate::policy::progress::{Phase, permille};
use crate::policy::standing::Standing;
use crate::rcu::Writer;

/// Pairs installed in one turn of the control thread.
const PAIRS_PER_TURN: usize = 512;
/// Time between two looks at pairs that take the place of others, or leave.
const SETTLE_INTERVAL: Duration = Duration::from_millis(20);
/// Changes that may wait.
const QUEUE: usize = 64;
/// Jobs that are remembered.
const REMEMBERED: usize = 256;

/// The policy of a running gateway, and what is being made of it.
pub struct Live {
    in_force: InForce,
    maker: Maker,
    /// Rises with each policy that comes into force.
    generation: u64,
    waiting: VecDeque<Asked>,
    current: Option<Current>,
    jobs: VecDeque<JobReport>,
    last_job: u64,
    pending: Option<Pending>,
    /// Pairs that others seal for.
    moves: BTreeMap<SaIndex, Move>,
    /// When pairs leave that the policy names no more.
    leaves: BTreeMap<SaIndex, Instant>,
    /// When it was last looked whether any of that is due.
    looked: Instant,
    /// What was gone by before, and is in tables that workers may still hold: the last to let it go has to free it, which is to
    /// be the other thread.
    garbage: Vec<Arc<Compiled>>,
}

/// Goes by what a policy came to, with these changes from what there was before. Returns that.
pub type Adopt<'a> = dyn FnMut(Arc<Compiled>, &Changes, &mut Writer) -> Arc<Compiled> + 'a;

/// What a turn works on.
pub struct Parts<'a> {
    /// The SAs.
    pub sad: &'a Sad,
    /// The right to replace them.
    pub writer: &'a mut Writer,
    /// What is kept of each.
    pub records: &'a mut Records,
    /// Goes by another policy from now on: it is published when this returns, with what was gone by before.
    pub adopt: &'a mut Adopt<'a>,
    /// Where it is told.
    pub events: &'a EventQueue,
}

struct Asked {
    /// The job; none where nobody asked.
    job: Option<(u64, ChangeKind)>,
    wish: Wish,
    settings: ChangeSettings,
}

struct Current {
    job: Option<(u64, ChangeKind)>,
    settings: ChangeSettings,
    settled: (Vec<SaIndex>, Vec<SaIndex>),
    /// Time of this thread that went into it.
    spent: Duration,
    stage: Stage,
}

enum Stage {
    Making,
    /// So many of its pairs are installed.
    Installing(Box<Made>, usize),
}

/// What is come back to unless a change is confirmed.
struct Pending {
    before: InForce,
    until: Instant,
}

/// When a pair begins to seal.
#[derive(Clone, Copy)]
struct Move {
    at_latest: Instant,
    grace: Duration,
}

impl Live {
    /// A gateway that runs by `in_force`.
    pub fn new(in_force: InForce, maker: Maker) -> Self {
        Self {
            in_force,
            maker,
            generation: 1,
            waiting: VecDeque::new(),
            current: None,
            jobs: VecDeque::new(),
            last_job: 0,
            pending: None,
            moves: BTreeMap::new(),
            leaves: BTreeMap::new(),
            looked: Instant::now(),
            garbage: Vec::new(),
        }
    }

    /// The policy in force, without its keys.
    pub fn policy(&self) -> &Policy {
        self.in_force.standing.policy()
    }

    /// The policy in force, with what is beside it.
    pub fn standing(&self) -> &Standing {
        &self.in_force.standing
    }

    /// Whether there is more to do at once.
    pub fn is_busy(&self) -> bool {
        let is_installing = |current: &Current| matches!(current.stage, Stage::Installing(..));
        self.current.as_ref().is_some_and(is_installing)
    }

    /// Asks for the policy in the file at `path`; or, with `ChangeKind::Diff`, what is different in it. Returns the job.
    ///
    /// # Errors
    /// Where another change waits to be confirmed, or too many are waiting.
    pub fn load(
        &mut self,
        path: PathBuf,
        kind: ChangeKind,
        settings: ChangeSettings,
    ) -> Result<JobReport, ApiError> {
        self.ask(kind, Wish::Load(path), settings)
    }

    /// Asks for the file again that the policy in force is from.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn reload(&mut self) -> Result<JobReport, ApiError> {
        let path = self.in_force.text.path.clone();
        self.load(path, ChangeKind::Load, ChangeSettings::default())
    }

    /// Asks for a change of the policy in force.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn edit(&mut self, edit: Edit, settings: ChangeSettings) -> Result<JobReport, ApiError> {
        let kind = match edit {
            Edit::Add(_) => ChangeKind::Add,
            Edit::Remove(_) => ChangeKind::Remove,
            Edit::Replace(_) => ChangeKind::Replace,
        };
        self.ask(kind, Wish::Edit(edit), settings)
    }

    fn ask(
        &mut self,
        kind: ChangeKind,
        wish: Wish,
        settings: ChangeSettings,
    ) -> Result<JobReport, ApiError> {
        let waits = self.waiting.iter().map(|asked| &asked.settings);
        let waits = waits.chain(self.current.as_ref().map(|current| &current.settings));
        let is_pending = self.pending.is_some() || waits.clone().any(|one| one.confirm_s.is_some());
        if is_pending && kind != ChangeKind::Diff {
            return Err(ApiError::new(
                REFUSED,
                "a change waits to be confirmed: `simplon policy confirm` keeps it, `simplon policy rollback` takes it back",
            ));
        }
        if self.waiting.len() >= QUEUE {
            let message =
                format!("{QUEUE} changes are waiting: try again when some of them are done");
            return Err(ApiError::new(REFUSED, message));
        }
        Ok(self.enqueue(kind, wish, settings))
    }

    fn enqueue(&mut self, kind: ChangeKind, wish: Wish, settings: ChangeSettings) -> JobReport {
        self.last_job += 1;
        let job = self.last_job;
        let report = JobReport {
            job,
            what: kind,
            state: JobState::Running,
            phase: Phase::Waiting.name().into(),
            permille: 0,
            generation: None,
            control_us: None,
            difference: Vec::new(),
            error: None,
            confirm_within_s: None,
        };
        self.waiting.push_back(Asked {
            job: Some((job, kind)),
            wish,
            settings,
        });
        self.jobs.push_back(report.clone());
        if self.jobs.len() > REMEMBERED {
            self.jobs.pop_front();
        }
        report
    }

    /// How far a job is.
    ///
    /// # Errors
    /// Where nobody remembers it.
    pub fn job(&self, job: u64) -> Result<JobReport, ApiError> {
        let found = self.jobs.iter().find(|report| report.job == job);
        let Some(mut report) = found.cloned() else {
            let message = format!("no job {job} is remembered; the last {REMEMBERED} are");
            return Err(ApiError::new(REFUSED, message));
        };
        let current = self.current.as_ref();
        if let Some(current) = current.filter(|current| current.job.map(|(at, _)| at) == Some(job))
        {
            match &current.stage {
                Stage::Making => {
                    let progress = self.maker.progress();
                    report.phase = progress.phase().name().into();
                    report.permille = progress.permille();
                }
                Stage::Installing(made, done) => {
                    report.phase = Phase::Installing.name().into();
                    report.permille = permille(*done, done + made.pairs.len());
                }
            }
        }
        Ok(report)
    }

    /// The policy in force as text.
    pub fn text(&self, now: Instant) -> PolicyTextReport {
        let PolicyText { path, text } = (*self.in_force.text).clone();
        PolicyTextReport {
            path,
            text,
            generation: self.generation,
            confirm_within_s: self.confirm_within_s(now),
        }
    }

    fn confirm_within_s(&self, now: Instant) -> Option<u64> {
        let pending = self.pending.as_ref()?;
        Some(pending.until.saturating_duration_since(now).as_secs())
    }

    /// Keeps the change that waits for it. Returns the number of the policy in force.
    ///
    /// # Errors
    /// Where none does.
    pub fn confirm(&mut self, events: &EventQueue) -> Result<u64, ApiError> {
        match self.pending.take() {
            Some(pending) => {
                self.maker.free(pending);
                self.tell(PolicyChange::Confirmed, events);
                Ok(self.generation)
            }
            None => Err(nothing_pending()),
        }
    }

    /// Takes back the change that waits to be confirmed.
    ///
    /// # Errors
    /// Where none does.
    pub fn roll_back(&mut self) -> Result<JobReport, ApiError> {
        let pending = self.pending.take().ok_or_else(nothing_pending)?;
        let back = Wish::Back(Box::new(pending.before));
        Ok(self.enqueue(ChangeKind::RollBack, back, ChangeSettings::default()))
    }

    /// One turn. Call it many times a second.
    pub fn turn(&mut self, parts: &mut Parts<'_>, now: Instant) {
        if self
            .pending
            .as_ref()
            .is_some_and(|pending| pending.until <= now)
        {
            warn!("the change of the policy was not confirmed in time: it is rolled back");
            // It is pending.
            let _ = self.roll_back();
        }
        if !self.garbage.is_empty() && parts.writer.reclaim() == 0 {
            self.maker.free(std::mem::take(&mut self.garbage));
        }
        match self.current.take() {
            None => self.begin(parts, now),
            Some(current) => self.go_on(current, parts, now),
        }
    }

    fn begin(&mut self, parts: &Parts<'_>, now: Instant) {
        let began = Instant::now();
        let asked = self.waiting.pop_front().or_else(|| self.settle(parts, now));
        let Some(Asked {
            job,
            wish,
            settings,
        }) = asked
        else {
            return;
        };
        let settled = match &wish {
            Wish::Settle { moved, dropped } => (moved.clone(), dropped.clone()),
            _ => Default::default(),
        };
        let how = match job {
            Some((_, ChangeKind::Diff)) => How::ToLookAt,
            _ if settings.fresh_keys => How::WithFreshKeys,
            _ => How::WithKnownKeys,
        };
        let in_force = self.in_force.clone();
        // From here on the other thread may have this one's core.
        let spent = began.elapsed();
        self.maker.begin(wish, how, in_force);
        self.current = Some(Current {
            job,
            settings,
            settled,
            spent,
            stage: Stage::Making,
        });
    }

    /// What is due of pairs that take the place of others.
    fn settle(&mut self, parts: &Parts<'_>, now: Instant) -> Option<Asked> {
        if now.saturating_duration_since(self.looked) < SETTLE_INTERVAL {
            return None;
        }
        self.looked = now;
        let has_opened = |slot: &SaIndex| {
            let sa = parts.sad.inbound().get_owned(parts.writer, slot.index());
            sa.is_some_and(|sa| sa.counters().packets() > 0)
        };
        // What seals no more is not waited for.
        let is_over = |slot: &SaIndex| {
            let by = self.in_force.standing.beside().seals_by(*slot);
            let sa = parts.sad.outbound().get_owned(parts.writer, by.index());
            sa.is_none_or(|sa| sa.is_stopped() || sa.seq().is_exhausted())
        };
        let moves = self.moves.iter();
        let due =
            moves.filter(|(slot, due)| due.at_latest <= now || has_opened(slot) || is_over(slot));
        let moved: Vec<SaIndex> = due.map(|(slot, _)| *slot).collect();
        let may_leave = |slot: &SaIndex| self.leaves.get(slot).is_some_and(|at| *at <= now);
        let dropped: Vec<SaIndex> = match self.pending {
            // They are what is come back to.
            Some(_) => Vec::new(),
            None if !self.leaves.values().any(|at| *at <= now) => Vec::new(),
            None => self.in_force.standing.leaving().filter(may_leave).collect(),
        };
        let is_due = !moved.is_empty() || !dropped.is_empty();
        is_due.then(|| Asked {
            job: None,
            wish: Wish::Settle { moved, dropped },
            settings: ChangeSettings::default(),
        })
    }

    fn go_on(&mut self, mut current: Current, parts: &mut Parts<'_>, now: Instant) {
        let began = Instant::now();
        let stage = std::mem::replace(&mut current.stage, Stage::Making);
        current.stage = match stage {
            Stage::Making => match self.maker.take() {
                // A look whether there is something to do is none of the change's time.
                None => {
                    self.current = Some(current);
                    return;
                }
                Some(Err(refusal)) => return self.refuse(&current, refusal),
                Some(Ok(made)) if matches!(current.job, Some((_, ChangeKind::Diff))) => {
                    return self.end(&current, made, now);
                }
                Some(Ok(made)) => Stage::Installing(made, 0),
            },
            Stage::Installing(mut made, done) if !made.pairs.is_empty() => {
                // From the end, so that nothing has to move up.
                let first = made.pairs.len().saturating_sub(PAIRS_PER_TURN);
                let done = done + made.pairs.len() - first;
                for pair in made.pairs.drain(first..) {
                    let sad = (parts.sad, &mut *parts.writer);
                    parts.records.install(pair, sad);
                }
                Stage::Installing(made, done)
            }
            Stage::Installing(made, _) => {
                let made = self.take_up(made, &current, parts, now);
                current.spent += began.elapsed();
                return self.end(&current, made, now);
            }
        };
        current.spent += began.elapsed();
        self.current = Some(current);
    }

    fn refuse(&mut self, current: &Current, refusal: String) {
        let Some((job, _)) = current.job else {
            // Nobody asked, and nothing of it can be wrong.
            error!("{refusal}");
            return;
        };
        let first = refusal.lines().next().unwrap_or_default();
        let first = first.strip_prefix("error: ").unwrap_or(first);
        error!(job, "the policy stays as it is: {first}");
        if let Some(report) = self.report_mut(job) {
            report.state = JobState::Refused;
            report.error = Some(refusal);
        }
    }

    fn report_mut(&mut self, job: u64) -> Option<&mut JobReport> {
        self.jobs.iter_mut().rev().find(|report| report.job == job)
    }

    /// Notes that a job is done.
    fn end(&mut self, current: &Current, mut made: Box<Made>, now: Instant) {
        let difference = std::mem::take(&mut made.difference);
        self.maker.free(made);
        let (generation, within) = (self.generation, self.confirm_within_s(now));
        let Some((job, kind)) = current.job else {
            return;
        };
        if let Some(report) = self.report_mut(job) {
            report.state = JobState::Done;
            report.difference = difference;
            if kind != ChangeKind::Diff {
                report.control_us = u64::try_from(current.spent.as_micros()).ok();
                report.generation = Some(generation);
                report.confirm_within_s = within;
            }
        }
    }

    /// Goes by what was made, all of whose pairs are installed. Returns what is left of it, to be freed.
    fn take_up(
        &mut self,
        made: Box<Made>,
        current: &Current,
        parts: &mut Parts<'_>,
        now: Instant,
    ) -> Box<Made> {
        let mut made = made;
        let records = &mut *parts.records;
        let sad = parts.sad;
        if let Some(rows) = made.rows.take() {
            made.rows = Some(std::mem::replace(&mut records.rows, rows));
            for slot in &made.step.fresh {
                if let Some(row) = records.rows.get(*slot) {
                    records.paths.add(row, sad, parts.writer);
                }
            }
        }
        records.peers.add(std::mem::take(&mut made.peers));
        let compiled = Arc::clone(&made.in_force.compiled);
        let before = (parts.adopt)(compiled, &made.changes, parts.writer);
        self.garbage.push(before);
        std::mem::swap(&mut self.in_force, &mut made.in_force);
        let (moved, dropped) = &current.settled;
        parts
            .records
            .drop_pairs(dropped, (parts.sad, &mut *parts.writer));
        self.schedule(&made, (moved, &current.settings), now);
        let Some((job, kind)) = current.job else {
            return made;
        };
        self.generation += 1;
        if let Some(seconds) = current.settings.confirm_s {
            self.pending = Some(Pending {
                before: made.in_force.clone(),
                until: now + Duration::from_secs(seconds.into()),
            });
        }
        let (policy, fresh) = (self.generation, made.step.fresh.len());
        let left = made.step.left.len();
        info!(job, policy, fresh, left, "another policy is in force");
        self.tell(kind.into(), parts.events);
        made
    }

    /// Notes when pairs that came with it begin to seal, and when those that it does not name leave.
    fn schedule(
        &mut self,
        made: &Made,
        (moved, settings): (&[SaIndex], &ChangeSettings),
        now: Instant,
    ) {
        let departures = &made.departures;
        let graces = moved
            .iter()
            .filter_map(|slot| Some(self.moves.get(slot)?.grace));
        let longest = graces.max();
        let grace = Duration::from_secs(settings.grace_s.into());
        for slot in &departures.by_themselves {
            self.moves.remove(slot);
        }
        for slot in &departures.sealed_for {
            let after = Duration::from_secs(settings.outbound_after_s.into());
            let at_latest = now + after;
            self.moves.insert(*slot, Move { at_latest, grace });
        }
        for slot in &departures.over {
            self.leaves.remove(slot);
        }
        for (slot, is_replaced) in &departures.idle {
            // Nothing comes for a tunnel that is gone.
            let grace = match is_replaced {
                true => longest.unwrap_or(grace),
                false => Duration::ZERO,
            };
            self.leaves.entry(*slot).or_insert(now + grace);
        }
    }

    fn tell(&self, what: PolicyChange, events: &EventQueue) {
        events.emit(Event::Policy {
            what,
            generation: self.generation,
        });
    }
}

fn nothing_pending() -> ApiError {
    ApiError::new(REFUSED, "no change waits to be confirmed")
}
