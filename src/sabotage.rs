//! Faults made on purpose. "No corruption" proves nothing until corruption has been seen: a build
//! with the cargo feature `sabotage` makes the one fault that `GODWIT_SABOTAGE` names, and a test
//! shows that the built-in guest or the RAM hash catches it; those that panic show that a defect in
//! one thread ends what it did and nothing else. Without the feature [`on`] is a
//! constant `false`, and nothing of this is in the binary.

/// A way to lose or mix up pages, or a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// One dirty bit in 1000 is cleared and forgotten.
    DropDirtyBits,
    /// Dirty bits are cleared after the pages were read.
    ReadBeforeClear,
    /// No fault: the VMM writes a page of guest memory at every harvest, so that there is something
    /// to skip.
    WriteAsVmm,
    /// The same, and the VMM's own writes are not harvested.
    SkipVmmWrites,
    /// After a page's newest version an older one travels on another channel.
    SwapVersions,
    /// The guest is handed over without the harvest after its stop.
    NoFinalHarvest,
    /// The page cache takes a version that is never sent.
    CacheAhead,
    /// Memory is asked for its holes before dirty bits are cleared.
    HoleTestNotReading,
    /// The thread of a channel that sends or receives pages panics.
    PanicInRound,
    /// The migration's thread panics when the guest stands still and is not given away: at the source
    /// before GO, at the target before LOADED.
    PanicBeforeGo,
    /// The same, when GO has been said or heard.
    PanicAfterGo,
    /// The same at the target, when the guest runs there.
    PanicWhenArrived,
    /// The thread of the last vCPU panics.
    PanicInVcpu,
    /// The thread panics that does what the guest asks for.
    PanicInRequest,
    /// A dump's thread panics.
    PanicInDump,
}

#[cfg(feature = "sabotage")]
impl Fault {
    const ALL: [(Fault, &str); 15] = [
        (Self::DropDirtyBits, "drop-dirty-bits"),
        (Self::ReadBeforeClear, "read-before-clear"),
        (Self::WriteAsVmm, "write-as-vmm"),
        (Self::SkipVmmWrites, "skip-vmm-writes"),
        (Self::SwapVersions, "swap-versions"),
        (Self::NoFinalHarvest, "no-final-harvest"),
        (Self::CacheAhead, "cache-ahead"),
        (Self::HoleTestNotReading, "hole-test-not-reading"),
        (Self::PanicInRound, "panic-in-round"),
        (Self::PanicBeforeGo, "panic-before-go"),
        (Self::PanicAfterGo, "panic-after-go"),
        (Self::PanicWhenArrived, "panic-when-arrived"),
        (Self::PanicInVcpu, "panic-in-vcpu"),
        (Self::PanicInRequest, "panic-in-request"),
        (Self::PanicInDump, "panic-in-dump"),
    ];
}

/// Panics if this process makes that fault.
#[inline(always)]
pub(crate) fn panic_on(fault: Fault) {
    if on(fault) {
        panic!("sabotage");
    }
}

/// Whether this process makes that fault.
#[cfg(not(feature = "sabotage"))]
#[inline(always)]
pub(crate) const fn on(_: Fault) -> bool {
    false
}

/// Whether this process makes that fault.
#[cfg(feature = "sabotage")]
pub(crate) fn on(fault: Fault) -> bool {
    chosen() == Some(fault)
}

/// The fault that `GODWIT_SABOTAGE` names. A name that is none ends the process: a test must not
/// pass for that.
#[cfg(feature = "sabotage")]
pub fn chosen() -> Option<Fault> {
    static CHOSEN: std::sync::OnceLock<Option<Fault>> = std::sync::OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("GODWIT_SABOTAGE").ok()?;
        let found = Fault::ALL.iter().find(|(_, known)| *known == name);
        let Some((fault, _)) = found else {
            say!(
                "godwit: GODWIT_SABOTAGE={name} is none of {:?}",
                Fault::ALL.map(|(_, name)| name)
            );
            std::process::exit(2);
        };
        say!("godwit: sabotage: {name}");
        Some(*fault)
    })
}
