//! Holding back vCPUs that dirty memory faster than they may, each by what its own dirty ring
//! counted. Unlike [`Machine::set_throttle`], a vCPU that only reads is not slowed at all.
//!
//! A vCPU pays where it is seen to have dirtied pages: when its ring is full, and every
//! [`TICK`], when all rings are collected. It then stands still until what it dirtied has taken as
//! long as its limit allows.

use super::gate::request;
use super::limit::MIB;
use super::{Error, Machine};
use crate::kvm::RingCounts;
use crate::memory::PAGE_BYTES;
use crate::{kvm, machine::cpus::Cpus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// How often rings are collected that do not fill up: short enough that no vCPU stands still for
/// long at a time.
const TICK: Duration = Duration::from_millis(10);
/// Over how long the rates are taken that are told (QEMU's `DIRTYLIMIT_CALC_TIME_MS`).
pub(crate) const PERIOD: Duration = Duration::from_secs(1);

/// The limits of all vCPUs by who set them, in MiB per second, and the thread behind them.
#[derive(Default)]
pub(crate) struct Limits {
    own: Vec<u64>,
    /// For as long as the guest leaves: of both, the lower one counts.
    leaving: u64,
    running: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

/// One vCPU's limit, as others see it: MiB per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyLimit {
    pub vcpu: u32,
    pub limit: u64,
    pub current: u64,
}

/// What a limit costs a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitCost {
    /// The longest that one stood still last.
    pub nap: Duration,
    /// How long it takes one to fill its ring, at the mean of their rates.
    pub ring_full: Duration,
}

impl Machine {
    /// Limits what a vCPU, or each, may dirty, in MiB per second; 0 ends it.
    ///
    /// # Errors
    /// Without dirty rings, and where no thread can be made: nothing is limited then.
    pub fn limit_dirt(&self, vcpu: Option<u32>, mib: u64) -> Result<(), Error> {
        self.change_limits(|limits| {
            for (index, own) in limits.own.iter_mut().enumerate() {
                if vcpu.is_none_or(|vcpu| vcpu as usize == index) {
                    *own = mib;
                }
            }
        })
    }

    /// Limits each vCPU while the guest leaves, beside what [`Machine::limit_dirt`] says; 0 ends
    /// it. Rates are taken over `period`.
    pub(crate) fn limit_dirt_to_leave(&self, mib: u64, period: Duration) -> Result<(), Error> {
        let period = if mib > 0 { period } else { PERIOD };
        self.cpus.limit_period_ms.store(period.as_millis() as u64, Ordering::Relaxed);
        self.change_limits(|limits| limits.leaving = mib)
    }

    /// The vCPUs that have a limit.
    pub fn dirty_limits(&self) -> Vec<DirtyLimit> {
        let limits = self.cpus.limits.iter().enumerate();
        let limited = limits.filter(|(_, limit)| limit.mib() > 0);
        limited
            .map(|(index, limit)| DirtyLimit {
                vcpu: index as u32,
                limit: limit.mib(),
                current: limit.rate.load(Ordering::Relaxed),
            })
            .collect()
    }

    /// What the limits cost, where there are any.
    pub(crate) fn limit_cost(&self) -> Option<LimitCost> {
        let limited = self.dirty_limits();
        let mean =
            limited.iter().map(|limit| limit.current).sum::<u64>() / (limited.len() as u64).max(1);
        let ring_bytes = u64::from(self.vm().ring_entries()?) * PAGE_BYTES;
        let naps = self.cpus.limits.iter().map(|limit| limit.nap_us.load(Ordering::Relaxed));
        let nap = Duration::from_micros(naps.max().unwrap_or(0));
        let ring_full = match mean {
            0 => Duration::ZERO,
            mean => Duration::from_micros(ring_bytes * 1_000_000 / MIB / mean),
        };
        (!limited.is_empty()).then_some(LimitCost { nap, ring_full })
    }

    /// Ends all of them.
    pub(super) fn end_limits(&self) {
        // It only fails where one begins.
        let _ = self.change_limits(|limits| {
            limits.own.fill(0);
            limits.leaving = 0;
        });
    }

    fn change_limits(&self, change: impl FnOnce(&mut Limits)) -> Result<(), Error> {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.own.resize(self.cpus.limits.len(), 0);
        change(&mut limits);
        let lower = |own: u64| match (own, limits.leaving) {
            (0, mib) | (mib, 0) => mib,
            (own, leaving) => own.min(leaving),
        };
        let wanted: Vec<u64> = limits.own.iter().map(|own| lower(*own)).collect();
        let begins = wanted.iter().any(|mib| *mib > 0);
        // One that failed has ended by itself; the next limit has another try.
        if let Some((_, ended)) = limits.running.take_if(|(_, thread)| thread.is_finished()) {
            let _ = ended.join();
        }
        if begins && limits.running.is_none() {
            match self.start_limits() {
                Ok(running) => limits.running = Some(running),
                Err(error) => {
                    *limits = Limits::default();
                    return Err(error);
                }
            }
        }
        for (limit, mib) in self.cpus.limits.iter().zip(wanted) {
            limit.mib.store(mib, Ordering::Relaxed);
        }
        self.cpus.gate.wake();
        if let Some((end, thread)) = limits.running.take_if(|_| !begins) {
            end.store(true, Ordering::Relaxed);
            thread.thread().unpark();
            let _ = thread.join();
        }
        Ok(())
    }

    fn start_limits(&self) -> Result<(Arc<AtomicBool>, JoinHandle<()>), Error> {
        let counts = RingCounts::start(self.vm().clone())?;
        let end = Arc::new(AtomicBool::new(false));
        let (cpus, over, signals) = (self.cpus.clone(), end.clone(), self.threads().signals());
        let kick = move |index: usize| {
            cpus.gate.requests[index].add(request::PAY);
            cpus.vcpus[index].kick();
            signals.send(index);
        };
        let cpus = self.cpus.clone();
        let main = move || {
            if let Err(error) = watch(&cpus, &counts, &over, kick) {
                tracing::warn!("vCPUs are no longer limited: {error}");
                cpus.limits.iter().for_each(|limit| limit.mib.store(0, Ordering::Relaxed));
            }
        };
        let thread = Builder::new().name("dirty-limit".into()).stack_size(64 << 10).spawn(main);
        Ok((end, thread.map_err(Error::Thread)?))
    }
}

/// Collects the rings until the end, and makes those pay who owe.
fn watch(
    cpus: &Cpus,
    counts: &RingCounts,
    end: &AtomicBool,
    kick: impl Fn(usize),
) -> Result<(), kvm::Error> {
    let (mut since, mut before) = (Instant::now(), counts.dirtied()?);
    while !end.load(Ordering::Relaxed) {
        std::thread::park_timeout(TICK);
        let dirtied = counts.dirtied()?;
        for (index, limit) in cpus.limits.iter().enumerate() {
            if !limit.owes(dirtied[index]).is_zero() {
                kick(index);
            }
        }
        let time = since.elapsed();
        if time.as_millis() as u64 >= cpus.limit_period_ms.load(Ordering::Relaxed) {
            for ((limit, now), before) in cpus.limits.iter().zip(&dirtied).zip(&before) {
                if now == before {
                    limit.nap_us.store(0, Ordering::Relaxed);
                }
                let mib = ((now - before) * PAGE_BYTES) as f64 / MIB as f64;
                limit.rate.store((mib / time.as_secs_f64()).round() as u64, Ordering::Relaxed);
            }
            (since, before) = (Instant::now(), dirtied);
        }
    }
    for limit in &cpus.limits {
        limit.rate.store(0, Ordering::Relaxed);
        limit.nap_us.store(0, Ordering::Relaxed);
    }
    Ok(())
}
