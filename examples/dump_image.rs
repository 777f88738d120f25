//! Turns images of guest memory into a dump, without a guest: for measurements and for the checkers
//! in `tools/verify`.
//!
//! `--map` takes the map that the checkers take (`{"ranges": [{"start", "end", "file",
//! "offset"}]}`, files beside it); `--ram` takes one file as the RAM of a machine. Registers come
//! from an ELF core of the same guest.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use godwit::config::{Memory, MemoryBackend};
use godwit::dump::{
    self, Cpu, Filter, Format, GuestState, GuestView, Options, Output, Progress, RamView, Slices,
    VmCoreInfo,
};
use godwit::memory::GuestRam;

#[derive(Parser)]
struct Arguments {
    #[arg(long, conflicts_with = "map", required_unless_present = "map")]
    ram: Option<PathBuf>,
    #[arg(long)]
    map: Option<PathBuf>,
    /// An ELF core with the registers of all CPUs
    #[arg(long)]
    registers: Option<PathBuf>,
    /// Guest-physical address of a VMCOREINFO note, and its bytes: ADDRESS,BYTES
    #[arg(long)]
    vmcoreinfo: Option<String>,
    #[arg(long, default_value = "elf")]
    format: Format,
    #[arg(long)]
    paging: bool,
    #[arg(long, requires = "length")]
    begin: Option<u64>,
    #[arg(long, requires = "begin")]
    length: Option<u64>,
    #[arg(long)]
    threads: Option<usize>,
    /// `-` for standard output
    out: PathBuf,
}

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse();
    match (&arguments.ram, &arguments.map) {
        (Some(path), _) => {
            let bytes = std::fs::metadata(path)?.len();
            let backend = MemoryBackend::File {
                path: path.clone(),
                share: true,
                offset: 0,
                readonly: false,
                discard_at_exit: false,
            };
            let block = "microvm.ram".into();
            let config =
                Memory { bytes, block, backend, prealloc: false, merge: false, dump: true };
            dump(&RamView::stopped(&GuestRam::new(&config)?)?, &arguments)
        }
        (None, Some(map)) => {
            let parts = read_map(map)?;
            dump(&Slices::new(parts.iter().map(|(start, bytes)| (*start, &bytes[..]))), &arguments)
        }
        (None, None) => unreachable!("clap asked for one of them"),
    }
}

fn read_map(path: &Path) -> Result<Vec<(u64, Vec<u8>)>, Failure> {
    let map: serde_json::Value = serde_json::from_reader(File::open(path)?)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut parts = Vec::new();
    for range in map["ranges"].as_array().ok_or("a map without ranges")? {
        let number = |name: &str| range[name].as_u64().ok_or("a range without its numbers");
        let (start, end) = (number("start")?, number("end")?);
        let mut bytes = vec![0; (end - start) as usize];
        if let Some(file) = range["file"].as_str() {
            use std::os::unix::fs::FileExt;
            File::open(folder.join(file))?.read_exact_at(&mut bytes, number("offset")?)?;
        }
        parts.push((start, bytes));
    }
    Ok(parts)
}

fn dump(view: &dyn GuestView, arguments: &Arguments) -> Result<(), Failure> {
    let cpus = match &arguments.registers {
        Some(path) => dump::read::cpus(&std::fs::read(path)?)?,
        None => vec![Cpu { efer: 0x500, cr0: 1, rip: 0xfff0, ..Cpu::default() }],
    };
    let vmcoreinfo = arguments.vmcoreinfo.as_deref().map(|text| -> Result<_, Failure> {
        let (address, size) = text.split_once(',').ok_or("ADDRESS,BYTES")?;
        Ok(VmCoreInfo { guest_format: 1, size: size.parse()?, address: address.parse()? })
    });
    let guest = GuestState { view, cpus: &cpus, vmcoreinfo: vmcoreinfo.transpose()? };
    let mut options = Options::new(arguments.format);
    options.paging = arguments.paging;
    options.threads = arguments.threads.unwrap_or(options.threads);
    if let (Some(begin), Some(length)) = (arguments.begin, arguments.length) {
        options.filter = Some(Filter { begin, length });
    }
    let file = match arguments.out.to_str() {
        Some("-") => File::from(std::os::fd::AsFd::as_fd(&std::io::stdout()).try_clone_to_owned()?),
        _ => File::create(&arguments.out)?,
    };
    let progress = Progress::default();
    let started = Instant::now();
    let report = dump::write(&guest, &options, Output::new(file)?, &progress)?;
    let seconds = started.elapsed().as_secs_f64();
    let mebibytes = progress.completed() as f64 / f64::from(1 << 20);
    eprintln!(
        "{} {mebibytes:.0} MiB {seconds:.3} s {:.0} MiB/s",
        options.format,
        mebibytes / seconds
    );
    if let Some(why) = report.note_refused {
        eprintln!("{why}");
    }
    Ok(())
}
