//! Rounds: harvest, send, see whether it converges.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rayon::{ThreadPool, ThreadPoolBuilder};
use xbzrle::parallel::Pass;

use super::channel::Channel;
use super::error::Error;
use super::forecast::{FORECAST_AFTER, Forecast, advice};
use super::framing::ZeroRules;
use super::peer::{Peer, ram_section};
use super::round::{FreePages, Redirtied, Round};
use super::source::Source;
use crate::machine::RunState;
use crate::memory::{Hints, PAGE_BYTES, PageSet};
use crate::migrate::capabilities::Capability;
use crate::migrate::converge::{self, Decision, THROTTLE_PERIOD, Throttle, ThrottleRules};
use crate::migrate::dirty_curve::DirtyCurve;
use crate::migrate::guest::{DirtyLog, Migratable};
use crate::migrate::progress::{Counters, Pace, sum_stats};
use crate::sabotage::{self, Fault};
use crate::stream::SectionKind;
use crate::stream::ram::{FLAG_EOS, RamWriter};

/// Pages cleared by one call before the first round: bounds how long KVM holds its lock.
const FIRST_CLEAR_PAGES: u64 = (1 << 30) / PAGE_BYTES;

/// A round with fewer pages (16 MiB), but the first, ends before a guest could name free ones.
const ASK_PAGES_MIN: u64 = (16 << 20) / PAGE_BYTES;

/// Pages that go at this share of the limit or faster are held back by the limit.
const LIMITED: f64 = 0.7;

/// Decided again so often, at most, after the target has caught up.
const DECIDED_AGAIN_MAX: u32 = 8;
/// How often it is tried what stopping the vCPUs takes: they do not always come at once.
const STOPS_TRIED: usize = 3;

pub(super) struct Rounds {
    log: Box<dyn DirtyLog>,
    pool: ThreadPool,
    /// A thread for each channel, where there are several.
    senders: Option<ThreadPool>,
    pace: Pace,
    /// There was a round of which most pages were not zeros, which go faster than any.
    pace_is_known: bool,
    /// What the guest dirtied in each round.
    curve: DirtyCurve,
    /// The last harvest, and the last of pages that were sent since.
    harvested: Instant,
    sent_from: Instant,
    throttle: Throttler,
    /// The rounds sent.
    number: u32,
    /// Owed to the next round, by block.
    owed: Vec<PageSet>,
    /// Pages of the main block that the guest named free, and that were not sent since.
    free: PageSet,
    hints: GuestsHints,
    /// What stopping the vCPUs takes.
    stop_time: Duration,
    /// How often it was decided again, after the target had caught up.
    decided_again: u32,
    /// It was said that vCPUs cannot be limited.
    limit_failed: bool,
    #[cfg(feature = "sabotage")]
    swap: super::sabotage::Swap,
}

/// Opens section `ram`: lists the blocks, with their places in a file if they have such.
pub(super) fn list_blocks(source: &Source, peer: &mut Peer) -> Result<(), Error> {
    let blocks = source.guest.ram().blocks();
    source.progress.figures().ram_bytes = blocks.iter().map(|block| block.bytes()).sum();
    let mut out = Vec::new();
    let section = ram_section();
    section.write(SectionKind::Start, &mut out);
    if source.settings.has(Capability::MappedRam) && peer.increment.is_none() {
        peer.place_blocks(source, std::mem::take(&mut out))?;
    } else {
        let list = blocks.iter().map(|block| (block.name(), block.bytes()));
        RamWriter::block_list(&mut out, list);
    }
    if peer.sends_packets() {
        // QEMU's channels come to the end of a round before the first one.
        peer.end_channels(&source.progress.counters, true, 0)?;
        RamWriter::flush(&mut out);
    }
    out.extend_from_slice(&FLAG_EOS.to_be_bytes());
    section.write_footer(&mut out);
    peer.main.send_bytes(&source.progress.counters, true, &out)?;
    peer.open_increment(source)
}

impl Rounds {
    /// Starts the log and opens section `ram`.
    pub(super) fn start(source: &Source, peer: &mut Peer) -> Result<Self, Error> {
        let log = source.guest.start_dirty_log()?;
        #[cfg(feature = "sabotage")]
        let log = super::sabotage::FaultyLog::around(log, source.guest.ram());
        let blocks = source.guest.ram().blocks();
        let mut owed: Vec<_> = blocks.iter().map(|block| PageSet::full(block.pages())).collect();
        // The first harvest brings every page anyway; it is taken so that what is cleared now was
        // seen.
        log.harvest(&mut owed[0])?;
        let harvested = Instant::now();
        clear_all(&*log, &owed[0])?;
        source.tell_pass();
        show_caches(source, peer);
        list_blocks(source, peer)?;
        let threads = match source.settings.parameters().x_godwit_encoder_threads {
            0 => std::thread::available_parallelism().map_or(1, |threads| threads.get()).min(8),
            told => told.into(),
        };
        let pool = threads_named("migration", threads)?;
        let channels = peer.page_channels().len();
        let senders = (channels > 1).then(|| threads_named("channel", channels)).transpose()?;
        Ok(Self {
            log,
            pool,
            senders,
            pace: Pace::default(),
            pace_is_known: false,
            curve: DirtyCurve::default(),
            harvested,
            sent_from: harvested,
            throttle: Throttler::new(),
            number: 0,
            free: PageSet::new(owed[0].bound()),
            owed,
            hints: GuestsHints(source.guest.clone()),
            stop_time: (0..STOPS_TRIED).map(|_| source.guest.stop_time()).max().unwrap_or_default(),
            decided_again: 0,
            limit_failed: false,
            #[cfg(feature = "sabotage")]
            swap: super::sabotage::Swap::new(source.guest.ram())?,
        })
    }

    /// Sends rounds while the guest runs, until the rest is small enough to stop for.
    pub(super) fn until_converged(
        &mut self,
        source: &Source,
        peer: &mut Peer,
    ) -> Result<(), Error> {
        let pages = self.owed[0].bound();
        let forecast = Forecast::new(source, peer);
        let redirtied = Redirtied::new(pages, |found| forecast.update(source, found));
        self.send(source, peer, Pass::Bulk, Some(&redirtied))?;
        self.throttle.after_first_round(source, forecast.sees_no_end());
        // Pages put off are owed like those dirtied since; the first of them travel into an empty
        // cache.
        self.owed[0].union_with(&redirtied.into_pages());
        self.curve = forecast.into_curve();
        let mut pass = Pass::Fill;
        let mut left_before = pages;
        let mut rounds_below_limit = 0;
        loop {
            self.harvest(source)?;
            let left = self.owed_pages();
            let time = self.harvested - self.sent_from;
            self.curve.add(time, left);
            source.progress.figures().dirty_rate =
                (left as f64 / time.as_secs_f64().max(1e-6)) as u64;
            let decision = self.decide(source, peer, left, left_before, rounds_below_limit);
            source.progress.counters.remaining.store(left, Ordering::Relaxed);
            if decision == Decision::SwitchOver
                && peer.agrees_to_switch_over(source)?
                && peer.catches_up(source)?
                && self.still_fits(source, peer)?
            {
                if sabotage::on(Fault::NoFinalHarvest) {
                    // Long enough that the guest surely writes something between the last harvest
                    // and its stop.
                    std::thread::sleep(Duration::from_millis(20));
                }
                return Ok(());
            }
            let limit = Duration::from_millis(source.settings.parameters().downtime_limit);
            let for_pages = converge::for_pages(limit, self.state_time(source, peer));
            rounds_below_limit +=
                u32::from(self.pace.downtime(left).is_some_and(|time| time <= for_pages));
            left_before = left;
            let cache = source.settings.parameters().xbzrle_cache_size;
            peer.resize_caches(&source.progress, cache);
            self.send(source, peer, pass, None)?;
            pass = Pass::Delta;
            peer.check()?;
            self.slow_down(source, left);
        }
    }

    /// While the target caught up the guest dirtied more, and the way there and back is known now:
    /// decides once more. A guest that is too fast for that is stopped all the same after some
    /// times: it would never end.
    fn still_fits(&mut self, source: &Source, peer: &mut Peer) -> Result<bool, Error> {
        if peer.return_path.is_none() {
            return Ok(true);
        }
        self.harvest(source)?;
        let left = self.owed_pages();
        self.decided_again += 1;
        let decision = self.decide(source, peer, left, left, 0);
        Ok(decision == Decision::SwitchOver || self.decided_again > DECIDED_AGAIN_MAX)
    }

    /// The last round, of a guest that stands still and whose state has been read.
    pub(super) fn last(&mut self, source: &Source, peer: &mut Peer) -> Result<(), Error> {
        if !sabotage::on(Fault::NoFinalHarvest) {
            self.harvest(source)?;
        }
        self.send(source, peer, Pass::Last, None)?;
        assert_eq!(self.owed_pages(), 0, "a page is still owed at the end of the last round");
        peer.write_bitmaps(&source.progress.counters)
    }

    /// There is no further round but the last, of a guest that stands still. It hears that when it runs
    /// again, here or there, for this comes before its state is read.
    pub(super) fn end_hints(&self) {
        self.hints.end();
    }

    /// Pages of the main block that are as good as zeros: the guest has named them free, and the target
    /// has zeros there.
    pub(super) fn free_pages(&self) -> &PageSet {
        &self.free
    }

    /// Asks the guest, if it runs, for pages that are free; those of the round need not be sent then.
    fn ask<'s>(&self, source: &'s Source, pass: Pass) -> Result<Option<&'s Hints>, Error> {
        let Some(hints) = source.guest.hints().filter(|hints| hints.can_ask()) else {
            return Ok(None);
        };
        let is_long = pass == Pass::Bulk || self.owed[0].count() >= ASK_PAGES_MIN;
        let runs = source.guest.run_state() == RunState::Running;
        if pass == Pass::Last || !is_long || !runs {
            return Ok(None);
        }
        if pass != Pass::Bulk {
            clear_all(&*self.log, &self.owed[0])?;
        }
        Ok(hints.ask().then_some(hints))
    }

    fn harvest(&mut self, source: &Source) -> Result<(), Error> {
        self.log.harvest(&mut self.owed[0])?;
        self.harvested = Instant::now();
        source.tell_pass();
        Ok(())
    }

    /// Sends all pages owed, over all channels, and marks the end of the round where there are
    /// several.
    fn send(
        &mut self,
        source: &Source,
        peer: &mut Peer,
        pass: Pass,
        redirtied: Option<&Redirtied<'_>>,
    ) -> Result<(), Error> {
        let counters = &source.progress.counters;
        let hints = self.ask(source, pass)?;
        // In the first round a target that did not tell has what it has: zeros, or what its guest takes
        // for free. Later it may have got something else from here, and a base has something, too.
        let is_fresh = peer.target_is_zero || peer.features.is_empty() && peer.increment.is_none();
        let left_out = pass == Pass::Bulk && is_fresh;
        let bound = self.owed[0].bound();
        let free = hints.map(|hints| FreePages::new(hints, bound, left_out));
        let pages: Vec<_> = self
            .owed
            .iter_mut()
            .map(|set| std::mem::replace(set, PageSet::new(set.bound())))
            .collect();
        counters.remaining.store(pages.iter().map(PageSet::count).sum(), Ordering::Relaxed);
        let guest_runs = pass != Pass::Last;
        let parameters = source.settings.parameters();
        let zeros = ZeroRules {
            on_main: parameters.zero_page_detection != "multifd",
            left_out: peer.target_is_zero && pass == Pass::Bulk,
        };
        let channels = peer.page_channels();
        let round = Round {
            pages: &pages,
            pass,
            log: &*self.log,
            redirtied,
            free: free.as_ref(),
            counters,
            pool: &self.pool,
            detect_zeros: parameters.zero_page_detection != "none",
            zeros,
            channels: channels.len() as u64,
            guest_runs,
        };
        let travelled = || Counters::get(&counters.normal) + Counters::get(&counters.deltas);
        let owed = Counters::get(&counters.remaining);
        let (started, before) = (Instant::now(), travelled());
        self.sent_from = self.harvested;
        match &self.senders {
            Some(senders) => send_over(senders, channels, &round)?,
            None => channels.iter_mut().try_for_each(|channel| channel.send(&round))?,
        }
        let went = travelled() - before;
        self.pace.learn(went, started.elapsed());
        self.pace_is_known |= went > 0 && went >= owed / 2;
        #[cfg(feature = "sabotage")]
        self.swap.round(source, peer, &pages[0])?;
        self.number += 1;
        if let Some(hints) = hints {
            hints.stop();
        }
        peer.end_round(&round, self.number)?;
        self.free.subtract(&pages[0]);
        if let Some(free) = free {
            self.free.union_with(&free.into_pages());
        }
        for channel in peer.page_channels() {
            if let Some(cache) = &mut channel.cache {
                cache.end_period();
            }
        }
        show_caches(source, peer);
        Ok(())
    }

    fn decide(
        &mut self,
        source: &Source,
        peer: &mut Peer,
        left: u64,
        before: u64,
        rounds_below_limit: u32,
    ) -> Decision {
        let parameters = source.settings.parameters();
        let bandwidth = match parameters.avail_switchover_bandwidth {
            0 => self.pace.bandwidth(),
            told => told as f64,
        };
        let round = converge::Remainder {
            left: left * PAGE_BYTES,
            left_before: before * PAGE_BYTES,
            bandwidth,
            state: self.state_time(source, peer),
            downtime_limit: Duration::from_millis(parameters.downtime_limit),
            rounds_below_limit,
        };
        let mut figures = source.progress.figures();
        if let Some(downtime) = round.downtime() {
            figures.expected_downtime = downtime;
        }
        figures.state_time = round.state;
        let outlook = self.curve.outlook(round);
        let end = outlook.and_then(|outlook| Instant::now().checked_add(outlook.end));
        figures.predicted_end = end.filter(|_| self.pace_is_known);
        // Deltas show what they are worth in the third round.
        let rounds_to_judge = if source.settings.has(Capability::Xbzrle) { 2 } else { 1 };
        if self.number > rounds_to_judge {
            // What short rounds look like in the beginning says nothing.
            let judged = figures.started.is_some_and(|started| started.elapsed() >= FORECAST_AFTER);
            let slowed = source.slows();
            let stuck = judged && !slowed && converge::is_stuck(&round);
            figures.advice = stuck.then(|| advice(source, peer.cache_bytes(), left));
            figures.predicted_end = figures.predicted_end.filter(|_| !stuck);
        }
        converge::decide(&round)
    }

    /// What the guest stands still for beside its pages. Its state goes without a limit, so where one
    /// decides how fast pages go, they say nothing about it.
    fn state_time(&self, source: &Source, peer: &Peer) -> Duration {
        let pace = self.pace.bandwidth();
        let limited = match source.settings.limit.bytes_per_second() {
            0 => false,
            limit => pace > limit as f64 * LIMITED,
        };
        let bandwidth = match source.settings.parameters().avail_switchover_bandwidth {
            0 if limited => 0.0,
            0 => pace,
            told => told as f64,
        };
        self.stop_time + peer.state_time(bandwidth)
    }

    /// A round with so many pages that were dirtied before it has been sent: does what auto-converge
    /// or dirty-limit wants, where one of them is on.
    fn slow_down(&mut self, source: &Source, left: u64) {
        if !source.slows() {
            return;
        }
        let sent = Counters::get(&source.progress.counters.transferred);
        let changed = self.throttle.round(left * PAGE_BYTES, sent, source);
        if source.settings.has(Capability::DirtyLimit) {
            self.limit_dirt(source);
        } else if let Some(percent) = changed {
            source.guest.set_throttle(percent);
            source.progress.figures().throttle = percent;
        }
    }

    /// From the moment on at which auto-converge would begin, no vCPU dirties more than the limit.
    fn limit_dirt(&mut self, source: &Source) {
        if !self.throttle.has_begun() {
            return;
        }
        let parameters = source.settings.parameters();
        let period = Duration::from_millis(parameters.x_vcpu_dirty_limit_period);
        // Without, the guest is not slowed down, and the migration takes longer.
        let limited = source.guest.limit_dirt(parameters.vcpu_dirty_limit, period);
        if let (Err(error), false) = (&limited, self.limit_failed) {
            tracing::warn!("vCPUs are not limited: {error}");
        }
        self.limit_failed = limited.is_err();
        source.progress.figures().limit = source.guest.limit_cost();
    }

    fn owed_pages(&self) -> u64 {
        self.owed.iter().map(PageSet::count).sum()
    }
}

/// Pages that the guest keeps for having been asked for them are its own again when this goes.
struct GuestsHints(Arc<dyn Migratable>);

impl GuestsHints {
    fn end(&self) {
        if let Some(hints) = self.0.hints() {
            hints.done();
        }
    }
}

impl Drop for GuestsHints {
    fn drop(&mut self) {
        self.end();
    }
}

/// Makes later writes to all these pages visible again.
fn clear_all(log: &dyn DirtyLog, pages: &PageSet) -> Result<(), Error> {
    let mut start = 0;
    while start < pages.bound() {
        let end = (start + FIRST_CLEAR_PAGES).min(pages.bound());
        log.clear(pages, start..end)?;
        start = end;
    }
    Ok(())
}

fn show_caches(source: &Source, peer: &mut Peer) {
    let stats = peer
        .page_channels()
        .iter()
        .filter_map(|channel| channel.cache.as_ref().map(|cache| cache.stats()));
    source.progress.figures().xbzrle = sum_stats(stats);
}

/// Threads made now, so that none is missing when it is wanted.
fn threads_named(name: &'static str, count: usize) -> Result<ThreadPool, Error> {
    Ok(ThreadPoolBuilder::new().num_threads(count).thread_name(move |_| name.into()).build()?)
}

/// Channels that send side by side; the end of the round is the barrier.
fn send_over(
    senders: &ThreadPool,
    channels: &mut [Channel],
    round: &Round<'_>,
) -> Result<(), Error> {
    let mut results: Vec<_> = channels.iter().map(|_| Ok(())).collect();
    senders.scope(|scope| {
        for (channel, result) in channels.iter_mut().zip(&mut results) {
            scope.spawn(move |_| *result = channel.send(round));
        }
    });
    results.into_iter().collect()
}

/// auto-converge over rounds: a period ends with the first round that ends a second after it began.
struct Throttler {
    throttle: Throttle,
    since: Instant,
    dirtied: u64,
    sent_before: u64,
}

impl Throttler {
    fn new() -> Self {
        Self { throttle: Throttle::default(), since: Instant::now(), dirtied: 0, sent_before: 0 }
    }

    /// Periods begin behind the first round, in which a guest cannot be too fast.
    fn after_first_round(&mut self, source: &Source, foreseen: bool) {
        let sent = Counters::get(&source.progress.counters.transferred);
        (self.since, self.dirtied, self.sent_before) = (Instant::now(), 0, sent);
        if foreseen {
            self.throttle.foresee();
        }
    }

    fn has_begun(&self) -> bool {
        self.throttle.percent() > 0
    }

    /// The new percentage if it changes.
    fn round(&mut self, dirtied: u64, sent: u64, source: &Source) -> Option<u8> {
        self.dirtied += dirtied;
        if self.since.elapsed() < THROTTLE_PERIOD {
            return None;
        }
        let parameters = source.settings.parameters();
        let rules = ThrottleRules {
            trigger_threshold: parameters.throttle_trigger_threshold,
            initial: parameters.cpu_throttle_initial,
            increment: parameters.cpu_throttle_increment,
            max: parameters.max_cpu_throttle,
            tailslow: parameters.cpu_throttle_tailslow,
        };
        let changed = self.throttle.period(self.dirtied, sent - self.sent_before, &rules);
        (self.since, self.dirtied, self.sent_before) = (Instant::now(), 0, sent);
        changed.then(|| self.throttle.percent())
    }
}
