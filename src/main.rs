//! The `godwit` command.

use clap::builder::styling::{AnsiColor, Style as AnsiStyle, Styles};
use clap::error::ErrorKind;
use clap::{ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand};
use godwit::args::{self, Request, Style};
use godwit::stderr::say;
use godwit::{client, control};
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Runs guests on KVM, moves them to another host while they run, and dumps their memory.
#[derive(Parser)]
#[command(name = "godwit", version, color = ColorChoice::Auto, arg_required_else_help = true)]
#[command(after_help = AFTER_HELP)]
#[command(styles = STYLES)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const AFTER_HELP: &str = "\
Try it, with nothing but this binary and /dev/kvm:
  godwit run -M microvm -kernel builtin -append ws=64
  godwit demo";

const STYLES: Styles = Styles::styled()
    .header(AnsiStyle::new().bold())
    .usage(AnsiStyle::new().bold())
    .literal(AnsiColor::Cyan.on_default());

#[derive(Subcommand)]
enum Verb {
    /// Run a guest, with QEMU's own options
    #[command(disable_help_flag = true)]
    Run {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION")]
        words: Vec<OsString>,
    },
    /// See a guest move live from one machine to another on this host
    Demo(client::demo::Demo),
    /// Move a running machine to another host
    Migrate(client::migrate::Migrate),
    /// Keep a machine's guest in a file, from which it can be run as often as you like
    Save(client::save::Save),
    /// Run a guest from such a file, with the options of `run` behind --
    Restore(client::restore::Restore),
    /// Write a machine's memory and registers to a file for gdb, crash, drgn or makedumpfile
    Dump(client::dump::Dump),
    /// Show a machine at a glance
    Status(client::status::Status),
    /// Send QMP commands to a machine
    Qmp(client::shell::Shell),
    /// List, check and merge files of snapshots that build on each other
    #[command(subcommand)]
    Snapshot(client::snapshot::Snapshot),
    /// Show what is in a migration stream, and take the guest's memory out of it
    Inspect(godwit::inspect::Options),
    /// Write the built-in guest as an ELF file, for other VMMs that boot PVH kernels
    BuiltinGuest {
        /// Where to; - is standard output
        file: PathBuf,
    },
}

/// Called by a name of QEMU's, this is `godwit run`.
fn is_called_as_qemu() -> bool {
    let name = std::env::args_os().next().map(PathBuf::from);
    let name = name.as_deref().and_then(std::path::Path::file_name).and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("qemu-system-") || ["qemu-kvm", "kvm"].contains(&name))
}

fn main() -> ExitCode {
    let parent = std::os::unix::process::parent_id();
    if is_called_as_qemu() {
        return match prepare() {
            Ok(()) => run(std::env::args_os().skip(1).collect(), parent, None),
            Err(why) => refuse(why),
        };
    }
    let cli = Cli::command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match cli {
        Ok(cli) => cli,
        // Which one, it does not say.
        Err(error) if error.kind() == ErrorKind::InvalidUtf8 => {
            let words = std::env::args_os().filter(|word| word.to_str().is_none());
            let words: Vec<String> = words.map(|word| format!("{word:?}")).collect();
            return refuse(format_args!("not UTF-8, where only text will do: {}", words.join(" ")));
        }
        Err(error) => error.exit(),
    };
    if let Err(why) = prepare() {
        return refuse(why);
    }
    match cli.verb {
        Verb::Run { words } => run(words, parent, None),
        Verb::Demo(demo) => done(client::demo::run(&demo)),
        Verb::Migrate(migrate) => done(client::migrate::run(&migrate)),
        Verb::Save(save) => done(client::save::run(&save)),
        Verb::Restore(restore) => match restore.words() {
            Ok(words) => run(words, parent, Some(&restore)),
            Err(error) => refuse(chain(&error)),
        },
        Verb::Dump(dump) => done(client::dump::run(&dump)),
        Verb::Status(status) => done(client::status::run(&status)),
        Verb::Qmp(shell) => done(client::shell::run(&shell)),
        Verb::Snapshot(snapshot) => done(client::snapshot::run(&snapshot)),
        Verb::Inspect(options) => {
            match client::interrupt::end_cleanly()
                .map_err(Into::into)
                .and_then(|()| godwit::inspect::run(&options))
            {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => refuse(chain(&*error)),
            }
        }
        Verb::BuiltinGuest { file } => done(client::builtin_guest::run(&file)),
    }
}

/// What every verb wants to be so.
fn prepare() -> Result<(), String> {
    outlive_file_size_limit().map_err(|error| format!("SIGXFSZ cannot be handled: {error}"))?;
    log();
    check_codec_path()?;
    #[cfg(feature = "sabotage")]
    godwit::sabotage::chosen();
    Ok(())
}

/// A write past `ulimit -f` is an error of that write (`EFBIG`), not the end of the process and its
/// guest. A handler that does nothing, rather than SIG_IGN: commands of `exec:` do not inherit it.
fn outlive_file_size_limit() -> std::io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    Ok(vmm_sys_util::signal::register_signal_handler(libc::SIGXFSZ, nothing)?)
}

/// `GODWIT_LOG=debug` tells on stderr what goes on; without it only what is wrong is told.
fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("GODWIT_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // What cannot be written is lost; it would be said by `eprintln!`, which panics then.
    log.log_internal_errors(false).init();
}

/// A path that the environment names and this CPU has not is refused: the codec would pass it over.
fn check_codec_path() -> Result<(), String> {
    let Some(name) = std::env::var_os(xbzrle::PATH_VARIABLE) else { return Ok(()) };
    if name.to_str().and_then(xbzrle::Path::named).is_some() {
        return Ok(());
    }
    let paths: Vec<_> = xbzrle::Path::available().map(|path| path.name()).collect();
    Err(format!(
        "{}={}: this processor's paths are {}",
        xbzrle::PATH_VARIABLE,
        name.display(),
        paths.join(", ")
    ))
}

fn run(words: Vec<OsString>, parent: u32, restore: Option<&client::restore::Restore>) -> ExitCode {
    let began = Instant::now();
    match args::parse(words) {
        Ok(Request::Help) => {
            let style =
                if std::io::stdout().is_terminal() { Style::Terminal } else { Style::Plain };
            done(client::show(args::help(style)))
        }
        Ok(Request::Keys(keys)) => done(client::show(keys.join("\n") + "\n")),
        Ok(Request::Version) => done(client::show(args::version() + "\n")),
        Ok(Request::Run(mut config)) => {
            if let Some(Err(error)) = restore.map(|restore| restore.apply(&mut config, began)) {
                return refuse(chain(&error));
            }
            match control::run(*config, parent) {
                Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(1)),
                Err(error) => refuse(chain(&error)),
            }
        }
        Err(errors) => refuse(errors),
    }
}

fn done(result: Result<(), client::Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(chain(&error)),
    }
}

/// An error and its causes, on one line. Some say their cause themselves, with what to do behind
/// it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let why = error.to_string();
        if !text.contains(&why) {
            text = format!("{text}: {why}");
        }
        cause = error.source();
    }
    text
}

/// One line per fault on stderr, and the status QEMU gives for a bad command line.
fn refuse(why: impl std::fmt::Display) -> ExitCode {
    for line in why.to_string().lines() {
        say(format_args!("godwit: {line}"));
    }
    ExitCode::FAILURE
}
