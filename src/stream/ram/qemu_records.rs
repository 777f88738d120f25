//! Records around what the delta encoder makes.

use xbzrle::parallel::{Body, Record, RecordFormat};

use super::record::{FLAG_CONTINUE, FLAG_PAGE, FLAG_XBZRLE, FLAG_ZERO};
use crate::stream::{PAGE_BYTES, put_pstr};

/// QEMU's records of pages that are numbered block after block, in the order of the list in
/// the stream. Each batch names its block again.
pub(crate) struct QemuRecords {
    /// Name, number of the first page.
    blocks: Vec<(String, u64)>,
}

impl QemuRecords {
    /// `blocks` are (name, pages).
    pub(crate) fn new<'a>(blocks: impl IntoIterator<Item = (&'a str, u64)>) -> Self {
        let mut first = 0;
        let mut named = Vec::new();
        for (name, pages) in blocks {
            named.push((name.to_owned(), first));
            first += pages;
        }
        Self { blocks: named }
    }

    fn block_of(&self, page: u64) -> usize {
        self.blocks.partition_point(|(_, first)| *first <= page) - 1
    }
}

impl RecordFormat for QemuRecords {
    fn header(&self, record: &Record, after: Option<u64>, out: &mut Vec<u8>) {
        let block = self.block_of(record.page);
        let (name, first) = &self.blocks[block];
        let offset = (record.page - first) * PAGE_BYTES as u64;
        let flag = match record.body {
            Body::Zero => FLAG_ZERO,
            Body::Delta(_) => FLAG_XBZRLE,
            Body::Whole => FLAG_PAGE,
        };
        if after.is_some_and(|page| self.block_of(page) == block) {
            out.extend_from_slice(&(offset | flag | FLAG_CONTINUE).to_be_bytes());
        } else {
            out.extend_from_slice(&(offset | flag).to_be_bytes());
            put_pstr(out, name);
        }
        match record.body {
            Body::Zero => out.push(0),
            Body::Delta(bytes) => {
                out.push(1);
                out.extend_from_slice(&(bytes as u16).to_be_bytes());
            }
            Body::Whole => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::ram::RamWriter;

    #[test]
    fn headers_are_those_of_the_stream_writer() {
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        let mut writer = RamWriter::default();
        let format = QemuRecords::new([("microvm.ram", 100), ("pc.bios", 50)]);
        let mut after = None;
        for (page, block, name, offset) in [
            (3, 0, "microvm.ram", 3),
            (4, 0, "microvm.ram", 4),
            (101, 1, "pc.bios", 1),
            (102, 1, "pc.bios", 2),
        ] {
            format.header(&Record { page, body: Body::Delta(2) }, after, &mut ours);
            ours.extend_from_slice(&[7, 8]);
            writer.delta(&mut theirs, block, name, offset * 4096, &[7, 8]);
            after = Some(page);
        }
        format.header(&Record { page: 5, body: Body::Zero }, after, &mut ours);
        writer.zero(&mut theirs, 0, "microvm.ram", 5 * 4096);
        assert_eq!(ours, theirs);
    }
}
