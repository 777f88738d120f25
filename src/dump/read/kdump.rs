//! Reading a kdump-compressed file, raw or flattened.

use std::io::Read;

use super::bytes::{BadFile, Note, notes, number, slice};

const BLOCK: u64 = 4096;
/// Larger images are not made from records, whatever these say: it all has to be in memory.
const IMAGE_BYTES_MAX: u64 = 1 << 28;

/// A raw kdump file in memory.
#[derive(Debug)]
pub struct Kdump<'f> {
    file: &'f [u8],
    /// sysname, nodename, release, version, machine, domainname
    pub utsname: Vec<String>,
    pub status: u32,
    pub phys_base: i64,
    pub cpus: u32,
    pub pages_end: u64,
    pub notes: Vec<Note>,
    pub vmcoreinfo: Vec<u8>,
    /// page numbers in bitmap 2
    pages: Vec<u64>,
    descriptors_at: u64,
}

/// The image that a flattened stream describes.
pub fn flat_to_raw(stream: &[u8]) -> Result<Vec<u8>, BadFile> {
    let signed =
        |at: u64| Ok(i64::from_be_bytes(slice(stream, at, 8)?.try_into().expect("eight bytes")));
    if !slice(stream, 0, 16)?.starts_with(b"makedumpfile\0") || signed(16)? != 1 || signed(24)? != 1
    {
        return Err(BadFile { offset: 0, what: "no flattened dump" });
    }
    let mut image = Vec::new();
    let mut at = BLOCK;
    loop {
        let (offset, size) = (signed(at)?, signed(at + 8)?);
        if (offset, size) == (-1, -1) {
            break;
        }
        let end = offset
            .checked_add(size)
            .filter(|end| offset >= 0 && size > 0 && *end as u64 <= IMAGE_BYTES_MAX);
        let end =
            end.ok_or(BadFile { offset: at, what: "record of impossible place or size" })? as usize;
        let bytes = slice(stream, at + 16, size as u64)?;
        if image.len() < end {
            image.resize(end, 0);
        }
        image[offset as usize..end].copy_from_slice(bytes);
        at += 16 + size as u64;
    }
    if at + 16 != stream.len() as u64 {
        return Err(BadFile { offset: at, what: "bytes behind the end record" });
    }
    Ok(image)
}

impl<'f> Kdump<'f> {
    pub fn parse(file: &'f [u8]) -> Result<Kdump<'f>, BadFile> {
        if slice(file, 0, 8)? != b"KDUMP   " || number::<4>(file, 8)? != 6 {
            return Err(BadFile { offset: 0, what: "no kdump of version 6" });
        }
        let uts = |index: u64| -> Result<String, BadFile> {
            let bytes = slice(file, 12 + 65 * index, 65)?;
            let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
            Ok(String::from_utf8_lossy(text).into_owned())
        };
        let utsname = (0..6).map(uts).collect::<Result<Vec<_>, _>>()?;
        let wide = utsname[4] != "i686";
        let fields = if wide { 424 } else { 412 };
        let field = |index: u64| number::<4>(file, fields + 4 * index);
        if field(1)? != BLOCK {
            return Err(BadFile { offset: fields + 4, what: "block size other than 4096" });
        }
        let (sub_blocks, bitmap_blocks) = (field(2)?, field(3)?);
        let long = |at: u64| {
            if wide { number::<8>(file, BLOCK + at) } else { number::<4>(file, BLOCK + at) }
        };
        let quad = |at: u64| number::<8>(file, BLOCK + at);
        let (text, note, end) = if wide {
            ((quad(32)?, long(40)?), (quad(48)?, long(56)?), quad(96)?)
        } else {
            ((quad(20)?, long(28)?), (quad(32)?, long(40)?), quad(72)?)
        };
        let bitmaps_at = (1 + sub_blocks) * BLOCK;
        let bitmap_bytes = bitmap_blocks / 2 * BLOCK;
        if bitmap_blocks % 2 != 0 || end.div_ceil(8) > bitmap_bytes {
            return Err(BadFile { offset: fields + 12, what: "bitmaps too small" });
        }
        let first = slice(file, bitmaps_at, bitmap_bytes)?;
        let second = slice(file, bitmaps_at + bitmap_bytes, bitmap_bytes)?;
        if first.iter().zip(second).any(|(exists, held)| held & !exists != 0) {
            return Err(BadFile {
                offset: bitmaps_at,
                what: "pages in the file that do not exist",
            });
        }
        let bit = |page: &u64| second[(page / 8) as usize] >> (page % 8) & 1 != 0;
        let phys_base = if wide { long(0)? as i64 } else { i64::from(long(0)? as i32) };
        Ok(Kdump {
            file,
            utsname,
            status: field(0)? as u32,
            phys_base,
            cpus: field(9)? as u32,
            pages_end: end,
            notes: notes(slice(file, note.0, note.1)?)?,
            vmcoreinfo: slice(file, text.0, text.1)?.to_vec(),
            pages: (0..bitmap_bytes * 8).filter(bit).collect(),
            descriptors_at: bitmaps_at + 2 * bitmap_bytes,
        })
    }

    /// The numbers of the pages in the file, rising.
    pub fn pages(&self) -> &[u64] {
        &self.pages
    }

    /// Where the data of the `index`-th page stands, and how long it is.
    pub(crate) fn data(&self, index: usize) -> Result<(u64, u64), BadFile> {
        let at = self.descriptors_at + 24 * index as u64;
        Ok((number::<8>(self.file, at)?, number::<4>(self.file, at + 8)?))
    }

    /// The bytes of the `index`-th page.
    pub fn page(&self, index: usize) -> Result<Vec<u8>, BadFile> {
        let at = self.descriptors_at + 24 * index as u64;
        let (offset, size) = self.data(index)?;
        let flags = number::<4>(self.file, at + 12)?;
        let data = slice(self.file, offset, size)?;
        let bad = |what| BadFile { offset, what };
        let mut page = vec![0; BLOCK as usize];
        let filled = match flags {
            0 => {
                page.clear();
                page.extend_from_slice(data);
                page.len()
            }
            1 => {
                let mut inflate = flate2::read::ZlibDecoder::new(data);
                let filled = read_up_to(&mut inflate, &mut page);
                filled.ok_or(bad("page is no zlib stream"))?
            }
            2 => lzokay::decompress::decompress(data, &mut page)
                .map_err(|_| bad("page is no lzo1x block"))?,
            4 => snap::raw::Decoder::new()
                .decompress(data, &mut page)
                .map_err(|_| bad("page is no snappy block"))?,
            0x20 => {
                let unpacked = zstd::bulk::decompress_to_buffer(data, &mut page);
                unpacked.map_err(|_| bad("page is no zstd frame"))?
            }
            _ => return Err(bad("page of an unknown codec")),
        };
        if filled == BLOCK as usize { Ok(page) } else { Err(bad("page of another size")) }
    }
}

/// Bytes read, if the stream ends where `out` does or before.
fn read_up_to(from: &mut impl Read, out: &mut [u8]) -> Option<usize> {
    let mut filled = 0;
    while filled < out.len() {
        match from.read(&mut out[filled..]).ok()? {
            0 => return Some(filled),
            count => filled += count,
        }
    }
    (from.read(&mut [0]).ok()? == 0).then_some(filled)
}
