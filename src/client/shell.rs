//! `godwit qmp`: QMP commands from a shell.

use super::error::Error;
use super::prompt;
use super::qmp::{Address, Client};
use super::terminal::{say, show};
use super::typed::Schema;
use super::words::{send, words};
use crate::migrate::{capabilities, parameters};
use crate::qmp::commands;
use crate::qmp::introspection;
use crate::qmp::schema::Shape;
use clap::Args;
use serde_json::{Map, json};
use std::io::{BufRead, IsTerminal};
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  godwit qmp --qmp unix:Q query-status
  godwit qmp --qmp unix:Q migrate-set-parameters max-bandwidth=125M
  godwit qmp --qmp unix:Q query-cpu-model-expansion type=full model.name=host
  godwit qmp --qmp unix:Q '{\"execute\": \"stop\"}'
  godwit qmp --qmp unix:Q --events            print events as they come
  godwit qmp --qmp unix:Q                     a shell with completion and history; or one command per line from
                                              standard input
  godwit qmp --help COMMAND                   what a command does, and what it takes";

#[derive(Args, Debug)]
#[command(after_long_help = format!(
    "{EXAMPLES}\n\nMigration parameters (migrate-set-parameters), their defaults, and when a change acts: now, or at \
     the start of a migration:\n{}\nMigration capabilities (migrate-set-capabilities):\n{}",
    parameters::help(),
    capabilities::help(),
))]
#[command(after_help = EXAMPLES, disable_help_flag = true)]
pub struct Shell {
    /// The machine's monitor: unix:PATH or tcp:HOST:PORT
    #[arg(long, value_name = "ADDRESS", required_unless_present = "help")]
    pub qmp: Option<Address>,
    /// Print events as they come, until the machine ends
    #[arg(long)]
    pub events: bool,
    /// This page, or what COMMAND does and takes
    #[arg(short, long, value_name = "COMMAND", num_args = 0..=1)]
    pub help: Option<Option<String>>,
    /// The command, then its arguments as NAME=VALUE, of the types that the machine's schema gives
    /// them, or NAME.NAME=VALUE inside an object; or one JSON object
    #[arg(value_name = "WORD")]
    pub words: Vec<String>,
}

pub fn run(shell: &Shell) -> Result<(), Error> {
    match (&shell.help, &shell.qmp) {
        (Some(Some(command)), _) => return Ok(show(help(command)?)?),
        (Some(None), _) | (None, None) => {
            let mut page = Shell::augment_args(clap::Command::new("godwit qmp"));
            return Ok(show(page.render_long_help())?);
        }
        (None, Some(_)) => {}
    }
    let address = shell.qmp.as_ref().ok_or(Error::NotThere("monitor named"))?;
    let mut client = match shell.events {
        true => Client::connect_in_time(address, &|| {
            say(format_args!(
                "godwit: {address} is busy with another client, or is no QMP monitor; waiting"
            ));
        })?,
        false => Client::connect(address)?,
    };
    if !shell.words.is_empty() {
        let answer = send(&mut client, &shell.words)?;
        show(format_args!("{answer:#}\n"))?;
    }
    if shell.events {
        return print_events(&mut client);
    }
    // Answers that go to a file or a pipe are no conversation with a person.
    let is_person = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    match (shell.words.is_empty(), is_person) {
        (true, true) => prompt::run(client),
        (true, false) => converse(&mut client),
        (false, _) => Ok(()),
    }
}

fn print_events(client: &mut Client) -> Result<(), Error> {
    loop {
        match client.event(Duration::from_secs(3600)) {
            Ok(Some(event)) => show(format_args!("{event}\n"))?,
            Ok(None) => {}
            Err(super::qmp::Error::Closed { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A command per line; a refused one is told and the next one read.
fn converse(client: &mut Client) -> Result<(), Error> {
    for line in std::io::stdin().lock().lines() {
        let words = words(&line?);
        if words.is_empty() {
            continue;
        }
        match send(client, &words) {
            Ok(answer) => show(format_args!("{answer:#}\n"))?,
            Err(
                error @ (Error::Qmp(super::qmp::Error::Refused { .. }) | Error::Argument { .. }),
            ) => {
                say(format_args!("godwit: {error}"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What a command of this program does, and what it takes.
fn help(name: &str) -> Result<String, Error> {
    let Some(command) = commands::find(name) else {
        let near = crate::suggest::nearest(name, commands::all().map(|command| command.name));
        let why = match near {
            Some(near) => format!("there is no such command; did you mean {near}?"),
            None => "there is no such command; query-commands lists them".into(),
        };
        return Err(Error::Argument { command: name.into(), why });
    };
    let schema = Schema::of(introspection().into());
    let mut page = format!("{name}: {}\n", command.does);
    let mut describe = |shape: &Shape, when: &str| {
        let given = match when.split_once('=') {
            Some((tag, case)) => Map::from_iter([(tag.to_owned(), json!(case))]),
            None => Map::new(),
        };
        let types = schema.arguments(name, &given);
        for member in shape.members {
            let of = types.iter().find(|argument| argument.name == member.name);
            let of = of.map_or(String::new(), |of| schema.describe(&of.of));
            let must = if member.optional { "" } else { ", required" };
            page += &format!("\n  {}={of}\n      {}{must}", member.name, member.meaning);
            if !when.is_empty() {
                page += &format!(", with {when}");
            }
        }
    };
    describe(command.arguments, "");
    if let Some(union) = &command.arguments.union {
        for (case, shape) in union.branches {
            describe(shape, &format!("{}={case}", union.tag));
        }
    }
    if command.arguments.members.is_empty() {
        page += "\nIt takes no arguments.";
    }
    if command.arguments.open {
        page += "\n  …\n      and whatever else belongs to what is asked for";
    }
    Ok(page + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_says_what_a_command_takes() {
        let page = help("dump-guest-memory").unwrap();
        assert!(page.contains("protocol=str\n      file:PATH or fd:NAME, required"), "{page}");
        assert!(page.contains("format=elf|kdump-zlib|"), "{page}");
        for command in commands::all() {
            assert!(help(command.name).unwrap().contains(command.does));
        }
        assert!(
            help("query-statu").unwrap_err().to_string().contains("did you mean query-status?")
        );
    }
}
