//! DPDK behind types that safe code cannot misuse. Imports only `ids` and `buf`; `unsafe` stays in this folder.
//!
//! What keeps it sound, in one place:
//!
//! - [`Eal`] is started once in a process and stays on the thread that started it. Whatever DPDK made borrows it, so
//!   that `rte_eal_cleanup`, which unmaps all of DPDK's memory, runs after the last of them is gone.
//! - Pools and rings live until then: dropping a [`Mempool`] or a [`RingPair`] frees none of their memory. An [`Mbuf`] can
//!   therefore be anywhere, in a driver that is about to be closed too, and its memory is there.
//! - An [`Mbuf`] owns its packet, a [`Burst`] owns up to [`burst::CAPACITY`] of them. Sending moves them out.
//! - Ports are opened once each and stay on EAL's thread. Their queues go to the workers, each to one at a time.
//!
//! What follows does not compile. A packet that is kept longer than EAL:
//!
//! ```compile_fail,E0505
//! fn keep(eal: simplon::dpdk::Eal) {
//!     let pool = simplon::dpdk::Mempool::create(&eal, "pool", 1023, 2048, 0).unwrap();
//!     let packet = pool.alloc();
//!     drop(eal);
//!     drop(packet);
//! }
//! ```
//!
//! A port that is closed under a worker:
//!
//! ```compile_fail,E0505
//! fn close(port: simplon::dpdk::StartedPort<'_>) {
//!     let mut queues = port.queues();
//!     drop(port);
//!     queues.rx[0].rx_burst(&mut simplon::dpdk::Burst::new());
//! }
//! ```
//!
//! A queue that two threads poll:
//!
//! ```compile_fail,E0277
//! fn share(queue: &simplon::dpdk::RxQueue<'_>) {
//!     std::thread::scope(|scope| {
//!         scope.spawn(move || queue.queue());
//!     });
//! }
//! ```

mod bond;
pub mod burst;
pub mod eal;
pub mod error;
pub mod lcore;
pub mod mbuf;
pub mod mempool;
pub mod port;
pub mod ring;
pub mod rss;
mod sys;

pub use burst::Burst;
pub use eal::{Device, Eal, EalConfig, version};
pub use error::{DpdkError, Errno};
pub use lcore::{ThreadRegistration, Threads, allowed_cores, pin_current_thread, tsc};
pub use mbuf::Mbuf;
pub use mempool::Mempool;
pub use port::{
    Limits, Link, Port, PortSettings, PortStats, Queues, RxQueue, StartedPort, TxQueue,
};
pub use ring::{RingPair, ring_pair};
pub use rss::{Rss, softrss};
