//! Every device section of the recorded streams is read into a struct and written back byte for
//! byte, and the description that comes from the same field tables is the recorded one.

use crate::common::vectors;
use godwit::machine::load::{Known, read_section};
use godwit::stream::{Item, Reader, Step};
use godwit::vmstate::Description;

#[test]
fn every_section_is_written_back_byte_for_byte() {
    for vector in vectors::all() {
        let bytes = vector.main();
        let mut reader = Reader::new(Known, Vec::new());
        let mut described = Description::new("microvm");
        let mut recorded = Vec::new();
        let (mut at, mut sections) = (0, 0);
        while let Step::Item(item, _) =
            reader.next(&bytes[at..]).unwrap_or_else(|error| panic!("{}: {error}", vector.name))
        {
            at = reader.offset() as usize;
            match item {
                Item::Device { header, payload } => {
                    let (section, used) = read_section(&header, payload, 0, true)
                        .unwrap_or_else(|stop| panic!("{}: {stop:?}", vector.name));
                    assert_eq!(used, payload.len());
                    let mut written = Vec::new();
                    section.write(&mut written);
                    assert_eq!(written, payload, "{}: {header}", vector.name);
                    described.device(&header.name, header.instance, &*section);
                    sections += 1;
                }
                Item::Description { text, .. } => recorded.extend_from_slice(text),
                _ => {}
            }
        }
        assert!(sections > 0 || vector.name.starts_with("postcopy"), "{}", vector.name);
        if !recorded.is_empty() {
            // The capabilities of a mapped-ram stream are described before the devices; ours are
            // not.
            let devices = |text: &str| text[text.find("\"page_size\"").unwrap()..].to_owned();
            let (ours, recorded) = (described.finish(), String::from_utf8(recorded).unwrap());
            assert!(vector.name.starts_with("mapped") || ours == recorded, "{}", vector.name);
            assert_eq!(devices(&ours), devices(&recorded), "{}", vector.name);
        }
    }
}
