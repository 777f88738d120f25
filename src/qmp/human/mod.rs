//! The human monitor: QEMU's commands as people type them, each made of QMP's. `human-monitor-command`
//! runs a line of it, [`session`] serves it on a character device.
//!
//! A command is a row in a table here: its names, what it takes ([`words`]), and the QMP command that
//! does it, or a function that asks several. Nothing here does what QMP cannot.

mod act;
mod edit;
mod info;
mod keyed;
mod session;
mod shared;
mod words;

use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::args::Args;
use super::commands::{Answer, Run, find};
use super::error::Error;
use super::fds::Monitor;
use super::json::{Reader, Value, line};
use super::schema;
use crate::vmm::Vmm;
pub(super) use session::Session;
pub(super) use shared::Input;
pub(crate) use shared::Inputs;
use words::Param;

/// A command that people type.
struct Human {
    /// What stands in front of its names.
    prefix: &'static str,
    names: &'static [&'static str],
    params: &'static [Param],
    /// The same for people.
    usage: &'static str,
    help: &'static str,
    run: Does,
}

enum Does {
    /// The QMP command of this name with the same arguments, which says nothing.
    Qmp(&'static str),
    Says(fn(&Asked<'_>) -> Result<String, Error>),
    Help,
}

const INFO: &str = "info ";

/// Both tables, in the order of help.
fn table() -> impl Iterator<Item = &'static Human> {
    act::TABLE.iter().chain(info::TABLE)
}

/// A command with what was typed behind it.
struct Asked<'a> {
    vmm: &'a Arc<Vmm>,
    monitor: &'a Monitor,
    args: Args<'a>,
    /// Of the terminal, if it was typed at one.
    history: Option<&'a [String]>,
}

impl Asked<'_> {
    /// What a QMP command answers, with all that it means: a moment that forbids it forbids it here,
    /// and one that changes the machine takes its turn among all monitors'. Not on the control
    /// plane.
    fn ask(&self, name: &str, arguments: &Json) -> Answer {
        self.ask_with(name, &members(arguments))
    }

    fn ask_with(&self, name: &str, arguments: &[(String, Value)]) -> Answer {
        let command =
            find(name).ok_or_else(|| Error::generic(format_args!("no command {name}")))?;
        schema::check(arguments, command.arguments, "")?;
        let turn = matches!(command.run, Run::Blocking(_));
        let _turn = turn.then(|| self.vmm.turn.blocking_lock());
        command.call(self.vmm, self.monitor, arguments)
    }

    /// Of a query without arguments.
    fn query(&self, name: &str) -> Answer {
        self.ask(name, &json!({}))
    }
}

/// An object as a command takes it.
fn members(object: &Json) -> Vec<(String, Value)> {
    match Reader::new().next(&mut &line(object)[..]) {
        Some(Ok(Value::Object(members))) => members,
        _ => Vec::new(),
    }
}

impl Human {
    fn help(&self) -> String {
        let names = self.names.join("|");
        format!("{}{names} {} -- {}\r\n", self.prefix, self.usage, self.help)
    }

    fn run(
        &self,
        vmm: &Arc<Vmm>,
        monitor: &Monitor,
        rest: &str,
        history: Option<&[String]>,
    ) -> String {
        let names = self.names.join("|");
        let given = match words::read(&names, self.params, rest) {
            Ok(given) => given,
            Err(why) => {
                let name = format!("{}{}", self.prefix, self.names[0]);
                return format!("{why}\r\nTry \"help {name}\" for more information\r\n");
            }
        };
        let asked = Asked { vmm, monitor, args: Args::new(&given), history };
        let said = match self.run {
            Does::Help => return help(asked.args.text_if_given("name").unwrap_or("")),
            Does::Qmp(name) => asked.ask_with(name, &given).map(|_| String::new()),
            Does::Says(says) => says(&asked),
        };
        said.unwrap_or_else(|error| format!("Error: {}\r\n", error.desc))
    }
}

/// What a line comes to; `history` is that of the terminal at which it was typed. May take as long as
/// the commands in it do; not on the control plane.
pub(super) fn answer(
    vmm: &Arc<Vmm>,
    monitor: &Monitor,
    line: &str,
    history: Option<&[String]>,
) -> String {
    let (name, rest) = first_word(line);
    if name.is_empty() {
        return String::new();
    }
    if name != "info" {
        return match look_up("", name) {
            Some(human) => human.run(vmm, monitor, rest, history),
            None => format!("unknown command: '{name}'\r\n"),
        };
    }
    match first_word(rest) {
        ("", _) => help("info"),
        (name, rest) => match look_up(INFO, name) {
            Some(human) => human.run(vmm, monitor, rest, history),
            None => format!("unknown command: 'info {name}'\r\n"),
        },
    }
}

fn first_word(line: &str) -> (&str, &str) {
    let line = line.trim();
    line.split_at(line.find(char::is_whitespace).unwrap_or(line.len()))
}

fn look_up(prefix: &str, name: &str) -> Option<&'static Human> {
    table().find(|human| human.prefix == prefix && human.names.contains(&name))
}

/// Of one command, of `info`, or of all.
fn help(about: &str) -> String {
    match first_word(about) {
        ("", _) => {
            let all = table().filter(|human| human.prefix.is_empty()).map(Human::help);
            let info = "info [subcommand] -- show various information about the system state\r\n";
            all.chain([info.to_owned()]).collect()
        }
        ("info", "") => table().filter(|human| human.prefix == INFO).map(Human::help).collect(),
        ("info", name) => match look_up(INFO, name.trim()) {
            Some(human) => human.help(),
            None => format!("unknown command: 'info {}'\r\n", name.trim()),
        },
        (name, _) => match look_up("", name) {
            Some(human) => human.help(),
            None => format!("unknown command: '{name}'\r\n"),
        },
    }
}

/// The words that `head`, a line up to its cursor, can go on with, and how much of one it has.
fn completions(head: &str) -> (&str, Vec<&'static str>) {
    let start = head.rfind(' ').map_or(0, |at| at + 1);
    let (before, word) = head.split_at(start);
    let prefix = match before.split_whitespace().collect::<Vec<_>>()[..] {
        [] | ["help" | "?"] => "",
        ["info"] | ["help" | "?", "info"] => INFO,
        _ => return (word, Vec::new()),
    };
    let named = table().filter(|human| human.prefix == prefix).flat_map(|human| human.names);
    let info = prefix.is_empty().then_some(&"info");
    let mut all: Vec<_> =
        named.chain(info).copied().filter(|name| name.starts_with(word)).collect();
    all.sort_unstable();
    (word, all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_names_a_command_that_takes_what_is_typed() {
        for human in table() {
            if let Does::Qmp(name) = human.run {
                let command = find(name).unwrap_or_else(|| panic!("{name}"));
                for param in human.params {
                    let known = command.arguments.members.iter().any(|m| m.name == param.name);
                    assert!(known, "{name} {}", param.name);
                }
            }
            let same = |other: &&Human| other.prefix == human.prefix && other.names == human.names;
            assert_eq!(table().filter(same).count(), 1);
        }
    }

    #[test]
    fn words_are_completed() {
        assert_eq!(completions("inf"), ("inf", vec!["info"]));
        assert_eq!(completions("info sta"), ("sta", vec!["status"]));
        assert_eq!(completions("help info sta"), ("sta", vec!["status"]));
        assert_eq!(
            completions("system_"),
            ("system_", vec!["system_powerdown", "system_reset", "system_wakeup"])
        );
        assert_eq!(completions("stop sta"), ("sta", vec![]));
    }
}
