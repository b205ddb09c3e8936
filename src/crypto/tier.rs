//! Which implementation of AES-GCM runs: chosen once, by what the processor can do, or lower where the environment says.
#![forbid(unsafe_code)]

use std::env;
use std::fmt;
use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use super::gcm::aesni::HasAesNi;
#[cfg(target_arch = "x86_64")]
use super::gcm::avx2::HasAvx2;
#[cfg(target_arch = "x86_64")]
use super::gcm::avx512::HasAvx512;

/// Environment variable that forces a tier, by its [`Tier::name`].
pub const TIER_VARIABLE: &str = "SIMPLON_AEAD_TIER";

/// An implementation of AES-GCM, the slowest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Tier {
    /// The `aes-gcm` crate: runs on every processor.
    Portable,
    /// AES-NI with PCLMULQDQ, one block at a time in each register.
    #[cfg(target_arch = "x86_64")]
    AesNi,
    /// AVX2 with VAES and VPCLMULQDQ.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 with VAES and VPCLMULQDQ.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Tier {
    /// Every tier, the slowest first, whether or not this processor has it.
    pub const ALL: &[Self] = &[
        Self::Portable,
        #[cfg(target_arch = "x86_64")]
        Self::AesNi,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512,
    ];

    /// The name in [`TIER_VARIABLE`], `--version` and `simplon show workers`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Self::AesNi => "aesni",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
        }
    }

    /// What it is made of, for people.
    pub const fn description(self) -> &'static str {
        match self {
            Self::Portable => "the aes-gcm crate",
            #[cfg(target_arch = "x86_64")]
            Self::AesNi => "AES-NI and PCLMULQDQ",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "AVX2, VAES and VPCLMULQDQ",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "AVX-512, VAES and VPCLMULQDQ",
        }
    }

    /// Whether this processor can run it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::AesNi => HasAesNi::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => HasAvx2::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => HasAvx512::detect().is_some(),
        }
    }

    /// The tiers that this processor can run, the slowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(|tier| tier.is_available())
    }

    /// The fastest tier that this processor can run.
    pub fn best() -> Self {
        Self::available().last().unwrap_or(Self::Portable)
    }

    /// The tier that [`TIER_VARIABLE`] names, or the fastest where it is not set.
    ///
    /// # Errors
    /// [`TierError`] where it names none, or one that this processor cannot run.
    pub fn from_environment() -> Result<Self, TierError> {
        match env::var_os(TIER_VARIABLE) {
            None => Ok(Self::best()),
            Some(value) => Self::from_setting(&value.to_string_lossy()),
        }
    }

    /// The tier in use, the same from the first call on.
    ///
    /// # Panics
    /// Where [`TIER_VARIABLE`] is wrong: another tier in silence would spoil what the variable is for. Programs ask
    /// [`Self::from_environment`] first.
    pub fn active() -> Self {
        static ACTIVE: OnceLock<Tier> = OnceLock::new();
        *ACTIVE.get_or_init(|| match Self::from_environment() {
            Ok(tier) => tier,
            Err(error) => panic!("{error}"),
        })
    }

    fn from_setting(name: &str) -> Result<Self, TierError> {
        let tier = Self::ALL.iter().copied().find(|tier| tier.name() == name);
        let name = name.to_owned();
        match tier {
            Some(tier) if tier.is_available() => Ok(tier),
            Some(_) => Err(TierError::Unavailable { name }),
            None => Err(TierError::Unknown { name }),
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A tier that cannot be had.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TierError {
    /// No tier has this name.
    #[error(
        "{TIER_VARIABLE}={name}: there is no such tier; this processor has {available}, and without the variable the last of them is used",
        available = available_names()
    )]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The processor lacks what the tier needs.
    #[error(
        "{TIER_VARIABLE}={name}: this processor cannot run that tier; it has {available}, and without the variable the last of them is used",
        available = available_names()
    )]
    Unavailable {
        /// What was asked for.
        name: String,
    },
}

fn available_names() -> String {
    let names: Vec<_> = Tier::available().map(Tier::name).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_available_tier_can_be_forced_by_name() {
        for tier in Tier::available() {
            assert_eq!(Tier::from_setting(tier.name()), Ok(tier));
        }
        assert!(Tier::available().any(|tier| tier == Tier::best()));
    }

    #[test]
    fn wrong_name_is_refused_and_the_error_lists_the_right_ones() {
        let error = Tier::from_setting("sse9").expect_err("no such tier");
        assert!(matches!(error, TierError::Unknown { .. }));
        assert!(error.to_string().contains("portable"), "{error}");
    }
}
