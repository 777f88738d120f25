//! AVX-512: a block is one vector, and what changed in it is one comparison into a mask register.
//!
//! Two things are done otherwise than by the walk's own means: the edges of runs are found eight
//! words of the mask at a time, and short runs are put down 16 at a time. The cached page is
//! brought up to date as by the others: stores under the mask of what changed were slower by 5 to
//! 15 % wherever much had (Zen 5).

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::changed::{Changed, Edges, WORDS_MAX};
use super::lanes::Lanes;
use super::path::walk_for;
use super::walk::Records;

walk_for!(
    /// Proof that this CPU runs AVX-512 with bytes as lanes and with VBMI2 (so has every such CPU
    /// since Ice Lake and Zen 4; the ones before it take AVX2), and that the system saves its
    /// registers. Only [`Avx512::detect`] makes one.
    Avx512 = OneVector,
    "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt",
    ["avx512f", "avx512bw", "avx512vl", "avx512vbmi2", "bmi1", "bmi2", "lzcnt", "popcnt"]
);

pub(super) enum OneVector {}

// Each function is inlined into one that is compiled for AVX-512; nothing else calls them.
impl Lanes for OneVector {
    const ALIGN: usize = 64;

    type Block = __m512i;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self::Block {
        // SAFETY: the contract of `Lanes`.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_live(from: *const u8) -> Self::Block {
        // SAFETY: the contract of `Lanes`, which asks for 64-byte alignment here.
        unsafe { from.cast::<__m512i>().read_volatile() }
    }

    #[inline(always)]
    unsafe fn store(to: *mut u8, block: Self::Block) {
        // SAFETY: the contract of `Lanes`.
        unsafe { _mm512_storeu_si512(to.cast(), block) }
    }

    #[inline(always)]
    unsafe fn differ(a: Self::Block, b: Self::Block) -> u64 {
        // SAFETY: no pointers; the instruction set is the contract of `Lanes`.
        unsafe { _mm512_cmpneq_epi8_mask(a, b) }
    }

    #[inline(always)]
    unsafe fn all_equal(a: &[Self::Block; 4], b: *const u8) -> bool {
        /// c | (a ^ b), as a truth table.
        const OR_DIFFER: i32 = 0xf6;
        // SAFETY: the contract of `Lanes`.
        unsafe {
            let mut differ = _mm512_setzero_si512();
            for (i, &block) in a.iter().enumerate() {
                differ = _mm512_ternarylogic_epi64::<OR_DIFFER>(
                    differ,
                    block,
                    Self::load(b.add(64 * i)),
                );
            }
            _mm512_test_epi64_mask(differ, differ) == 0
        }
    }

    #[inline(always)]
    unsafe fn is_zero(block: Self::Block) -> bool {
        // SAFETY: no pointers; the instruction set is the contract of `Lanes`.
        unsafe { _mm512_test_epi64_mask(block, block) == 0 }
    }

    #[inline(always)]
    unsafe fn copy_half(to: *mut u8, from: *const u8) {
        // SAFETY: the contract of `Lanes`.
        unsafe { _mm256_storeu_si256(to.cast(), _mm256_loadu_si256(from.cast())) }
    }

    /// Eight words of the mask in each step, whether there are changes in them or not: on a page
    /// with one change this takes less time than to find out where it is by a branch.
    #[inline(always)]
    unsafe fn find_runs<const N: usize>(changed: &Changed<N>, edges: &mut Edges<N>) {
        /// a & (b | c), and a | (b & c), as truth tables.
        const AND_EITHER: i32 = 0xe0;
        const OR_BOTH: i32 = 0xf8;
        // SAFETY: the contract of `Lanes`; eight words from each `first` on are there, and the one
        // before and after them.
        unsafe {
            let numbers = _mm512_loadu_si512(POSITIONS.as_ptr().cast());
            let mut words_of_edges = [const { MaybeUninit::<u64>::uninit() }; WORDS_MAX];
            let (mut count, mut closed_before) = (0, _mm512_setzero_si512());
            for group in (0..Changed::<N>::WORDS).step_by(64) {
                let mut todo = 0_u64;
                for first in (group..Changed::<N>::WORDS.min(group + 64)).step_by(8) {
                    let words = changed.vector(first);
                    let (before, word, after) =
                        (Self::load(words), Self::load(words.add(8)), Self::load(words.add(16)));
                    let (after_1, after_2) = (
                        _mm512_shldi_epi64::<1>(word, before),
                        _mm512_shldi_epi64::<2>(word, before),
                    );
                    let (before_1, before_2) = (
                        _mm512_shrdi_epi64::<1>(word, after),
                        _mm512_shrdi_epi64::<2>(word, after),
                    );
                    let gap_1 =
                        _mm512_ternarylogic_epi64::<AND_EITHER>(after_1, before_1, before_2);
                    let gap = _mm512_ternarylogic_epi64::<OR_BOTH>(gap_1, after_2, before_1);
                    let closed = _mm512_or_si512(word, gap);
                    let shifted = _mm512_alignr_epi64::<7>(closed, closed_before);
                    let edge = _mm512_xor_si512(closed, _mm512_shldi_epi64::<1>(closed, shifted));
                    closed_before = closed;
                    _mm512_storeu_si512(words_of_edges.as_mut_ptr().add(first).cast(), edge);
                    todo |= u64::from(_mm512_test_epi64_mask(edge, edge)) << (first - group);
                }
                while todo != 0 {
                    let i = group + todo.trailing_zeros() as usize;
                    todo &= todo - 1;
                    let word = words_of_edges.get_unchecked(i).assume_init();
                    let in_word = _mm512_castsi512_si256(_mm512_maskz_compress_epi8(word, numbers));
                    let base = _mm512_set1_epi16((i * 64) as i16);
                    let positions = _mm512_add_epi16(_mm512_cvtepu8_epi16(in_word), base);
                    _mm512_storeu_si512(edges.room(count).cast(), positions);
                    count += word.count_ones() as usize;
                }
            }
            edges.finish(count);
        }
    }

    /// Lengths and places of 16 records at a time, then their bytes, four records without asking
    /// whether there are as many.
    #[inline(always)]
    unsafe fn push_short_runs<const N: usize>(
        records: &mut Records<N>,
        edges: &Edges<N>,
        first: usize,
    ) -> usize {
        /// With fewer runs, to make the table takes longer than it saves.
        const TABLE_RUNS_MIN: usize = 12;
        let mut i = first;
        if N < 32 || edges.runs() - first < TABLE_RUNS_MIN {
            // SAFETY: the contract of `Lanes`.
            return unsafe { records.push_short_runs::<Self>(edges, first) };
        }
        // SAFETY: the contract of `Lanes`; what is copied for runs that are not there is 32 bytes
        // from the start of the page, to after the records.
        unsafe {
            while i < edges.runs() {
                let (runs, count) = edges.sixteen_runs(i);
                let splat = |value: usize| _mm512_set1_epi32(value as i32);
                let zero = _mm512_setzero_si512();
                let (start, end) =
                    (_mm512_and_si512(runs, splat(0xffff)), _mm512_srli_epi32::<16>(runs));
                let run = _mm512_sub_epi32(end, start);
                let good = _mm512_cmple_epu32_mask(run, splat(32))
                    & _mm512_cmple_epu32_mask(start, splat(N - 32));
                let count = count.min(good.trailing_ones() as usize);
                let there = ((1_u32 << count) - 1) as u16;

                let gap = _mm512_sub_epi32(
                    start,
                    _mm512_alignr_epi32::<15>(end, splat(records.gap_from)),
                );
                let two = _mm512_cmpge_epu32_mask(gap, splat(128));
                let one_byte = _mm512_or_si512(gap, _mm512_slli_epi32::<8>(run));
                let low = _mm512_or_si512(_mm512_and_si512(gap, splat(0x7f)), splat(0x80));
                let high = _mm512_and_si512(_mm512_slli_epi32::<1>(gap), splat(0x7f00));
                let two_bytes =
                    _mm512_or_si512(_mm512_or_si512(low, high), _mm512_slli_epi32::<16>(run));
                let lengths = _mm512_mask_blend_epi32(two, one_byte, two_bytes);
                let two_or_three = _mm512_mask_blend_epi32(two, splat(2), splat(3));
                let bytes = _mm512_maskz_add_epi32(there, run, two_or_three);

                let mut sum = bytes;
                sum = _mm512_add_epi32(sum, _mm512_alignr_epi32::<15>(sum, zero));
                sum = _mm512_add_epi32(sum, _mm512_alignr_epi32::<14>(sum, zero));
                sum = _mm512_add_epi32(sum, _mm512_alignr_epi32::<12>(sum, zero));
                sum = _mm512_add_epi32(sum, _mm512_alignr_epi32::<8>(sum, zero));
                let at = _mm512_add_epi32(_mm512_sub_epi32(sum, bytes), splat(records.len));
                let mut table = [[const { MaybeUninit::<u32>::uninit() }; 16]; 4];
                let start = _mm512_maskz_mov_epi32(there, start);
                let columns = [at, lengths, start, _mm512_add_epi32(at, two_or_three)];
                for (place, column) in table.iter_mut().zip(columns) {
                    _mm512_storeu_si512(place.as_mut_ptr().cast(), column);
                }
                let len = records.len
                    + _mm_extract_epi32::<3>(_mm512_extracti32x4_epi32::<3>(sum)) as usize;
                if len + 36 > records.room {
                    return records.push_short_runs::<Self>(edges, i);
                }
                if count == 0 {
                    break;
                }
                let [at, lengths, start, bytes_at] = &table;
                for four in (0..count).step_by(4) {
                    for k in four..four + 4 {
                        let get = |column: &[MaybeUninit<u32>; 16]| {
                            column.get_unchecked(k).assume_init() as usize
                        };
                        records.out.add(get(at)).cast::<u32>().write_unaligned(get(lengths) as u32);
                        Self::copy_half(
                            records.out.add(get(bytes_at)),
                            records.from.add(get(start)),
                        );
                    }
                }
                i += count;
                records.len = len;
                records.gap_from = edges.run(i - 1).1;
                if count < 16 {
                    break;
                }
            }
        }
        i
    }
}

/// The numbers of the bits of a word.
static POSITIONS: [u8; 64] = {
    let mut numbers = [0; 64];
    let mut i = 0;
    while i < 64 {
        numbers[i] = i as u8;
        i += 1;
    }
    numbers
};
