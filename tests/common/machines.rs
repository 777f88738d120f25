//! Machines inside the test process, and streams loaded into them and saved from them in one piece.

use godwit::args::{self, Request};
use godwit::devices::{HostCpu, LoadReport, Sections};
use godwit::kvm::state::ForeignTsc;
use godwit::machine::load::{Known, Loader};
use godwit::machine::save::write_sections;
use godwit::machine::{Machine, Outside, RunState};
use godwit::stream::{
    Configuration, Error, Item, PAGE_BYTES, RamWriter, Reader, Record, SectionHeader, SectionKind,
    Step, description, end_of_states,
};
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

/// What the guest wrote to its serial port.
#[derive(Clone, Default)]
pub(crate) struct Output(Arc<Mutex<Vec<u8>>>);

impl Output {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A machine of this command line.
pub(crate) fn build(words: &str) -> (Arc<Machine>, Output) {
    let words = words.split_whitespace().map(|word| word.replace('~', " ").into());
    let Ok(Request::Run(config)) = args::parse(words) else { panic!("a sound command line") };
    let output = Output::default();
    let outside = Outside {
        serial: Some(Box::new(output.clone())),
        lines: Default::default(),
        networks: std::sync::Arc::new(godwit::devices::NoNetworks),
        events: Box::new(|_| {}),
    };
    (Machine::build(&config, outside).expect("the machine is built"), output)
}

/// Reads a whole stream into a machine that waits for one.
pub(crate) fn load(
    machine: &Machine,
    bytes: &[u8],
) -> Result<(LoadReport, Option<RunState>), Error> {
    let host = HostCpu::from_cpuid(machine.vm().cpuid().as_slice());
    let mut loader = Loader::new(machine.config(), host);
    let mut reader = Reader::new(Known, Vec::new());
    let mut main = None;
    let ram = machine.ram();
    let gpa = |offset| ram.main().gpa(offset).expect("an offset in the block");
    loop {
        let at = reader.offset();
        let Step::Item(item, _) = reader.next(&bytes[at as usize..])? else { break };
        match item {
            Item::Configuration(found) => loader.configuration(&found, at)?,
            Item::Ram(Record::Block { block }) => {
                let is_ram = loader.block(&reader.blocks()[block as usize], at)?;
                main = is_ram.then_some(block).or(main);
            }
            Item::Ram(Record::Page { at, bytes }) if Some(at.block) == main => {
                ram.write(gpa(at.offset), bytes).unwrap();
            }
            Item::Ram(Record::Delta { at, delta }) if Some(at.block) == main => {
                let mut page = [0; PAGE_BYTES];
                ram.read(gpa(at.offset), &mut page).unwrap();
                xbzrle::decode(delta, &mut page).unwrap();
                ram.write(gpa(at.offset), &page).unwrap();
            }
            Item::Ram(Record::Zero { at }) if Some(at.block) == main => {
                let mut page = [0; PAGE_BYTES];
                ram.read(gpa(at.offset), &mut page).unwrap();
                if !xbzrle::is_zero(&page) {
                    ram.write(gpa(at.offset), &[0; PAGE_BYTES]).unwrap();
                }
            }
            Item::Device { header, payload } => {
                // The loader looks for the payload's end itself.
                let start = at as usize;
                let step = loader.section(&header, &bytes[start..], at)?;
                assert_eq!(step, Step::Item((), payload.len()));
            }
            Item::EndOfStates => {
                loader.blocks_complete(reader.blocks(), at)?;
                break;
            }
            _ => {}
        }
    }
    loader.validate()?;
    let run_state = loader.run_state();
    let report = machine.load(loader.sections(), ForeignTsc::Accept);
    Ok((report.expect("the state is applied"), run_state))
}

/// The device sections of a machine that stands still.
pub(crate) fn sections(machine: &Machine) -> Sections {
    machine.save(RunState::Running).expect("the state of a machine that stands still is read")
}

/// All of a machine that stands still, as one stream.
pub(crate) fn save(machine: &Machine) -> Vec<u8> {
    let sections = sections(machine);
    let block = machine.ram().main();
    let mut out = Vec::new();
    Configuration { machine: "microvm".into(), ..Configuration::default() }.write(&mut out);
    let header = SectionHeader { id: 2, name: "ram".into(), instance: 0, version: 4 };
    header.write(SectionKind::Start, &mut out);
    RamWriter::block_list(&mut out, [(block.name(), block.bytes())]);
    RamWriter::end(&mut out);
    header.write_footer(&mut out);
    header.write(SectionKind::End, &mut out);
    let mut ram = RamWriter::default();
    for offset in (0..block.bytes()).step_by(PAGE_BYTES) {
        let mut page = [0; PAGE_BYTES];
        machine.ram().read(block.gpa(offset).unwrap(), &mut page).unwrap();
        if xbzrle::is_zero(&page) {
            ram.zero(&mut out, 0, block.name(), offset);
        } else {
            ram.page(&mut out, 0, block.name(), offset, &page);
        }
    }
    RamWriter::end(&mut out);
    header.write_footer(&mut out);
    let text = write_sections(&sections, 3, &mut out);
    end_of_states(&mut out);
    description(&mut out, &text);
    out
}
