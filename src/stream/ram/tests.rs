//! Records, written and read back; damage refused.

use super::record::FLAG_MEM_SIZE;
use super::*;
use crate::stream::cursor::{Step, put_pstr};
use crate::stream::error::Error;
use crate::stream::limits::PAGE_BYTES;

fn sample() -> Vec<u8> {
    let mut out = Vec::new();
    RamWriter::block_list(&mut out, [("microvm.ram", 1 << 24), ("pc.bios", 1 << 16)]);
    let mut ram = RamWriter::default();
    ram.page(&mut out, 0, "microvm.ram", 0x1000, &[7; PAGE_BYTES]);
    ram.zero(&mut out, 0, "microvm.ram", 0x2000);
    ram.delta(&mut out, 0, "microvm.ram", 0x1000, &[0, 1, 9]);
    ram.zero(&mut out, 1, "pc.bios", 0xf000);
    RamWriter::flush(&mut out);
    RamWriter::end(&mut out);
    out
}

fn read_all(parser: &mut RamParser, bytes: &[u8], window: usize) -> Result<Vec<String>, Error> {
    let (mut at, mut have, mut found) = (0, 0, Vec::new());
    loop {
        match parser.next(&bytes[at..at + have])? {
            Step::Need(more) => {
                assert!(more > have && more <= 4360);
                if at + have == bytes.len() {
                    return Ok(found);
                }
                have = (have + window).min(bytes.len() - at);
            }
            Step::Item(record, used) => {
                at += used;
                have -= used;
                found.push(match record {
                    Record::Page { at, bytes } => format!("page {at:?} {}", bytes[0]),
                    other => format!("{other:?}"),
                });
            }
        }
    }
}

#[test]
fn block_list_has_the_recorded_bytes() {
    let mut out = Vec::new();
    RamWriter::block_list(&mut out, [("microvm.ram", 0x100_0000), ("pc.bios", 0x1_0000)]);
    RamWriter::end(&mut out);
    let hex: String = out.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hex,
        "00000000010100040b6d6963726f766d2e72616d00000000010000000770632e62696f730000000000010000\
         0000000000000010"
    );
}

#[test]
fn records_are_read_back_in_any_portions() {
    let bytes = sample();
    let whole = read_all(&mut RamParser::default(), &bytes, bytes.len()).unwrap();
    assert_eq!(whole.len(), 9);
    assert!(whole.last().unwrap().contains("End"));
    for window in [1, 2, 7, 100, 4096] {
        assert_eq!(read_all(&mut RamParser::default(), &bytes, window).unwrap(), whole);
    }
}

#[test]
fn batch_stops_behind_what_is_not_a_page() {
    let bytes = sample();
    let mut parser = RamParser::default();
    let mut at = 0;
    let mut lengths = Vec::new();
    loop {
        let mut records = Vec::new();
        let used = parser.batch(&bytes[at..], 100, &mut records).unwrap();
        if used == 0 {
            break;
        }
        at += used;
        lengths.push(records.len());
    }
    assert_eq!((at, lengths), (bytes.len(), vec![1, 1, 1, 5, 1]));
}

fn refused(edit: impl Fn(&mut Vec<u8>)) -> String {
    let mut bytes = sample();
    edit(&mut bytes);
    read_all(&mut RamParser::default(), &bytes, 64).unwrap_err().to_string()
}

#[test]
fn damage_is_refused_with_its_place() {
    let page = 44; // the first page record follows the block list
    assert_eq!(
        refused(|b| b[page + 7] = 0x80),
        "section ram, field record flags, offset 0x2c: value 0x80 is not allowed"
    );
    assert!(
        refused(|b| b[page + 4] = 1).contains("page offset, offset 0x2c: value 0x1001000 is above")
    );
    assert!(refused(|b| b[page + 9] = b'x').contains("block name, offset 0x34: \"xicrovm.ram\""));
    assert!(refused(|b| b[page + 7] = 0x28).contains("none was named before"));
    let zero = page + 20 + PAGE_BYTES;
    assert!(refused(|b| b[zero + 8] = 1).contains("fill byte"));
    assert!(refused(|b| b[zero + 9 + 8] = 2).contains("delta encoding"));
    assert!(refused(|b| b[zero + 9 + 9] = 0x20).contains("delta length"));
}

#[test]
fn absurd_block_lists_are_refused() {
    let list = |blocks: &[(&str, u64)]| {
        let mut out = Vec::new();
        let bytes: u64 = blocks.iter().map(|block| block.1).fold(0, u64::wrapping_add);
        out.extend_from_slice(&(bytes | FLAG_MEM_SIZE).to_be_bytes());
        for (name, bytes) in blocks {
            put_pstr(&mut out, name);
            out.extend_from_slice(&bytes.to_be_bytes());
        }
        read_all(&mut RamParser::default(), &out, 64)
    };
    assert!(list(&[("a", 0)]).is_err());
    assert!(list(&[("a", 4096), ("a", 4096)]).unwrap_err().to_string().contains("appears twice"));
    assert!(list(&[("a", 4096), ("b", 12)]).is_err());
    let names: Vec<String> = (0..300).map(|n| n.to_string()).collect();
    let many: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 4096)).collect();
    assert!(list(&many).unwrap_err().to_string().contains("more than 256 blocks"));
    // A list that was is not replaced.
    let mut parser = RamParser::default();
    let twice = ["a", "b"].map(|name| {
        let mut out = Vec::new();
        RamWriter::block_list(&mut out, [(name, 4096)]);
        out
    });
    let error = read_all(&mut parser, &twice.concat(), 64).unwrap_err();
    assert!(error.to_string().contains("block list, offset 0x12: a second list"), "{error}");
    // 16 EiB less a page is a size like any other here: nothing is allocated for it.
    assert!(list(&[("a", !0xfff)]).is_ok());
}
