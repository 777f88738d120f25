//! Replays conversations recorded from QEMU 10.0.2 (`tests/vectors/qmp`). Nothing may come that was
//! not recorded: what is too much in one step is found in the next. Where Godwit answers otherwise,
//! `replay-differences.txt` says why. Every answer is of the type that the schema promises.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use godwit::qmp::{commands, json};
use serde_json::{Value, json};

use crate::common::qmp::Client;
use crate::fake;

/// Who answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// A `godwit run`.
    Process,
    /// Monitors over a machine in this process that has no migration: its refusals are no
    /// difference.
    Fake,
}

/// Replays `topic` against the monitors `DIR/vm0` …, up to the step with the note `until`.
pub(crate) fn replay(topic: &str, dir: &Path, peer: Peer, until: Option<&str>) {
    replay_with_signal(topic, dir, peer, until, &|| panic!("{topic}: a signal is recorded"));
}

/// The same with a recording that has a signal in it, which `signal` sends.
pub(crate) fn replay_with_signal(
    topic: &str,
    dir: &Path,
    peer: Peer,
    until: Option<&str>,
    signal: &dyn Fn(),
) {
    let path =
        PathBuf::from(format!("{}/tests/vectors/qmp/{topic}.jsonl", env!("CARGO_MANIFEST_DIR")));
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.replace("@DIR@", dir.to_str().unwrap());
    let mut unused = differences(topic);
    let differences = unused.clone();
    let mut replay = Replay {
        dir: dir.to_owned(),
        peer,
        client: None,
        fds: HashMap::new(),
        unexplained: String::new(),
        differs: false,
    };
    for (number, line) in text.lines().enumerate() {
        let step: Value = serde_json::from_str(line).unwrap();
        if until.is_some() && step["note"].as_str() == until {
            break;
        }
        let at = format!("{topic} line {}: {}", number + 1, &line[..line.len().min(300)]);
        if step["note"] == json!("SIGTERM") {
            signal();
        }
        let request = step["send"].to_string();
        let is_of = |part: &&str| request.contains(*part) || line.contains(*part);
        replay.differs = differences.iter().any(is_of);
        if replay.step(&step, &at) {
            unused.retain(|part| !is_of(part));
        }
    }
    assert!(replay.unexplained.is_empty(), "{}", replay.unexplained);
    assert!(unused.is_empty(), "{topic}: listed as differences, and none: {unused:?}");
    if let Some(client) = &mut replay.client {
        assert!(
            !client.hears_within(Duration::from_millis(50)),
            "{topic}: more came than was recorded"
        );
    }
}

struct Replay {
    dir: PathBuf,
    peer: Peer,
    client: Option<Client>,
    /// Descriptor numbers: the recorded one, and ours.
    fds: HashMap<i64, i64>,
    /// Answers that are other ones without a reason.
    unexplained: String,
    /// This step's answers are other ones, for a reason that is written down.
    differs: bool,
}

/// Parts of the requests of `topic` that are answered otherwise.
fn differences(topic: &str) -> Vec<&'static str> {
    all_differences().filter(|(of, _)| *of == topic).map(|(_, part)| part).collect()
}

/// Lines of TOPIC PART => REASON.
fn all_differences() -> impl Iterator<Item = (&'static str, &'static str)> {
    let lines = include_str!("replay-differences.txt").lines();
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let split = |line: &'static str| {
        let (what, _reason) = line.split_once(" => ").expect("a difference has a reason");
        what.split_once(' ').expect("a topic, and a part of a request")
    };
    lines.map(split)
}

#[test]
fn every_listed_difference_is_of_a_topic_that_is_replayed() {
    for (topic, part) in all_differences() {
        let replayed = TOPICS.iter().chain(BY_PROCESS).any(|known| *known == topic);
        assert!(replayed, "{topic} {part}");
    }
}

impl Replay {
    /// Whether the answers were other ones.
    fn step(&mut self, step: &Value, at: &str) -> bool {
        if step.get("connect").is_some() {
            self.client = None;
            self.client = Some(Client::connect(&self.dir.join("vm0")));
        } else if let Some(bytes) = self.bytes(step) {
            let known =
                serde_json::from_slice(&bytes).map_or(true, |request| is_known(&request, step));
            if !known {
                return false;
            }
            let files: Vec<OwnedFd> =
                step["fds"].as_array().map_or(&[][..], Vec::as_slice).iter().map(open).collect();
            let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
            self.client.as_mut().unwrap().send(&bytes, &fds);
        }
        self.expect(step, at)
    }

    fn bytes(&self, step: &Value) -> Option<Vec<u8>> {
        if let Some(request) = step.get("send") {
            let mut request = request.clone();
            if let Some(fd) = request.pointer_mut("/arguments/fd")
                && let Some(number) = fd.as_i64()
            {
                *fd = (*self.fds.get(&number).unwrap_or(&number)).into();
            }
            return Some(format!("{request}\r\n").into_bytes());
        }
        if let Some(text) = step.get("send_text") {
            return Some(text.as_str().unwrap().into());
        }
        if let Some(hex) = step.get("send_hex") {
            let hex = hex.as_str().unwrap().as_bytes();
            let byte =
                |two: &[u8]| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap();
            return Some(hex.chunks(2).map(byte).collect());
        }
        let pieces = step.get("send_gen")?;
        let (prefix, suffix) =
            (pieces["prefix"].as_str().unwrap(), pieces["suffix"].as_str().unwrap());
        let unit =
            pieces["unit"].as_str().unwrap().repeat(pieces["count"].as_u64().unwrap() as usize);
        Some(format!("{prefix}{unit}{suffix}").into_bytes())
    }

    fn expect(&mut self, step: &Value, at: &str) -> bool {
        let Some(client) = &mut self.client else { return false };
        let mut differs = false;
        for want in &answers(step) {
            if want["data"]["guest"] == json!(true) {
                continue; // What QEMU's firmware did then, ours does not.
            }
            if let Some(more) = want["clipped"].as_str().and_then(|text| text.strip_suffix(" more"))
            {
                for _ in 0..more.parse().unwrap() {
                    assert!(client.receive().get("error").is_some(), "{at}");
                }
                continue;
            }
            let text = next_line(client, at);
            if self.peer == Peer::Fake && text.contains("this machine cannot be migrated") {
                continue;
            }
            if want.get("not_json").is_some() {
                continue; // QEMU's `inf`; ours is the number as it was sent.
            }
            if let Some(depth) = nesting(want) {
                assert_eq!(text.matches('[').count(), depth, "{at}");
                continue; // Deeper than this test's own parser goes.
            }
            let got =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{at}: {error}: {text}"));
            learn(&mut self.fds, want, &got);
            keeps_its_promise(&step["send"], &text, at);
            let same = same(want, &got, &self.fds);
            if !same && !self.differs {
                self.unexplained += &format!("{at}\n  recorded {want}\n  got      {got}\n");
            }
            differs |= !same;
        }
        assert!(differs || !self.differs, "{at}: what was listed as a difference is none");
        if step.get("closed").is_some() {
            assert_eq!(client.receive_text(), None, "{at}");
            self.client = None;
        }
        differs
    }
}

/// What was recorded as the answers to a step: values, or the bytes that a client saw.
fn answers(step: &Value) -> Vec<Value> {
    let value = |line: &str| match line.ends_with("(clipped)") {
        true => json!({"clipped": line}),
        false => serde_json::from_str(line).unwrap(),
    };
    match (step["recv"].as_array(), step["recv_raw"].as_str()) {
        (Some(values), _) => values.clone(),
        (None, Some(text)) => text.split_terminator("\r\n").map(value).collect(),
        (None, None) => Vec::new(),
    }
}

/// The next message that the guest did not cause: the built-in one does not survive an NMI.
fn next_line(client: &mut Client, at: &str) -> String {
    loop {
        let text = client.receive_text().unwrap_or_else(|| panic!("{at}: closed"));
        if !text.contains("\"guest\": true") {
            return text;
        }
    }
}

/// Of an id that was recorded as "arrays nested N deep".
fn nesting(want: &Value) -> Option<usize> {
    let text = want["id"]["clipped"].as_str()?.strip_prefix("arrays nested ")?;
    text.strip_suffix(" deep")?.parse().ok()
}

/// Steps with a command that one of the two does not have are left out.
fn is_known(request: &Value, step: &Value) -> bool {
    let name = request["execute"].as_str().or(request["exec-oob"].as_str());
    let not_found = |desc: &str| desc.ends_with(" has not been found");
    let recorded = step["recv"][0]["error"]["desc"].as_str().is_some_and(not_found);
    name.is_none_or(|name| commands::find(name).is_some() != recorded)
}

/// What a command returned is of the type that the schema promises.
fn keeps_its_promise(request: &Value, answer: &str, at: &str) {
    let Some(command) = request["execute"].as_str().and_then(commands::find) else { return };
    let Some(Ok(answer)) = json::Reader::new().next(&mut answer.as_bytes()) else { return };
    if let Some(returned) = answer.get("return") {
        let kept = command.returns.check(returned);
        assert!(kept.is_ok(), "{at}: {}", kept.unwrap_err().desc);
    }
}

fn open(mode: &Value) -> OwnedFd {
    let mode = mode.as_str().unwrap();
    let file = File::options()
        .read(!mode.contains("write-only"))
        .write(mode.contains("write"))
        .open("/dev/null")
        .unwrap();
    file.into()
}

fn learn(fds: &mut HashMap<i64, i64>, want: &Value, got: &Value) {
    if let (Some(recorded), Some(ours)) =
        (want["return"]["fd"].as_i64(), got["return"]["fd"].as_i64())
    {
        fds.insert(recorded, ours);
    }
}

fn same(want: &Value, got: &Value, fds: &HashMap<i64, i64>) -> bool {
    match (want, got) {
        (Value::Object(want), Value::Object(got)) => {
            if want.contains_key("clipped") {
                return true;
            }
            // What Godwit has beyond QEMU may be there too.
            want.len() == got.keys().filter(|name| !name.starts_with("x-godwit-")).count()
                && want.iter().all(|(name, want)| match (name.as_str(), got.get(name)) {
                    (_, None) => false,
                    ("timestamp" | "package" | "thread-id" | "start-time", Some(_)) => true,
                    ("fd", Some(got)) => fds.get(&want.as_i64().unwrap()) == got.as_i64().as_ref(),
                    ("desc", Some(got)) => same_text(want, got, fds),
                    (_, Some(got)) => same(want, got, fds),
                })
        }
        (Value::Object(want), _) if want.contains_key("clipped") => true,
        (Value::Array(want), Value::Array(got)) => {
            let (want, got) = (by_label(want), by_label(got));
            want.len() == got.len()
                && want.into_iter().zip(got).all(|(want, got)| same(want, got, fds))
        }
        (Value::String(want), Value::String(got)) if want.contains(PTY) => got.contains(PTY),
        (Value::Number(want), Value::Number(got)) => want.as_f64() == got.as_f64(),
        _ => want == got,
    }
}

/// Terminals have numbers of their own.
const PTY: &str = "/dev/pts/";

/// QEMU lists character devices in no order.
fn by_label(list: &[Value]) -> Vec<&Value> {
    let mut sorted: Vec<&Value> = list.iter().collect();
    sorted.sort_by_key(|entry| entry["label"].as_str());
    sorted
}

/// With several unknown arguments, any of them may be named; descriptors have their own numbers.
fn same_text(want: &Value, got: &Value, fds: &HashMap<i64, i64>) -> bool {
    let (Some(want), Some(got)) = (want.as_str(), got.as_str()) else {
        return want.get("clipped").is_some();
    };
    let unexpected =
        |text: &str| text.starts_with("Parameter '") && text.ends_with("' is unexpected");
    let renumbered = fds.iter().any(|(recorded, ours)| {
        want.replace(&format!("fd:{recorded}'"), &format!("fd:{ours}'")) == got
    });
    want == got || renumbered || unexpected(want) && unexpected(got)
}

fn against_fake(topic: &str, until: Option<&str>) {
    let dir = tempfile::tempdir().unwrap();
    fake::start(dir.path(), 1);
    replay(topic, dir.path(), Peer::Fake, until);
}

macro_rules! topics {
    ($($topic:ident $(until $note:literal)?;)*) => {
        const TOPICS: &[&str] = &[$(stringify!($topic),)*];
$(
        #[test]
        fn $topic() {
            #[allow(unused_mut, unused_assignments)]
            let mut until = None;
            $(until = Some($note);)?
            against_fake(stringify!($topic), until);
        }
    )*};
}

/// Topics that only a whole process can answer; their tests stand where they belong.
const BY_PROCESS: &[&str] =
    &["balloon", "bare_microvm", "chardev_object", "dirtyrate", "migrate_params"];

topics! {
    negotiation;
    reconnect;
    envelope;
    ids;
    json_syntax;
    limits;
    arguments;
    runstate;
    oob until "the oob answer overtakes";
    fds until "removed while a node uses it";
    fd_disconnect;
    removed;
}
