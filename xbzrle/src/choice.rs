//! Which path, and which way to fetch what comes next, encodes fastest on this machine: found by
//! trying them once.
//!
//! The widest vectors are not always the fastest, and what a prefetch does with a cache differs from
//! one make of CPU to the other, by up to a factor of two where memory is the limit. A list of CPUs
//! would be out of date, so they are tried, on pages that come from memory, for at most
//! [`TIME_MAX`].
//!
//! Unsafe, because the pages tried are live memory by type and are put out of the caches, and for a
//! clock.
#![allow(unsafe_code)]

use std::sync::OnceLock;
use std::time::Duration;

use crate::ahead::{Ahead, Fetch};
use crate::{PAGE_SIZE, Path};

/// The most processor time that the trials take, once in a process.
pub(crate) const TIME_MAX: Duration = Duration::from_millis(3);
/// The variable of the environment that names a path, which is then taken without a trial.
pub const PATH_VARIABLE: &str = "GODWIT_XBZRLE_PATH";

/// What encodes in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub path: Path,
    pub fetch: Fetch,
    pub reason: Reason,
}

/// Why it is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// [`PATH_VARIABLE`] names it.
    Named,
    /// There is nothing to choose from.
    Only,
    /// It was the fastest; the trials took so long.
    Measured(Duration),
}

impl Choice {
    /// The choice of this process, made on the first call.
    ///
    /// A [`PATH_VARIABLE`] that names no path of this CPU is passed over; a program that wants it
    /// refused asks [`Path::named`] first.
    pub fn of_this_process() -> Choice {
        static CHOICE: OnceLock<Choice> = OnceLock::new();
        *CHOICE.get_or_init(|| {
            let named = std::env::var(PATH_VARIABLE).ok();
            let choice = Choice::make(named.and_then(|name| Path::named(&name)));
            choice.fetch.enforce();
            choice
        })
    }

    fn make(named: Option<Path>) -> Choice {
        let started = cpu_time();
        let paths: Vec<_> = match named {
            Some(path) => vec![path],
            // The definition is for comparison, not for speed.
            None => Path::available().filter(|path| *path != Path::Scalar).collect(),
        };
        // The first is taken unless another is faster, so the widest vectors come first.
        let mut trials: Vec<_> = paths
            .iter()
            .rev()
            .flat_map(|path| {
                [Fetch::IntoCaches, Fetch::PastCaches].map(|fetch| Trial::new(*path, fetch))
            })
            .collect();
        let untried = Choice {
            path: named.unwrap_or_else(Path::widest),
            fetch: Fetch::IntoCaches,
            reason: if named.is_some() { Reason::Named } else { Reason::Only },
        };
        if trials.is_empty() || untried.path == Path::Scalar {
            return untried;
        }
        let mut pages = Pages::new();
        // A turn of each at a time: what else the machine does hits all of them alike.
        'tried: loop {
            for trial in &mut trials {
                if cpu_time() - started + trial.turn > TIME_MAX {
                    break 'tried;
                }
                trial.run(&mut pages);
            }
        }
        let best = trials.iter().filter(|trial| trial.best < Duration::MAX);
        // Half a dozen turns say no more than that.
        let clearly_faster = |a: &Trial, b: &Trial| a.best < b.best * 19 / 20;
        let best = best.reduce(|best, next| if clearly_faster(next, best) { next } else { best });
        let Some(best) = best else { return untried };
        let reason = match named {
            Some(_) => Reason::Named,
            None => Reason::Measured(cpu_time() - started),
        };
        Choice { path: best.path, fetch: best.fetch, reason }
    }
}

struct Trial {
    path: Path,
    fetch: Fetch,
    /// The shortest time for all pages.
    best: Duration,
    /// The longest turn, with what it takes to prepare it.
    turn: Duration,
}

impl Trial {
    fn new(path: Path, fetch: Fetch) -> Trial {
        Trial { path, fetch, best: Duration::MAX, turn: Duration::ZERO }
    }

    /// Encodes all pages, there and back again. The second time finds the CPU's vector units awake.
    fn run(&mut self, pages: &mut Pages) {
        let began = cpu_time();
        self.fetch.enforce();
        let Pages { cached, live, out } = pages;
        for live in live {
            put_out_of_caches(live);
            put_out_of_caches(cached);
            let started = cpu_time();
            for i in 0..live.len() {
                let next = (i + 1) % live.len();
                let ahead = Ahead { cached: cached[next].0.as_ptr(), live: live[next].0.as_ptr() };
                let (cached, live) = (&mut cached[i].0, live[i].0.as_ptr());
                // SAFETY: a page that nobody writes.
                unsafe { self.path.encode_live_ahead(cached, live, out, ahead) };
            }
            self.best = self.best.min(cpu_time() - started);
        }
        self.turn = self.turn.max(cpu_time() - began);
    }
}

/// The processor time of this thread, which stands still while others run in its place.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable; Linux has had this clock since 2.6.12, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Pages tried with, of each kind. One in four is unchanged, half have a change in one place, and
/// one in four has 64 bytes changed here and there: most dirty pages of a guest differ little.
const PAGES: usize = 32;

/// A page where a guest's pages are, on an address that is a multiple of its size.
#[repr(C, align(4096))]
#[derive(Clone)]
struct Page([u8; PAGE_SIZE]);

struct Pages {
    cached: Vec<Page>,
    /// After the change and before it, so that each turn finds the same changes.
    live: [Vec<Page>; 2],
    out: [u8; PAGE_SIZE],
}

impl Pages {
    fn new() -> Pages {
        let cached = vec![Page([0x5a; PAGE_SIZE]); PAGES];
        let mut changed = cached.clone();
        for (i, page) in changed.iter_mut().enumerate() {
            match i % 4 {
                0 => {}
                1 | 2 => page.0[i * 85 % PAGE_SIZE] ^= 1,
                _ => page.0.iter_mut().step_by(61).for_each(|byte| *byte ^= 0xff),
            }
        }
        Pages { live: [changed, cached.clone()], cached, out: [0; PAGE_SIZE] }
    }
}

/// Makes the pages come from memory when they are read next.
#[cfg(target_arch = "x86_64")]
fn put_out_of_caches(pages: &[Page]) {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid_count, _mm_clflush, _mm_mfence};
    /// CPUID leaf 7: CLFLUSHOPT, which needs not wait for the one before it (a tenth of the time).
    const CLFLUSHOPT: u32 = 1 << 23;
    let unordered = __cpuid_count(7, 0).ebx & CLFLUSHOPT != 0;
    for line in pages.iter().flat_map(|page| page.0.chunks(64)) {
        // SAFETY: the line is there, and is not changed; every x86-64 has the one instruction, and
        // this CPU says that it has the other.
        unsafe {
            if unordered {
                asm!("clflushopt [{}]", in(reg) line.as_ptr(), options(nostack, preserves_flags));
            } else {
                _mm_clflush(line.as_ptr());
            }
        }
    }
    // SAFETY: every x86-64 has it.
    unsafe { _mm_mfence() };
}

#[cfg(not(target_arch = "x86_64"))]
fn put_out_of_caches(_pages: &[Page]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_path_is_taken_whatever_is_faster() {
        for path in Path::available() {
            let choice = Choice::make(Some(path));
            assert_eq!((choice.path, choice.reason), (path, Reason::Named));
        }
    }

    #[test]
    fn what_is_chosen_is_a_vector_path_where_there_is_one() {
        let choice = Choice::make(None);
        let vectors = Path::available().count() > 1;
        assert_eq!(choice.path != Path::Scalar, vectors);
        assert!(Path::available().any(|path| path == choice.path));
    }

    #[test]
    fn the_choice_of_a_process_stays() {
        let choice = Choice::of_this_process();
        assert_eq!(Choice::of_this_process(), choice);
        assert_eq!(Path::best(), choice.path);
    }
}
