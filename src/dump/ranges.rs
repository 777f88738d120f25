//! Ranges of guest-physical memory.

/// Bytes in a page of every format and of every page table here.
pub(crate) const PAGE: usize = 4096;

/// Guest-physical addresses `start .. start + len`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    pub start: u64,
    pub len: u64,
}

impl Range {
    pub(crate) fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// The part of memory that `begin` and `length` ask for, byte exact. It may reach past the end of
/// memory, and past 2^64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filter {
    pub begin: u64,
    pub length: u64,
}

/// No file has an offset behind it.
const END: u64 = i64::MAX as u64;

/// `ranges` sorted, neighbours joined, cut to `filter`. Empty ranges and whatever would end past
/// 2^63 vanish; of two that overlap the second loses what the first has.
pub(super) fn cut(ranges: &[Range], filter: Option<Filter>) -> Vec<Range> {
    let (low, high) = filter.map_or((0, END), |filter| {
        (filter.begin, filter.begin.saturating_add(filter.length).min(END))
    });
    let mut sorted = ranges.to_vec();
    sorted.sort();
    let mut out: Vec<Range> = Vec::with_capacity(sorted.len());
    for range in sorted {
        let done = out.last().map_or(0, Range::end);
        let start = range.start.max(done).max(low);
        let end = range.start.saturating_add(range.len).min(high);
        if start >= end {
            continue;
        }
        let len = end - start;
        match out.last_mut() {
            Some(last) if last.end() == start => last.len += len,
            _ => out.push(Range { start, len }),
        }
    }
    out
}

/// Whole pages of `ranges` that `taken` (sorted, disjoint) does not touch.
pub(super) fn without(ranges: &[Range], taken: &[Range]) -> Vec<Range> {
    let page = PAGE as u64;
    let mut out = Vec::new();
    for range in cut(ranges, None) {
        let mut at = range.start;
        for part in overlaps(taken, range.start, range.len) {
            let until = part.start - part.start % page;
            if at < until {
                out.push(Range { start: at, len: until - at });
            }
            at = part.end().next_multiple_of(page);
        }
        if at < range.end() {
            out.push(Range { start: at, len: range.end() - at });
        }
    }
    out
}

/// The parts of `start .. start + len` that lie in `ranges` (sorted, disjoint).
pub(super) fn overlaps(ranges: &[Range], start: u64, len: u64) -> impl Iterator<Item = Range> + '_ {
    let end = start.saturating_add(len);
    let first = ranges.partition_point(|range| range.end() <= start);
    ranges[first..].iter().take_while(move |range| range.start < end).filter_map(move |range| {
        let low = range.start.max(start);
        let high = range.end().min(end);
        (low < high).then(|| Range { start: low, len: high - low })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> Range {
        Range { start, len: end - start }
    }

    #[test]
    fn neighbours_are_joined_and_holes_stay() {
        let ranges = [range(0x1000, 0x2000), range(0, 0x1000), range(0x8000, 0x9000)];
        assert_eq!(cut(&ranges, None), [range(0, 0x2000), range(0x8000, 0x9000)]);
    }

    #[test]
    fn a_filter_is_byte_exact_and_may_reach_past_the_end() {
        let ranges = [range(0, 0xa0000), range(0x100000, 0x200000)];
        let filter = |begin, length| cut(&ranges, Some(Filter { begin, length }));
        assert_eq!(filter(0x9f123, 0x61f01), [range(0x9f123, 0xa0000), range(0x100000, 0x101024)]);
        assert_eq!(filter(0x1ff800, i64::MAX as u64), [range(0x1ff800, 0x200000)]);
        assert_eq!(filter(0x1ff800, u64::MAX), [range(0x1ff800, 0x200000)]);
        assert_eq!(filter(0xa0000, 0x60000), []);
        assert_eq!(filter(u64::MAX, 2), [], "nothing begins again at zero");
        assert_eq!(filter(i64::MAX as u64, u64::MAX), []);
    }

    #[test]
    fn what_is_left_ends_at_whole_pages() {
        let ranges = [range(0, 0x5000), range(0x8000, 0x9000)];
        assert_eq!(
            without(&ranges, &[range(0x1800, 0x2100)]),
            [range(0, 0x1000), range(0x3000, 0x5000), range(0x8000, 0x9000)]
        );
        assert_eq!(without(&ranges, &ranges), []);
        assert_eq!(without(&ranges, &[]), ranges);
    }

    #[test]
    fn overlapping_and_endless_ranges_do_no_harm() {
        let ranges =
            [range(0, 0x3000), range(0x1000, 0x4000), Range { start: u64::MAX - 1, len: u64::MAX }];
        assert_eq!(cut(&ranges, None), [range(0, 0x4000)]);
    }

    #[test]
    fn overlaps_finds_each_part() {
        let ranges = [range(0, 0x1000), range(0x2000, 0x3000), range(0x5000, 0x6000)];
        let parts: Vec<_> = overlaps(&ranges, 0x800, 0x5000).collect();
        assert_eq!(parts, [range(0x800, 0x1000), range(0x2000, 0x3000), range(0x5000, 0x5800)]);
        assert_eq!(overlaps(&ranges, 0x1000, 0x1000).count(), 0);
    }
}
