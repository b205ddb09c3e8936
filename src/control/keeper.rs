//! The thread that alone writes the state of sequence numbers: whoever asks it goes on meanwhile, however long a disk takes.
//!
//! What it is asked for it does in the order in which that was asked, one write after the other. So who reads where an SA begins
//! reads what was asked for before; and an answer says that what was asked for is on disk.

use std::io;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;

use tracing::error;

use crate::control::state::{Started, Starting, StateError, StateFile};
use crate::crypto::aead::KeyFingerprint;
use crate::ids::SaIndex;
use crate::ipsec::traffic::Direction;

/// Why nothing is started where the thread is no more.
pub(super) const ENDED: &str =
    "the thread that writes sequence numbers has ended: stop and start the gateway";

/// A number of the SA in a slot, to be on disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Number {
    pub(super) slot: SaIndex,
    pub(super) direction: Direction,
    pub(super) key: KeyFingerprint,
    /// Outbound the first that is not leased, inbound the highest seen.
    pub(super) number: u64,
}

/// What became of numbers that were to be on disk: if an error, none of them may be relied on.
pub(super) type Written = (Vec<Number>, Result<(), StateError>);

/// What is done with keys of which there is no record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unknown {
    /// They are declared fresh: they have never sealed a packet.
    Declare,
    /// They are not started; the others are.
    LeaveOut,
    /// None is started.
    Refuse,
}

/// Why no SA was started.
#[derive(Debug)]
pub enum StartError {
    /// There is no state, or it cannot be written.
    NoState(String),
    /// The places of keys of which there is no record.
    Unknown(Vec<usize>),
}

/// Where each SA begins, or why it must not.
type Answer = Result<Vec<Result<Started, String>>, StartError>;

enum Order {
    Start {
        keys: Vec<Starting>,
        unknown: Unknown,
        answer: Sender<Answer>,
    },
    Raise(Vec<Number>),
    Settle(Vec<Number>),
    Stop,
}

/// The thread, as the one who extends leases has it.
pub(super) struct Keeper {
    orders: Sender<Order>,
    written: Receiver<Written>,
    thread: Option<JoinHandle<()>>,
}

/// The right to have SAs started, for any thread.
#[derive(Clone)]
pub struct Starter {
    /// Or why there is no state.
    orders: Result<Sender<Order>, String>,
}

impl Keeper {
    /// Gives the file to a thread of its own.
    ///
    /// # Errors
    /// Where the system refuses.
    pub(super) fn start(mut state: StateFile) -> io::Result<Self> {
        let (orders, taken) = channel();
        let (answers, written) = channel();
        let body = move || {
            for order in taken {
                let done = match order {
                    Order::Start {
                        keys,
                        unknown,
                        answer,
                    } => {
                        // Who asked may have ended.
                        let _ = answer.send(start(&mut state, &keys, unknown));
                        continue;
                    }
                    Order::Raise(numbers) => {
                        let done = state.raise(numbers.iter().map(number));
                        (numbers, done)
                    }
                    Order::Settle(numbers) => {
                        let exact: Vec<_> = numbers.iter().map(number).collect();
                        (numbers, state.commit(&exact))
                    }
                    Order::Stop => return,
                };
                if answers.send(done).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("state".into())
            .spawn(body)?;
        Ok(Self {
            orders,
            written,
            thread: Some(thread),
        })
    }

    pub(super) fn starter(&self) -> Starter {
        Starter {
            orders: Ok(self.orders.clone()),
        }
    }

    /// Has numbers written, where higher ones are not on disk. What became of it is [`Self::written`].
    pub(super) fn raise(&self, numbers: Vec<Number>) {
        self.order(Order::Raise(numbers));
    }

    /// Has numbers written as they are: of SAs that use no more.
    pub(super) fn settle(&self, numbers: Vec<Number>) {
        self.order(Order::Settle(numbers));
    }

    fn order(&self, order: Order) {
        // Where the thread has ended, who looks what was written is told.
        let _ = self.orders.send(order);
    }

    /// What became of what was asked for longest ago.
    ///
    /// # Errors
    /// `Empty` where that is not known yet, `Disconnected` where the thread has ended and it never will be.
    pub(super) fn written(&self) -> Result<Written, TryRecvError> {
        self.written.try_recv()
    }

    /// As [`Self::written`], and waits for it; `None` where the thread has ended.
    pub(super) fn wait(&self) -> Option<Written> {
        self.written.recv().ok()
    }

    /// Ends the thread: when this returns, the file is closed.
    pub(super) fn end(&mut self) {
        // A starter may outlive this, so that the thread has to be told.
        let _ = self.orders.send(Order::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the thread that writes sequence numbers has panicked");
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.end();
    }
}

impl Starter {
    /// One that starts nothing, for this reason.
    pub(super) fn without_state(reason: String) -> Self {
        Self {
            orders: Err(reason),
        }
    }

    /// Where SAs with these keys begin, in their order: when this returns, their records and their first leases are on disk.
    /// One write for all. Waits for it.
    ///
    /// # Errors
    /// [`StartError`]; none may begin then, and at most there are records that skip numbers.
    pub fn start(
        &self,
        keys: Vec<Starting>,
        unknown: Unknown,
    ) -> Result<Vec<Result<Started, String>>, StartError> {
        let orders = self.orders.clone().map_err(StartError::NoState)?;
        let (answer, answered) = channel();
        let order = Order::Start {
            keys,
            unknown,
            answer,
        };
        let ended = || StartError::NoState(ENDED.into());
        orders.send(order).map_err(|_| ended())?;
        answered.recv().map_err(|_| ended())?
    }
}

fn number(number: &Number) -> (Direction, KeyFingerprint, u64) {
    (number.direction, number.key, number.number)
}

fn start(state: &mut StateFile, keys: &[Starting], unknown: Unknown) -> Answer {
    let known = |own: &Starting| {
        let number = state.number(own.direction, own.key);
        number.map(drop).map_err(|error| error.to_string())
    };
    let found: Vec<Result<(), String>> = match unknown {
        Unknown::Declare => keys.iter().map(|_| Ok(())).collect(),
        Unknown::LeaveOut | Unknown::Refuse => keys.iter().map(known).collect(),
    };
    let places = found.iter().enumerate().filter(|(_, found)| found.is_err());
    let wanting: Vec<usize> = places.map(|(at, _)| at).collect();
    if unknown == Unknown::Refuse && !wanting.is_empty() {
        return Err(StartError::Unknown(wanting));
    }
    let to_start = keys.iter().zip(&found).filter(|(_, found)| found.is_ok());
    let to_start: Vec<Starting> = to_start.map(|(own, _)| *own).collect();
    let started = state
        .start(&to_start)
        .map_err(|error| StartError::NoState(error.to_string()))?;
    let mut started = started.into_iter();
    let answer = found.into_iter().filter_map(|found| match found {
        Ok(()) => started.next().map(Ok),
        Err(reason) => Some(Err(reason)),
    });
    Ok(answer.collect())
}
