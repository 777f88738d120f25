//! One client's conversation, without its socket: bytes in, what to do out.
//!
//! ```text
//!            qmp_capabilities                  disconnect
//! Negotiating ───────────────► Commanding{oob} ─────────► (a new session)
//! ```

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Value as Json, json};

use super::commands::{self, Command};
use super::error::Error;
use super::json::{Reader, Value};
use super::schema;
use super::version::version;

pub struct Session {
    reader: Reader,
    state: State,
    /// Out-of-band execution can be had on this connection.
    oob_offered: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Negotiating,
    Commanding { oob: bool },
}

/// What a client's bytes come to.
pub enum Item {
    /// Nothing to run.
    Answer(Message),
    /// The answer to the negotiation; from here on the client gets events.
    Negotiated(Message),
    Run(Job),
}

/// A command to be executed; its arguments have passed the schema.
pub struct Job {
    pub command: &'static Command,
    pub arguments: Vec<(String, Value)>,
    pub id: Option<Value>,
    /// Overtakes everything that waits.
    pub oob: bool,
}

impl Job {
    pub(crate) fn finish(id: Option<Value>, answer: Result<Json, Error>) -> Message {
        Message { body: answer, id }
    }
}

/// An answer as it goes to the client.
pub struct Message {
    body: Result<Json, Error>,
    id: Option<Value>,
}

impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        match &self.body {
            Ok(value) => object.serialize_entry("return", value)?,
            Err(error) => object.serialize_entry("error", &error.to_json())?,
        }
        if let Some(id) = &self.id {
            object.serialize_entry("id", id)?;
        }
        object.end()
    }
}

/// A request with its envelope checked and its command not yet looked up.
struct Request {
    name: String,
    arguments: Vec<(String, Value)>,
    oob: bool,
}

impl Session {
    pub fn new(oob_offered: bool) -> Session {
        Session { reader: Reader::new(), state: State::Negotiating, oob_offered }
    }

    /// What the server says first.
    pub(crate) fn greeting(&self) -> Json {
        let capabilities: &[&str] = if self.oob_offered { &["oob"] } else { &[] };
        json!({"QMP": {"version": version(), "capabilities": capabilities}})
    }

    /// Whether the client asked for out-of-band execution.
    pub(crate) fn oob(&self) -> bool {
        self.state == State::Commanding { oob: true }
    }

    /// Takes bytes from the front of `input` until something comes of them. `None`: more bytes are
    /// needed.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Item> {
        let value = match self.reader.next(input)? {
            Ok(value) => value,
            Err(error) => return Some(Item::Answer(Message { body: Err(error.into()), id: None })),
        };
        let (envelope, id) = split_id(value);
        let run = envelope.and_then(|members| self.request(members));
        Some(match run {
            Ok(request) => self.interpret(request, id),
            Err(error) => Item::Answer(Message { body: Err(error), id }),
        })
    }

    fn request(&self, members: Vec<(String, Value)>) -> Result<Request, Error> {
        let member = |name: &str, what: &str| {
            Error::generic(format_args!("QMP input member '{name}' {what}"))
        };
        let mut command: Option<(String, String)> = None;
        let mut arguments = Vec::new();
        for (name, value) in members {
            match (name.as_str(), value) {
                ("arguments", Value::Object(given)) => arguments = given,
                ("arguments", _) => return Err(member(&name, "must be an object")),
                ("execute", value) => take_command(&mut command, name, value)?,
                ("exec-oob", value) if self.oob() => take_command(&mut command, name, value)?,
                _ => return Err(member(&name, "is unexpected")),
            }
        }
        let (kind, name) =
            command.ok_or_else(|| Error::generic("QMP input lacks member 'execute'"))?;
        Ok(Request { name, arguments, oob: kind == "exec-oob" })
    }

    fn interpret(&mut self, request: Request, id: Option<Value>) -> Item {
        let refused = |error, id| Item::Answer(Message { body: Err(error), id });
        let is_negotiation = request.name == commands::NEGOTIATION;
        match self.state {
            State::Negotiating if is_negotiation => match self.negotiate(&request.arguments) {
                Ok(()) => Item::Negotiated(Message { body: Ok(json!({})), id }),
                Err(error) => refused(error, id),
            },
            State::Negotiating => {
                let text = "Expecting capabilities negotiation with 'qmp_capabilities'";
                refused(Error::command_not_found(text), id)
            }
            State::Commanding { .. } if is_negotiation => {
                let text = "Capabilities negotiation is already complete, command ignored";
                refused(Error::command_not_found(text), id)
            }
            State::Commanding { .. } => match find(&request) {
                Ok(command) => {
                    Item::Run(Job { command, arguments: request.arguments, id, oob: request.oob })
                }
                Err(error) => refused(error, id),
            },
        }
    }

    fn negotiate(&mut self, arguments: &[(String, Value)]) -> Result<(), Error> {
        let command = commands::find(commands::NEGOTIATION).expect("it is in the table");
        schema::check(arguments, command.arguments, "")?;
        let oob = arguments
            .iter()
            .any(|(_, list)| matches!(list, Value::Array(list) if !list.is_empty()));
        if oob && !self.oob_offered {
            return Err(Error::generic("Capability oob not available"));
        }
        self.state = State::Commanding { oob };
        Ok(())
    }
}

type Members = Vec<(String, Value)>;

/// The members of a request without its `id`.
fn split_id(value: Value) -> (Result<Members, Error>, Option<Value>) {
    let Value::Object(mut members) = value else {
        return (Err(Error::generic("QMP input must be a JSON object")), None);
    };
    let id = members.iter().position(|(name, _)| name == "id").map(|at| members.remove(at).1);
    (Ok(members), id)
}

fn take_command(
    command: &mut Option<(String, String)>,
    name: String,
    value: Value,
) -> Result<(), Error> {
    let Value::Text(value) = value else {
        return Err(Error::generic(format_args!("QMP input member '{name}' must be a string")));
    };
    if command.is_some() {
        return Err(Error::generic("QMP input member 'execute' clashes with 'exec-oob'"));
    }
    *command = Some((name, value));
    Ok(())
}

fn find(request: &Request) -> Result<&'static Command, Error> {
    let name = &request.name;
    let command = commands::find(name).ok_or_else(|| {
        Error::command_not_found(format_args!("The command {name} has not been found"))
    })?;
    if request.oob && !command.oob {
        return Err(Error::generic(format_args!("The command {name} does not support OOB")));
    }
    schema::check(&request.arguments, command.arguments, "")?;
    Ok(command)
}
