//! The words of a command line, or of a prompt's line, as a QMP command.

use super::error::Error;
use super::qmp::Client;
use super::typed::{Schema, untyped};
use serde_json::{Map, Value, json};

/// A line as the words of a command; a JSON object is one.
pub(super) fn words(line: &str) -> Vec<String> {
    match line.trim_start().starts_with('{') {
        true => vec![line.to_owned()],
        false => line.split_whitespace().map(String::from).collect(),
    }
}

/// Runs what the words mean, by the machine's own schema.
pub(super) fn send(client: &mut Client, words: &[String]) -> Result<Value, Error> {
    // Old machines have no schema; commands without arguments need none.
    let schema = match words.len() {
        0 | 1 => None,
        _ => Schema::ask(client).ok(),
    };
    send_by(client, words, schema.as_ref())
}

/// The same with a schema that is known, if there is one.
pub(super) fn send_by(
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
}
