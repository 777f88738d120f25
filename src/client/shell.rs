//! `godwit qmp`: QMP commands from a shell.

use super::error::Error;
use super::qmp::{Address, Client};
use super::terminal::{say, show};
use crate::migrate::{capabilities, parameters};
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use serde_json::{Map, Value, json};
use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  godwit qmp --qmp unix:Q query-status
  godwit qmp --qmp unix:Q migrate-set-parameters max-bandwidth=125000000
  godwit qmp --qmp unix:Q '{\"execute\": \"stop\"}'
  godwit qmp --qmp unix:Q --events            print events as they come
  godwit qmp --qmp unix:Q                     one command per line from standard input";

#[derive(Args, Debug)]
#[command(after_long_help = format!(
    "{EXAMPLES}\n\nMigration parameters (migrate-set-parameters), their defaults, and when a change acts: now, or at \
     the start of a migration:\n{}\nMigration capabilities (migrate-set-capabilities):\n{}",
    parameters::help(),
    capabilities::help(),
))]
#[command(after_help = EXAMPLES)]
pub struct Shell {
    /// The machine's monitor: unix:PATH or tcp:HOST:PORT
    #[arg(long, value_name = "ADDRESS", value_parser = OsStringValueParser::new().try_map(Address::of_word))]
    pub qmp: Address,
    /// Print events as they come, until the machine ends
    #[arg(long)]
    pub events: bool,
    /// The command, then its arguments as NAME=VALUE (VALUE is JSON, or text as it stands); or one
    /// JSON object
    #[arg(value_name = "WORD")]
    pub words: Vec<String>,
}

pub fn run(shell: &Shell) -> Result<(), Error> {
    let mut client = Client::connect(&shell.qmp)?;
    if !shell.words.is_empty() {
        let answer = send(&mut client, &shell.words)?;
        show(format_args!("{answer:#}\n"))?;
    }
    if shell.events {
        return print_events(&mut client);
    }
    match shell.words.is_empty() {
        true => converse(&mut client),
        false => Ok(()),
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
    let prompt = || -> std::io::Result<()> {
        if std::io::stdin().is_terminal() {
            eprint!("qmp> ");
            std::io::stderr().flush()?;
        }
        Ok(())
    };
    prompt()?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<String> = match line.trim_start().starts_with('{') {
            true => vec![line],
            false => line.split_whitespace().map(String::from).collect(),
        };
        if !words.is_empty() {
            match send(client, &words) {
                Ok(answer) => show(format_args!("{answer:#}\n"))?,
                Err(error @ super::qmp::Error::Refused { .. }) => {
                    say(format_args!("godwit: {error}"));
                }
                Err(error) => return Err(error.into()),
            }
        }
        prompt()?;
    }
    Ok(())
}

fn send(client: &mut Client, words: &[String]) -> Result<Value, super::qmp::Error> {
    let request = request(words);
    let name = request["execute"].as_str().unwrap_or("the request").to_string();
    client.request(&name, &request)
}

/// What the words mean.
fn request(words: &[String]) -> Value {
    if let ([only], true) = (words, words[0].trim_start().starts_with('{'))
        && let Ok(request @ Value::Object(_)) = serde_json::from_str(only)
    {
        return request;
    }
    let argument = |word: &String| match word.split_once('=') {
        Some((name, text)) => {
            (name.to_string(), serde_json::from_str(text).unwrap_or_else(|_| json!(text)))
        }
        None => (word.clone(), Value::Bool(true)),
    };
    let arguments: Map<String, Value> = words[1..].iter().map(argument).collect();
    match arguments.is_empty() {
        true => json!({"execute": words[0]}),
        false => json!({"execute": words[0], "arguments": arguments}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_requests() {
        let of = |words: &[&str]| request(&words.iter().map(|w| w.to_string()).collect::<Vec<_>>());
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
}
