//! Threads and cores. Workers are std threads that pin themselves and register with EAL; EAL's own lcore threads are
//! not used, so that workers have join handles and may borrow.

use std::marker::PhantomData;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::error::{DpdkError, Errno};
use super::sys;

/// The cores that the calling thread may run on, in order. Empty where the kernel does not say.
pub fn allowed_cores() -> Vec<usize> {
    sched_getaffinity(None).map_or_else(
        |_| Vec::new(),
        |set| {
            (0..CpuSet::MAX_CPU)
                .filter(|core| set.is_set(*core))
                .collect()
        },
    )
}

/// Keeps the calling thread, and the threads it makes from now on, on `core`.
///
/// # Errors
/// [`DpdkError::Core`], with the thread where it was.
pub fn pin_current_thread(core: usize) -> Result<(), DpdkError> {
    let refused = |errno: rustix::io::Errno| DpdkError::Core {
        core,
        allowed: allowed_cores(),
        errno: Errno(errno.raw_os_error()),
    };
    if core >= CpuSet::MAX_CPU {
        return Err(refused(rustix::io::Errno::INVAL));
    }
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).map_err(refused)
}

/// Keeps the calling thread, and the threads it makes from now on, off `cores`, as far as it may run on any other: what
/// workers share with nobody, nobody takes from them. A thread it makes may still pin itself to one of them.
pub fn keep_off(cores: &[usize]) {
    let mut others = CpuSet::new();
    for core in allowed_cores() {
        if !cores.contains(&core) {
            others.set(core);
        }
    }
    if others.count() > 0 {
        // Where the kernel refuses, all is as before.
        let _ = sched_setaffinity(None, &others);
    }
}

/// Says that EAL runs, on any thread: what a worker needs to register.
#[derive(Clone, Copy, Debug)]
pub struct Threads<'eal> {
    // INVARIANT: made by `Eal::threads` only, so EAL runs for `'eal`.
    _eal: PhantomData<&'eal ()>,
}

impl Threads<'_> {
    pub(super) fn new() -> Self {
        Self { _eal: PhantomData }
    }
}

/// Makes the calling thread an lcore for as long as it lives, which gives it a cache in every mempool.
///
/// Everything works without it, with slower mempools. EAL has 128 places. The thread's core is not changed: pin before.
/// The mbufs in a cache stay there when the thread goes, and serve the next one that gets its place.
#[derive(Debug)]
pub struct ThreadRegistration<'eal> {
    /// Not `Send`: the place belongs to this thread.
    _thread: PhantomData<*mut ()>,
    _eal: PhantomData<&'eal ()>,
}

impl<'eal> ThreadRegistration<'eal> {
    /// Registers the calling thread.
    ///
    /// # Errors
    /// [`DpdkError::ThreadRegistered`] for EAL's own thread and for one that is registered; [`DpdkError::Call`] where
    /// there is no place left.
    pub fn new(_eal: Threads<'eal>) -> Result<Self, DpdkError> {
        // SAFETY: reads a thread-local of the calling thread.
        if unsafe { sys::gw_lcore_id() } != sys::GW_LCORE_ID_ANY {
            return Err(DpdkError::ThreadRegistered);
        }
        // SAFETY: EAL runs, as `Threads` says, and this thread has no lcore id yet, as was just seen.
        if unsafe { sys::rte_thread_register() } < 0 {
            return Err(DpdkError::Call {
                call: "rte_thread_register",
                what: "a worker".into(),
                errno: Errno::last(),
            });
        }
        Ok(Self {
            _thread: PhantomData,
            _eal: PhantomData,
        })
    }
}

impl Drop for ThreadRegistration<'_> {
    fn drop(&mut self) {
        // SAFETY: this thread registered (the only constructor, and the type is not `Send`), and EAL runs for `'eal`.
        unsafe { sys::rte_thread_unregister() }
    }
}

/// The core's cycle counter: [`super::Eal::tsc_hz`] ticks a second, comparable between cores.
#[inline]
pub fn tsc() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has the instruction, and Linux lets user space use it.
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: reads a register; no memory is touched.
    unsafe {
        sys::gw_tsc()
    }
}
