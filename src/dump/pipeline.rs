//! Chunks of guest memory, prepared in parallel and written in order.
//!
//! While one chunk is written, the next one is read and encoded: at most two chunks exist, so the memory of a
//! dump does not depend on the guest's size. Nothing is queued; the writer's pace is everyone's pace.

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::{Error, Extent, GuestView, PAGE, Progress, Range, ReadFailed};

/// The threads of a dump; the writer's work is one of their jobs.
pub fn pool(threads: usize) -> Result<ThreadPool, Error> {
    ThreadPoolBuilder::new()
        .num_threads(threads.max(1))
        .thread_name(|index| format!("dump-{index}"))
        .build()
        .map_err(|error| Error::Threads(error.to_string()))
}

/// Splits `ranges` into chunks of at most `chunk_bytes`, calls `encode` for each on the pool and `put` for its
/// results in order, on the pool too but one at a time.
///
/// Chunks end at multiples of `chunk_bytes`, so that only the first and the last of a range are short.
pub fn run<E: Send>(
    pool: &ThreadPool,
    ranges: &[Range],
    chunk_bytes: u64,
    progress: &Progress,
    encode: impl Fn(Range) -> Result<E, Error> + Sync,
    put: impl FnMut(E) -> Result<(), Error> + Send,
) -> Result<(), Error> {
    pool.install(|| in_pool(ranges, chunk_bytes, progress, &encode, put))
}

fn in_pool<E: Send>(
    ranges: &[Range],
    chunk_bytes: u64,
    progress: &Progress,
    encode: &(impl Fn(Range) -> Result<E, Error> + Sync),
    mut put: impl FnMut(E) -> Result<(), Error> + Send,
) -> Result<(), Error> {
    let mut ready: Option<(E, u64)> = None;
    let mut deliver = |done: Option<(E, u64)>| -> Result<(), Error> {
        if let Some((encoded, bytes)) = done {
            put(encoded)?;
            progress.advance(bytes);
        }
        Ok(())
    };
    for chunk in chunks(ranges, chunk_bytes) {
        if progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let done = ready.take();
        let (encoded, written) = rayon::join(|| encode(chunk), || deliver(done));
        written?;
        ready = Some((encoded?, chunk.len));
    }
    deliver(ready)
}

fn chunks(ranges: &[Range], chunk_bytes: u64) -> impl Iterator<Item = Range> + '_ {
    ranges.iter().flat_map(move |range| {
        let mut at = range.start;
        std::iter::from_fn(move || {
            let len = (chunk_bytes - at % chunk_bytes).min(range.end() - at);
            let chunk = Range { start: at, len };
            at += len;
            (len > 0).then_some(chunk)
        })
    })
}

/// Fills `out` with guest memory, with zeros where nothing is and without touching it there.
///
/// Returns false if all of it is hole.
pub fn read(view: &dyn GuestView, start: u64, out: &mut [u8]) -> Result<bool, ReadFailed> {
    let mut at = 0;
    let mut any = false;
    while at < out.len() {
        let rest = (out.len() - at) as u64;
        match view.extent(start + at as u64, rest) {
            Extent::Hole(len) => {
                let len = len.clamp(1, rest) as usize;
                out[at..at + len].fill(0);
                at += len;
            }
            Extent::Data(len) => {
                let len = len.clamp(1, rest) as usize;
                view.read(start + at as u64, &mut out[at..at + len])?;
                any = true;
                at += len;
            }
        }
    }
    Ok(any)
}

/// The page-sized pieces of `bytes`, which stands at `start`; the first and the last may be parts of pages.
pub fn pages(start: u64, bytes: &[u8]) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
    let len = bytes.len();
    let mut at = 0;
    std::iter::from_fn(move || {
        let page = PAGE as u64;
        let end = (at as u64 + (page - (start + at as u64) % page)).min(len as u64) as usize;
        let piece = at..end;
        at = end;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_written_in_order_and_counted() {
        let ranges = [Range { start: 0x800, len: 0x3000 }, Range { start: 0x10000, len: 0x1000 }];
        let progress = Progress::default();
        let mut seen = Vec::new();
        let pool = pool(2).unwrap();
        run(&pool, &ranges, 0x1000, &progress, Ok, |chunk| {
            seen.push((chunk.start, chunk.len));
            Ok(())
        })
        .unwrap();
        let expected =
            [(0x800, 0x800), (0x1000, 0x1000), (0x2000, 0x1000), (0x3000, 0x800), (0x10000, 0x1000)];
        assert_eq!(seen, expected);
        assert_eq!(progress.completed(), 0x4000);
    }

    #[test]
    fn a_failed_write_ends_the_run_and_a_cancel_too() {
        let ranges = [Range { start: 0, len: 0x8000 }];
        let progress = Progress::default();
        let pool = pool(1).unwrap();
        let mut left = 2;
        let result = run(&pool, &ranges, 0x1000, &progress, Ok, |_| {
            left -= 1;
            if left == 0 { Err(Error::NoMemory) } else { Ok(()) }
        });
        assert!(matches!(result, Err(Error::NoMemory)));
        assert_eq!(progress.completed(), 0x1000);
        progress.cancel();
        let result = run(&pool, &ranges, 0x1000, &progress, Ok, |_| Ok(()));
        assert!(matches!(result, Err(Error::Cancelled)));
    }

    #[test]
    fn pieces_end_at_page_borders() {
        let pieces: Vec<_> = pages(0xf00, &[0; 0x1200]).collect();
        assert_eq!(pieces, [0..0x100, 0x100..0x1100, 0x1100..0x1200]);
    }
}
