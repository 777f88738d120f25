//! `godwit qmp`: QMP commands from a shell.

use super::error::Error;
use super::prompt;
use super::qmp::{Address, Client};
use super::terminal::{say, show};
use super::typed::{Schema, untyped};
use crate::migrate::{capabilities, parameters};
use crate::qmp::commands;
use crate::qmp::introspection;
use crate::qmp::schema::Shape;
use clap::Args;
use serde_json::{Map, Value, json};
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
        (Some(Some(command)), _) => return show(help(command)?),
        (Some(None), _) | (None, None) => {
            let mut page = Shell::augment_args(clap::Command::new("godwit qmp"));
            return show(page.render_long_help());
        }
        (None, Some(_)) => {}
    }
    let address = shell.qmp.as_ref().ok_or(Error::NotThere("monitor named"))?;
    let mut client = Client::connect(address)?;
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

/// A line as the words of a command; a JSON object is one.
pub(crate) fn words(line: &str) -> Vec<String> {
    match line.trim_start().starts_with('{') {
        true => vec![line.to_owned()],
        false => line.split_whitespace().map(String::from).collect(),
    }
}

/// Runs what the words mean, by the machine's own schema.
pub(crate) fn send(client: &mut Client, words: &[String]) -> Result<Value, Error> {
    // Old machines have no schema; commands without arguments need none.
    let schema = match words.len() {
        0 | 1 => None,
        _ => Schema::ask(client).ok(),
    };
    send_by(client, words, schema.as_ref())
}

/// The same with a schema that is known, if there is one.
pub(crate) fn send_by(
    client: &mut Client,
    words: &[String],
    schema: Option<&Schema>,
) -> Result<Value, Error> {
    let request = request(words, schema)?;
    let name = request["execute"].as_str().unwrap_or("the request").to_string();
    Ok(client.request(&name, &request)?)
}

/// What the words mean.
fn request(words: &[String], schema: Option<&Schema>) -> Result<Value, Error> {
    if let ([only], true) = (words, words[0].trim_start().starts_with('{'))
        && let Ok(request @ Value::Object(_)) = serde_json::from_str(only)
    {
        return Ok(request);
    }
    let argument = |word: &String| match word.split_once('=') {
        Some((name, text)) => (name.to_string(), untyped(text)),
        None => (word.clone(), Value::Bool(true)),
    };
    let arguments: Map<String, Value> = match schema {
        Some(schema) => schema
            .read(&words[0], &words[1..])
            .map_err(|why| Error::Argument { command: words[0].clone(), why })?,
        None => words[1..].iter().map(argument).collect(),
    };
    Ok(match arguments.is_empty() {
        true => json!({"execute": words[0]}),
        false => json!({"execute": words[0], "arguments": arguments}),
    })
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
    fn words_become_requests() {
        let of = |words: &[&str]| {
            request(&words.iter().map(|w| w.to_string()).collect::<Vec<_>>(), None).unwrap()
        };
        assert_eq!(of(&["stop"]), json!({"execute": "stop"}));
        assert_eq!(
            of(&["migrate", "uri=tcp:h:1", "detach"]),
            json!({"execute": "migrate", "arguments": {"uri": "tcp:h:1", "detach": true}})
        );
        assert_eq!(
            of(&["x", "n=5", "l=[1]"]),
            json!({"execute": "x", "arguments": {"n": 5, "l": [1]}})
        );
        assert_eq!(
            of(&["{\"execute\": \"cont\", \"id\": 1}"]),
            json!({"execute": "cont", "id": 1})
        );
    }

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
