//! Faults planted on purpose, so that the harness in `tests/` can show that it would catch them. Without the
//! feature `planted-bugs` the type is empty, every question answers `false`, and the compiler drops the branches.

/// The closed list; each breaks one rule of `docs/architecture.md` §3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlantedBug {
    /// Children are created without a controller reference: deleting the owner leaves them behind.
    MissingOwnerReference,
    /// Children that a partial plan does not mention are pruned.
    PruneAfterPartialPlan,
    /// Deletes go by name alone, so that they hit whatever has the name by then.
    DeleteWithoutUidPrecondition,
    /// Children are created by POST with a generated name, and a POST answered 504 is sent again.
    RetryPostIntoDuplicate,
    /// After `410 Gone` inside a watch the new list is thrown away: what changed in the gap is never seen.
    SwallowInStreamGone,
    /// The status names the generation that was read last, not the one that was applied.
    ObservedGenerationAheadOfApply,
    /// Writes go out although the lease has ended.
    WriteAfterLeaseExpiry,
}

impl PlantedBug {
    pub const ALL: [Self; 7] = [
        Self::MissingOwnerReference,
        Self::PruneAfterPartialPlan,
        Self::DeleteWithoutUidPrecondition,
        Self::RetryPostIntoDuplicate,
        Self::SwallowInStreamGone,
        Self::ObservedGenerationAheadOfApply,
        Self::WriteAfterLeaseExpiry,
    ];
}

/// Which fault this operator runs with; `Planted::default()` is none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Planted {
    #[cfg(feature = "planted-bugs")]
    bug: Option<PlantedBug>,
}

impl Planted {
    /// An operator with one fault.
    #[cfg(feature = "planted-bugs")]
    pub fn with(bug: PlantedBug) -> Self {
        Self { bug: Some(bug) }
    }

    /// The fault named by `CANDELA_PLANTED_BUG`, for processes.
    #[cfg(feature = "planted-bugs")]
    pub fn from_env() -> Self {
        let name = std::env::var("CANDELA_PLANTED_BUG").unwrap_or_default();
        Self { bug: PlantedBug::ALL.into_iter().find(|bug| format!("{bug:?}") == name) }
    }

    /// Whether this operator has the fault.
    #[cfg(feature = "planted-bugs")]
    pub fn has(self, bug: PlantedBug) -> bool {
        self.bug == Some(bug)
    }

    /// Never, without the feature.
    #[cfg(not(feature = "planted-bugs"))]
    #[inline(always)]
    pub const fn has(self, _bug: PlantedBug) -> bool {
        false
    }
}
