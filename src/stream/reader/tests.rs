//! The reader over whole streams.

use super::*;
use crate::stream::godwit::Frame;
use crate::stream::ram::RamWriter;
use crate::stream::{Command, Configuration, SectionKind, description, end_of_states};

/// Devices of four bytes.
struct Four;

impl Layouts for Four {
    fn extent(
        &mut self,
        section: &SectionHeader,
        input: &[u8],
        offset: u64,
    ) -> Result<Extent, Error> {
        match section.name.as_str() {
            "dev" if input.len() >= 4 => Ok(Extent::Bytes(4)),
            "dev" => Ok(Extent::Need(4)),
            name => Err(Error::new("x", "name", offset, Problem::Unknown { name: name.into() })),
        }
    }
}

fn device(out: &mut Vec<u8>) {
    let dev = SectionHeader { id: 9, name: "dev".into(), instance: 0, version: 1 };
    dev.write(SectionKind::Full, out);
    out.extend_from_slice(&[1, 2, 3, 4]);
    dev.write_footer(out);
}

fn sample() -> Vec<u8> {
    let mut out = Vec::new();
    Configuration { machine: "microvm".into(), uuid: Some([1; 16]), ..Default::default() }
        .write(&mut out);
    Command::Ping(1).write(&mut out);
    let ram = SectionHeader { id: 2, name: "ram".into(), instance: 0, version: 4 };
    ram.write(SectionKind::Start, &mut out);
    RamWriter::block_list(&mut out, [("microvm.ram", 1 << 20)]);
    RamWriter::end(&mut out);
    ram.write_footer(&mut out);
    ram.write(SectionKind::Part, &mut out);
    RamWriter::default().zero(&mut out, 0, "microvm.ram", 0x3000);
    RamWriter::end(&mut out);
    ram.write_footer(&mut out);
    device(&mut out);
    let mut nested = Vec::new();
    device(&mut nested);
    Command::PostcopyRun.write(&mut nested);
    Command::Packaged(nested.len() as u32).write(&mut out);
    out.extend_from_slice(&nested);
    end_of_states(&mut out);
    description(&mut out, "{}");
    out
}

fn read(bytes: &[u8], window: usize) -> Result<Vec<String>, Error> {
    let mut reader = Reader::new(Four, Vec::new());
    let (mut at, mut have, mut found) = (0, 0, Vec::new());
    loop {
        match reader.next(&bytes[at..at + have])? {
            Step::Need(needed) => {
                assert!(needed > have, "asks for what it has");
                if at + have == bytes.len() {
                    let problem = Problem::Ends;
                    if reader.may_end() {
                        return Ok(found);
                    }
                    return Err(Error::new(reader.place(), "end", reader.offset(), problem));
                }
                have = (have + window).min(bytes.len() - at);
            }
            Step::Item(item, used) => {
                at += used;
                have -= used;
                assert_eq!(reader.offset(), at as u64);
                if !matches!(item, Item::Description { .. }) {
                    found.push(format!("{item:?}"));
                }
            }
        }
    }
}

#[test]
fn stream_is_read_in_any_portions() {
    let bytes = sample();
    let whole = read(&bytes, bytes.len()).unwrap();
    assert_eq!(whole.len(), 21);
    assert_eq!(whole[19..], ["PackageEnd", "EndOfStates"]);
    for window in [1, 3, 64] {
        assert_eq!(read(&bytes, window).unwrap(), whole);
    }
}

#[test]
fn every_cut_is_noticed() {
    let bytes = sample();
    let end = bytes.len() - 5 - 2; // behind the end of states
    for cut in 0..bytes.len() {
        let result = read(&bytes[..cut], 64);
        assert_eq!(
            result.is_ok(),
            cut == end || (cut > end && cut < end + 5),
            "cut at {cut}: {result:?}"
        );
    }
}

#[test]
fn every_flipped_byte_ends_in_items_or_an_error() {
    let bytes = sample();
    for at in 0..bytes.len() {
        for value in [0x00, 0x05, 0x7e, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            let _ = read(&damaged, 64);
        }
    }
}

#[test]
fn messages_name_section_field_and_offset() {
    let bytes = sample();
    let edit = |at: usize, value: u8| {
        let mut damaged = bytes.clone();
        damaged[at] = value;
        read(&damaged, 64).unwrap_err().to_string()
    };
    assert_eq!(edit(7, 4), "stream header, field version, offset 0x4: found 0x4, expected 0x3");
    let footer = bytes.windows(4).rposition(|w| w == [1, 2, 3, 4]).unwrap() + 4;
    assert_eq!(
        edit(footer, 0),
        format!("section dev, field footer, offset {footer:#x}: found 0x0, expected 0x7e")
    );
    let package = bytes.windows(5).position(|w| w == [8, 0, 7, 0, 4]).unwrap();
    assert!(edit(package + 8, 3).contains("the package ends inside this"));
}

/// A stream that begins with `configuration`'s bytes behind the machine's name.
fn configured(subsections: &[u8]) -> Result<Vec<String>, Error> {
    let mut out = Vec::new();
    Configuration { machine: "microvm".into(), ..Default::default() }.write(&mut out);
    out.extend_from_slice(subsections);
    end_of_states(&mut out);
    read(&out, 64)
}

fn subsection(name: &str, version: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![5, name.len() as u8];
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(&[0, 0, 0, version]);
    out.extend_from_slice(body);
    out
}

#[test]
fn the_page_size_is_accepted_by_name_if_it_is_ours() {
    let bits = |bits| subsection("configuration/target-page-bits", 1, &[0, 0, 0, bits]);
    assert!(configured(&bits(12)).unwrap()[0].contains("page_bits: Some(12)"));
    let error = configured(&bits(13)).unwrap_err().to_string();
    assert!(error.contains("target page bits") && error.contains("expected 0xc"), "{error}");
    assert!(configured(&[bits(12), bits(12)].concat()).unwrap_err().to_string().contains("twice"));
}

#[test]
fn subsections_of_the_configuration_are_known_whole_and_single() {
    let uuid = |version| subsection("configuration/uuid", version, &[7; 16]);
    assert!(configured(&uuid(1)).is_ok());
    assert!(configured(&uuid(2)).unwrap_err().to_string().contains("version 2 is newer"));
    assert!(configured(&[uuid(1), uuid(1)].concat()).is_err());
    assert!(configured(&subsection("configuration/colour", 1, &[])).is_err());
    let capabilities = |names: &[&str]| {
        let mut body = vec![0, 0, 0, names.len() as u8];
        for name in names {
            body.push(name.len() as u8);
            body.extend_from_slice(name.as_bytes());
        }
        configured(&subsection("configuration/capabilities", 1, &body))
    };
    // A list of none says what no list says.
    assert!(capabilities(&[]).is_ok());
    assert!(capabilities(&["mapped-ram"]).is_ok());
    assert!(capabilities(&["xbzrle"]).unwrap_err().to_string().contains("\"xbzrle\" is not known"));
}

/// What follows the configuration of a stream with one block, RAM section 2.
fn after_start(more: impl FnOnce(&mut Vec<u8>)) -> Result<Vec<String>, Error> {
    let mut out = Vec::new();
    Configuration { machine: "microvm".into(), ..Default::default() }.write(&mut out);
    ram(2).write(SectionKind::Start, &mut out);
    RamWriter::block_list(&mut out, [("microvm.ram", 1 << 20)]);
    RamWriter::end(&mut out);
    ram(2).write_footer(&mut out);
    more(&mut out);
    read(&out, 64)
}

fn ram(id: u32) -> SectionHeader {
    SectionHeader { id, name: "ram".into(), instance: 0, version: 4 }
}

#[track_caller]
fn refused(result: Result<Vec<String>, Error>, why: &str) {
    let error = result.unwrap_err().to_string();
    assert!(error.contains(why), "{error}");
}

#[test]
fn ids_mean_one_section_and_ram_begins_once() {
    let start = |header: SectionHeader| {
        after_start(|out| {
            header.write(SectionKind::Start, out);
            RamWriter::end(out);
            header.write_footer(out);
            end_of_states(out);
        })
    };
    refused(start(ram(2)), "field section id");
    refused(start(ram(5)), "field section name, offset 0x53: \"ram\" appears twice");
    refused(start(SectionHeader { instance: 1, ..ram(5) }), "field instance");
    refused(start(SectionHeader { version: 3, ..ram(5) }), "field version");
    refused(start(SectionHeader { name: "dirty-bitmap".into(), ..ram(5) }), "how this section");
    // A device that takes the id of ram would be taken for it by the next part.
    let device = SectionHeader { id: 2, name: "dev".into(), instance: 0, version: 1 };
    refused(after_start(|out| device.write(SectionKind::Full, out)), "field section id");
    let name = |out: &mut Vec<u8>| out.extend_from_slice(&[4, 0, 0, 0, 9, 2, 0xff, 0xfe]);
    refused(
        after_start(|out| {
            name(out);
            out.extend_from_slice(&[0; 8]);
        }),
        "field section name, offset 0x53: not text",
    );
}

#[test]
fn a_second_list_of_blocks_is_refused() {
    let again = after_start(|out| {
        ram(2).write(SectionKind::Part, out);
        RamWriter::block_list(out, [("other", 1 << 20)]);
    });
    refused(again, "field block list");
}

#[test]
fn behind_the_end_stands_a_description_or_go_and_nothing_else() {
    let go = |out: &mut Vec<u8>| Frame::Go.write(out);
    assert!(after_start(end_of_states).is_ok());
    let last = after_start(|out| {
        end_of_states(out);
        description(out, "{}");
        go(out);
    });
    assert_eq!(last.unwrap().last().unwrap(), "Frame(Go)");
    let without = after_start(|out| {
        end_of_states(out);
        go(out);
    });
    assert_eq!(without.unwrap().last().unwrap(), "Frame(Go)");
    refused(after_start(go), "GO before the end of the states");
    for rubbish in [&[0][..], &[1, 2], b"rubbish", &[8, 0, 2, 0, 4, 0, 0, 0, 0]] {
        let result = after_start(|out| {
            end_of_states(out);
            out.extend_from_slice(rubbish);
        });
        assert!(result.is_err(), "{rubbish:?}");
    }
}

#[test]
fn frames_carry_runs_ranges_and_records_of_pages() {
    let found = after_start(|out| {
        Frame::Run { block: 0, offset: 0x2000, bytes: 8192 }.write(out);
        out.extend_from_slice(&[9; 8192]);
        Frame::Zero { block: 0, offset: 0, bytes: 1 << 20 }.write(out);
        let mut records = Vec::new();
        RamWriter::default().zero(&mut records, 0, "microvm.ram", 0x1000);
        Frame::Records { bytes: records.len() as u32 }.write(out);
        out.extend_from_slice(&records);
        Frame::Sync { round: 1 }.write(out);
        end_of_states(out);
    });
    let found = found.unwrap();
    let count = |what: &str| found.iter().filter(|item| item.starts_with(what)).count();
    assert_eq!((count("Frame"), count("Ram(Zero")), (4, 1));
    assert!(count("Run { at: PageAt { block: 0, offset: 8192") > 0);
    for (block, offset, bytes) in
        [(1, 0, 4096), (0, 0, (1 << 20) + 4096), (0, 8, 4096), (0, !0xfff, 8192)]
    {
        refused(
            after_start(|out| Frame::Zero { block, offset, bytes }.write(out)),
            "a range outside its block",
        );
    }
    let record = |bytes: u32, record: &[u8]| {
        after_start(|out| {
            Frame::Records { bytes }.write(out);
            out.extend_from_slice(record);
        })
    };
    let mut zero = Vec::new();
    RamWriter::default().zero(&mut zero, 0, "microvm.ram", 0x1000);
    let mut end = Vec::new();
    RamWriter::end(&mut end);
    refused(record(8, &end), "records of pages only");
    refused(record(zero.len() as u32 - 1, &zero), "the frame ends inside this");
    // Records of a frame name their block anew.
    let mut again = Vec::new();
    let mut writer = RamWriter::default();
    writer.zero(&mut again, 0, "microvm.ram", 0);
    again.clear();
    writer.zero(&mut again, 0, "microvm.ram", 0);
    refused(record(again.len() as u32, &again), "none was named before");
}

#[test]
fn a_channel_carries_frames_and_nothing_else() {
    let listed = ListedBlock {
        name: "microvm.ram".into(),
        bytes: 1 << 20,
        page_bytes: None,
        guest_address: None,
        mapped: None,
    };
    let read = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        let mut reader = Reader::of_channel(vec![listed.clone()]);
        loop {
            match reader.next(&out[reader.offset() as usize..]) {
                Ok(Step::Item(..)) => {}
                Ok(Step::Need(_)) => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
    };
    assert!(read(&|out| Frame::Sync { round: 3 }.write(out)).is_ok());
    assert!(read(&|out| Frame::Go.write(out)).unwrap_err().contains("main channel"));
    assert!(read(&|out| Command::Ping(1).write(out)).unwrap_err().contains("channel of frames"));
    assert!(read(&|out| ram(2).write(SectionKind::Part, out)).unwrap_err().contains("field frame"));
    assert!(read(&|out| end_of_states(out)).is_err());
}
