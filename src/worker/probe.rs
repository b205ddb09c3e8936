//! Where the cycles go: a probe between stages, which costs nothing unless it is asked for.

use crate::meta::PacketMeta;

/// The stages of the packet path that are told apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Stage {
    /// Taking the burst from the driver.
    Rx,
    /// Ethernet and IP headers.
    Parse,
    /// What the packet is to this gateway.
    Classify,
    /// SPI to SA; inbound only.
    SaLookup,
    /// Sequence numbers: rebuilding and early replay check inbound, assignment outbound.
    Sequence,
    /// Policy: SPD lookup outbound, selector check inbound.
    Policy,
    /// ESP but for the cipher: building headers and trailer outbound; replay window, trailer and inner packet inbound.
    Header,
    /// AES-GCM, and the jobs for it.
    Aead,
    /// Next hop, TTL and Ethernet header.
    Route,
    /// Giving the burst to the driver.
    Tx,
    /// Freeing, punting and counting.
    Count,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Self; 11] = [
        Self::Rx,
        Self::Parse,
        Self::Classify,
        Self::SaLookup,
        Self::Sequence,
        Self::Policy,
        Self::Header,
        Self::Aead,
        Self::Route,
        Self::Tx,
        Self::Count,
    ];

    /// The name in `simplon show`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rx => "rx",
            Self::Parse => "parse",
            Self::Classify => "classify",
            Self::SaLookup => "sa-lookup",
            Self::Sequence => "sequence",
            Self::Policy => "policy",
            Self::Header => "header",
            Self::Aead => "aead",
            Self::Route => "route",
            Self::Tx => "tx",
            Self::Count => "count",
        }
    }
}

/// Told when a stage has ended.
pub trait Probe {
    /// A burst is about to be received.
    fn begin(&mut self);
    /// `stage` has just ended for the whole burst.
    fn mark(&mut self, stage: Stage);
    /// As [`Self::mark`], where it is known what became of the packets.
    #[inline(always)]
    fn passed(&mut self, stage: Stage, _metas: &[PacketMeta]) {
        self.mark(stage);
    }
}

/// Measures nothing, costs nothing.
pub struct NoProbe;

impl Probe for NoProbe {
    #[inline(always)]
    fn begin(&mut self) {}
    #[inline(always)]
    fn mark(&mut self, _stage: Stage) {}
}

/// Sums up clock ticks by stage.
pub struct CycleProbe {
    clock: fn() -> u64,
    last: u64,
    cycles: [u64; Stage::ALL.len()],
}

impl CycleProbe {
    /// Measures by `clock`, in its ticks.
    pub fn new(clock: fn() -> u64) -> Self {
        Self {
            clock,
            last: clock(),
            cycles: [0; Stage::ALL.len()],
        }
    }

    /// Takes the ticks since the last time, by stage, and begins again at zero.
    pub fn take(&mut self) -> [u64; Stage::ALL.len()] {
        std::mem::take(&mut self.cycles)
    }
}

impl Probe for CycleProbe {
    #[inline]
    fn begin(&mut self) {
        self.last = (self.clock)();
    }

    #[inline]
    fn mark(&mut self, stage: Stage) {
        let now = (self.clock)();
        if let Some(cycles) = self.cycles.get_mut(stage as usize) {
            *cycles = cycles.wrapping_add(now.wrapping_sub(self.last));
        }
        self.last = now;
    }
}
