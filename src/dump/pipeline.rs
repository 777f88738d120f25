//! Chunks of guest memory, prepared in parallel and written one after the other.
//!
//! While one chunk is handed to the writer, the next one is read and encoded: at most two chunks
//! exist besides what the writer's own buffers hold, so the memory of a dump does not depend on the
//! guest's size. Nothing is queued; the writer's pace is everyone's pace.

use std::collections::BTreeMap;

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::error::Error;
use super::progress::Progress;
use super::ranges::{PAGE, Range};
use super::view::{GuestView, ReadFailed};
use crate::pages::Extent;

/// The threads that read and encode; the caller's own writes.
pub(super) fn pool(threads: usize) -> Result<ThreadPool, Error> {
    ThreadPoolBuilder::new()
        .num_threads(threads.max(1))
        .thread_name(|index| format!("dump-{index}"))
        .build()
        .map_err(Error::Threads)
}

/// What becomes of chunks: the caller's thread gives room and writes, the pool's threads fill.
pub(super) trait Sink: Send {
    /// What a chunk is made in.
    type Room: Send;
    type Chunk: Send;

    /// Room for one more chunk; waits while everything is in use.
    fn room(&mut self) -> Result<Self::Room, Error>;
    /// Writes the next chunk. They come in the order of [`Order`].
    fn put(&mut self, chunk: Self::Chunk) -> Result<(), Error>;
}

/// Takes chunks of at most `chunk_bytes` from `order`, calls `encode` for each on the pool and
/// hands the results to `sink`, in order and on this thread.
pub(super) fn run<S: Sink>(
    pool: &ThreadPool,
    mut order: Order<'_>,
    progress: &Progress,
    encode: impl Fn(Range, S::Room) -> Result<S::Chunk, Error> + Sync,
    sink: &mut S,
) -> Result<(), Error> {
    let mut ready: Option<(S::Chunk, u64)> = None;
    let deliver = |sink: &mut S, done: Option<(S::Chunk, u64)>| -> Result<(), Error> {
        if let Some((chunk, bytes)) = done {
            sink.put(chunk)?;
            progress.advance(bytes);
        }
        Ok(())
    };
    loop {
        if progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        if let Some(bytes) = order.skip_hole() {
            progress.advance(bytes);
            continue;
        }
        let Some(chunk) = order.next() else { break };
        let room = sink.room()?;
        let mut encoded = None;
        let done = ready.take();
        let written = pool.in_place_scope(|scope| {
            scope.spawn(|_| encoded = Some(encode(chunk, room)));
            deliver(sink, done)
        });
        written?;
        ready = Some((encoded.expect("the scope has waited for it")?, chunk.len));
    }
    deliver(sink, ready)
}

/// Which chunk is next: the lowest of memory, or one that the view finds urgent.
pub(super) struct Order<'v> {
    /// Start and end of what is left.
    left: BTreeMap<u64, u64>,
    chunk_bytes: u64,
    /// Asked for what is urgent, where the format can take it.
    view: Option<&'v dyn GuestView>,
    /// Holes of a chunk or more are left out.
    skips_holes: bool,
}

impl<'v> Order<'v> {
    /// Rising. Chunks end at multiples of `chunk_bytes`, so that only the first and the last of a
    /// range are short.
    pub(super) fn rising(ranges: &[Range], chunk_bytes: u64) -> Order<'v> {
        let left = ranges.iter().map(|range| (range.start, range.end())).collect();
        Order { left, chunk_bytes, view: None, skips_holes: false }
    }

    /// As `view` would like it.
    pub(super) fn urgent_first(
        ranges: &[Range],
        chunk_bytes: u64,
        view: &'v dyn GuestView,
    ) -> Order<'v> {
        Order { view: Some(view), ..Order::rising(ranges, chunk_bytes) }
    }

    /// What is a hole for a chunk or more is not asked for.
    pub(super) fn skipping_holes(self) -> Order<'v> {
        Order { skips_holes: true, ..self }
    }

    /// Bytes of a hole that comes next, which is taken and released.
    fn skip_hole(&mut self) -> Option<u64> {
        let view = self.view.filter(|_| self.skips_holes)?;
        let (&start, &end) = self.left.first_key_value()?;
        match view.extent(start, end - start) {
            Extent::Hole(len) if len >= self.chunk_bytes => {
                // Whole chunks, so that those that follow end where they would.
                let len = if start + len < end {
                    len - (start + len) % self.chunk_bytes
                } else {
                    end - start
                };
                self.left.remove(&start);
                if start + len < end {
                    self.left.insert(start + len, end);
                }
                view.release(Range { start, len });
                Some(len)
            }
            _ => None,
        }
    }

    fn next(&mut self) -> Option<Range> {
        let urgent = self.view.and_then(GuestView::urgent);
        let urgent = urgent.and_then(|range| self.take(range.start, range.end()));
        urgent.or_else(|| {
            let start = *self.left.first_key_value()?.0;
            self.take(start, start + self.chunk_bytes - start % self.chunk_bytes)
        })
    }

    /// Takes what is left first in `start .. end`, at most a chunk.
    fn take(&mut self, start: u64, end: u64) -> Option<Range> {
        let before = self.left.range(..=start).next_back().filter(|(_, end)| **end > start);
        let (&low, &high) = before.or_else(|| self.left.range(start..end).next())?;
        let from = low.max(start);
        let to = high.min(end).min(from + self.chunk_bytes);
        self.left.remove(&low);
        for (low, high) in [(low, from), (to, high)] {
            if low < high {
                self.left.insert(low, high);
            }
        }
        Some(Range { start: from, len: to - from })
    }
}

/// Fills `out` with guest memory, with zeros where nothing is and without touching it there.
///
/// Returns false if all of it is hole.
pub(super) fn read(view: &dyn GuestView, start: u64, out: &mut [u8]) -> Result<bool, ReadFailed> {
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

/// The page-sized pieces of `bytes`, which stands at `start`; the first and the last may be parts
/// of pages.
pub(super) fn pages(
    start: u64,
    bytes: &[u8],
) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
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

    /// Notes the chunks, and fails at the one after `room`.
    struct Notes {
        seen: Vec<(u64, u64)>,
        room: usize,
    }

    impl Sink for Notes {
        type Room = ();
        type Chunk = Range;

        fn room(&mut self) -> Result<(), Error> {
            Ok(())
        }

        fn put(&mut self, chunk: Range) -> Result<(), Error> {
            if self.seen.len() == self.room {
                return Err(Error::NoMemory);
            }
            self.seen.push((chunk.start, chunk.len));
            Ok(())
        }
    }

    #[test]
    fn chunks_are_written_in_order_and_counted() {
        let ranges = [Range { start: 0x800, len: 0x3000 }, Range { start: 0x10000, len: 0x1000 }];
        let progress = Progress::default();
        let mut notes = Notes { seen: Vec::new(), room: 9 };
        let order = Order::rising(&ranges, 0x1000);
        run(&pool(2).unwrap(), order, &progress, |chunk, ()| Ok(chunk), &mut notes).unwrap();
        let expected = [
            (0x800, 0x800),
            (0x1000, 0x1000),
            (0x2000, 0x1000),
            (0x3000, 0x800),
            (0x10000, 0x1000),
        ];
        assert_eq!(notes.seen, expected);
        assert_eq!(progress.completed(), 0x4000);
    }

    #[test]
    fn a_failed_write_ends_the_run_and_a_cancel_too() {
        let ranges = [Range { start: 0, len: 0x8000 }];
        let progress = Progress::default();
        let pool = pool(1).unwrap();
        let order = || Order::rising(&ranges, 0x1000);
        let mut notes = Notes { seen: Vec::new(), room: 1 };
        let result = run(&pool, order(), &progress, |chunk, ()| Ok(chunk), &mut notes);
        assert!(matches!(result, Err(Error::NoMemory)));
        assert_eq!(progress.completed(), 0x1000);
        progress.cancel();
        let result = run(&pool, order(), &progress, |chunk, ()| Ok(chunk), &mut notes);
        assert!(matches!(result, Err(Error::Cancelled)));
    }

    /// Finds ranges urgent, one after the other.
    struct Pressed(std::sync::Mutex<Vec<Range>>);

    impl GuestView for Pressed {
        fn ranges(&self) -> &[Range] {
            &[]
        }

        fn read(&self, _: u64, _: &mut [u8]) -> Result<(), ReadFailed> {
            Ok(())
        }

        fn urgent(&self) -> Option<Range> {
            self.0.lock().unwrap().pop()
        }
    }

    #[test]
    fn what_is_urgent_comes_first_and_nothing_comes_twice_or_never() {
        let range = |start: u64, end: u64| Range { start, len: end - start };
        let ranges = [range(0x1000, 0x9000), range(0x20000, 0x22000)];
        // Taken from the end: over an edge, inside, taken already, outside, half taken.
        let urgent = vec![
            range(0x4000, 0x6000),
            range(0x50000, 0x60000),
            range(0x5000, 0x5800),
            range(0x5000, 0x6000),
            range(0x21000, 0x30000),
        ];
        let view = Pressed(std::sync::Mutex::new(urgent));
        let mut order = Order::urgent_first(&ranges, 0x4000, &view);
        let taken: Vec<_> = std::iter::from_fn(|| order.next()).collect();
        assert_eq!(taken[0], range(0x21000, 0x22000));
        assert_eq!(taken[1], range(0x5000, 0x6000));
        let mut all = taken.clone();
        all.sort();
        assert_eq!(super::super::ranges::cut(&all, None), ranges);
        assert_eq!(all.iter().map(|range| range.len).sum::<u64>(), 0xa000, "{taken:x?}");
        assert!(taken.contains(&range(0x4000, 0x5000)));
    }

    #[test]
    fn pieces_end_at_page_borders() {
        let pieces: Vec<_> = pages(0xf00, &[0; 0x1200]).collect();
        assert_eq!(pieces, [0..0x100, 0x100..0x1100, 0x1100..0x1200]);
    }
}
