//! Replays conversations recorded from QEMU 10.0.2 (`tests/vectors/qmp`). Nothing may come that was
//! not recorded: what is too much in one step is found in the next. Where Godwit answers otherwise,
//! `replay-differences.txt` says why. Every answer is of the type that the schema promises.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use godwit::qmp::{commands, json};
use serde_json::{Value, json};

use crate::common::qmp::Client;
use crate::{fake, recorded};

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
    replay_with(topic, dir, peer, until, &mut |what| assert_ne!(what, Beside::Signal, "{topic}"));
}

/// What is recorded beside the conversation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Beside<'a> {
    /// The process that this monitor is of was started.
    Machine(&'a str),
    /// It got SIGTERM.
    Signal,
}

/// The same with someone who does what is recorded beside it; `until` may also be a part of a
/// request.
pub(crate) fn replay_with(
    topic: &str,
    dir: &Path,
    peer: Peer,
    until: Option<&str>,
    beside: &mut dyn FnMut(Beside<'_>),
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
        clients: BTreeMap::new(),
        first: String::new(),
        pipe: None,
        port: None,
        fds: HashMap::new(),
        unexplained: String::new(),
        differs: false,
    };
    for (number, line) in text.lines().enumerate() {
        let step: Value = serde_json::from_str(line).unwrap();
        let request = step["send"].to_string();
        if until.is_some_and(|until| step["note"] == until || request.contains(until)) {
            break;
        }
        let at = format!("{topic} line {}: {}", number + 1, &line[..line.len().min(300)]);
        if step["note"] == json!("SIGTERM") {
            beside(Beside::Signal);
        }
        if let Some(name) = step["connect"].as_str().map(monitor)
            && !replay.clients.contains_key(name)
        {
            beside(Beside::Machine(name));
        }
        let here = format!("#{}", number + 1);
        let is_of = |part: &&str| **part == here || request.contains(*part) || line.contains(*part);
        replay.differs = differences.iter().any(is_of);
        if replay.step(&step, &at) {
            unused.retain(|part| !is_of(part));
        }
    }
    assert!(replay.unexplained.is_empty(), "{}", replay.unexplained);
    assert!(unused.is_empty(), "{topic}: listed as differences, and none: {unused:?}");
    for client in replay.clients.values_mut().flatten() {
        assert!(
            !client.hears_within(Duration::from_millis(50)),
            "{topic}: more came than was recorded"
        );
    }
}

struct Replay {
    dir: PathBuf,
    peer: Peer,
    /// By the names of their monitors; `None`: the connection was closed.
    clients: BTreeMap<String, Option<Client>>,
    /// The monitor that steps without a name are of.
    first: String,
    /// The other end of the latest pipe that was sent.
    pipe: Option<std::io::PipeReader>,
    /// That a target chose: the recorded one, and ours.
    port: Option<(String, String)>,
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
        let by_machines = recorded::TOPICS.iter();
        let replayed =
            TOPICS.iter().chain(BY_PROCESS).chain(by_machines).any(|known| *known == topic);
        assert!(replayed, "{topic} {part}");
    }
}

impl Replay {
    /// Whether the answers were other ones.
    fn step(&mut self, step: &Value, at: &str) -> bool {
        if let Some(name) = step["connect"].as_str().map(monitor) {
            if self.first.is_empty() {
                name.clone_into(&mut self.first);
            }
            // The server has one client at a time.
            self.clients.insert(name.to_owned(), None);
            let client = Client::connect(&self.dir.join(name));
            self.clients.insert(name.to_owned(), Some(client));
        } else if step.get("wait").is_some()
            && let Some(mut pipe) = self.pipe.take()
        {
            std::thread::spawn(move || pipe.read_to_end(&mut Vec::new()));
        } else if let Some(bytes) = self.bytes(step) {
            let known =
                serde_json::from_slice(&bytes).map_or(true, |request| is_known(&request, step));
            if !known {
                return false;
            }
            let kinds = step["fds"].as_array().cloned().unwrap_or_default();
            let files: Vec<OwnedFd> = kinds.iter().map(|kind| self.open(kind)).collect();
            let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
            self.client(step).as_mut().unwrap().send(&bytes, &fds);
        }
        self.expect(step, at)
    }

    /// Of the monitor that the step is of.
    fn name(&self, step: &Value) -> String {
        let named = step["connect"].as_str().or(step["mon"].as_str());
        named.map_or(&self.first[..], monitor).to_owned()
    }

    fn client(&mut self, step: &Value) -> &mut Option<Client> {
        let name = self.name(step);
        self.clients.get_mut(&name).expect("a monitor that was connected")
    }

    fn open(&mut self, kind: &Value) -> OwnedFd {
        let kind = kind.as_str().unwrap();
        if kind.contains("pipe") {
            let (reader, writer) = std::io::pipe().unwrap();
            self.pipe = (kind == "write end of a pipe").then_some(reader);
            return writer.into();
        }
        if kind.starts_with("socket") {
            return std::os::unix::net::UnixStream::pair().unwrap().0.into();
        }
        let regular = kind.contains("regular file");
        let path = match kind {
            "/dev/full" => kind.into(),
            _ if regular => self.dir.join("descriptor"),
            _ => "/dev/null".into(),
        };
        let mut options = File::options();
        let writes = kind.contains("write") || kind == "/dev/full" || regular;
        options.read(!kind.contains("write-only")).write(writes);
        options.create(regular).open(path).unwrap().into()
    }

    fn bytes(&self, step: &Value) -> Option<Vec<u8>> {
        if let Some(request) = step.get("send") {
            let mut request = request.clone();
            if let Some(Value::String(uri)) = request.pointer_mut("/arguments/uri")
                && let Some((recorded, ours)) = &self.port
                && uri.ends_with(recorded)
            {
                *uri = uri.replace(recorded, ours);
            }
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
        let peer = self.peer;
        let name = self.name(step);
        let Some(Some(client)) = self.clients.get_mut(&name) else { return false };
        let mut wanted = answers(step);
        wanted.retain(|want| is_shown(&want.to_string()));
        if step["exited"].as_i64().is_some_and(|status| status < 0) {
            // QEMU died of it.
            assert!(client.receive().get("error").is_some(), "{at}");
            return false;
        }
        if peer == Peer::Process && is_plain(step, &wanted) {
            return self.expect_whole(step, &wanted, at);
        }
        let mut differs = false;
        for want in &wanted {
            if let Some(more) = want["clipped"].as_str().and_then(|text| text.strip_suffix(" more"))
            {
                for _ in 0..more.parse().unwrap() {
                    assert!(client.receive().get("error").is_some(), "{at}");
                }
                continue;
            }
            let text = next_line(client, at);
            if peer == Peer::Fake && text.contains("this machine cannot be migrated") {
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
            self.clients.insert(name, None);
        }
        differs
    }

    /// An answer and its events, or what is waited for, of a process whose pace is its own.
    fn expect_whole(&mut self, step: &Value, wanted: &[Value], at: &str) -> bool {
        let name = self.name(step);
        let Some(Some(client)) = self.clients.get_mut(&name) else { return false };
        let mut got = whole_answer(client, wanted, self.differs, at);
        if let ([want], [got]) = (wanted, &mut got[..])
            && want["return"].get("status").is_some()
            && !self.differs
        {
            until_status(client, step, want, got);
        }
        for (want, got) in wanted.iter().zip(&got) {
            learn(&mut self.fds, want, got);
            let port = |message: &Value| {
                Some(message.pointer("/return/socket-address/0/port")?.as_str()?.to_owned())
            };
            if let (Some(recorded), Some(ours)) = (port(want), port(got)) {
                self.port = Some((recorded, ours));
            }
        }
        got.iter().for_each(|got| keeps_its_promise(&step["send"], &got.to_string(), at));
        let same = got.len() == wanted.len()
            && wanted.iter().zip(&got).all(|(want, got)| same(want, got, &self.fds));
        if !same && !self.differs {
            let list = |list: &[Value]| list.iter().map(|one| format!("\n    {one}")).collect();
            let (wanted, got): (String, String) = (list(wanted), list(&got));
            self.unexplained += &format!("{at}\n  recorded{wanted}\n  got{got}\n");
        }
        assert!(!same || !self.differs, "{at}: what was listed as a difference is none");
        !same
    }
}

/// The monitor that a connection of this name is to. Those of one monitor have names of their own
/// where one came after the other.
fn monitor(connection: &str) -> &str {
    if ["src", "dst", "a", "b"].contains(&connection) { connection } else { "vm0" }
}

/// A request in JSON, or a pause, with nothing that must be looked at as text.
fn is_plain(step: &Value, wanted: &[Value]) -> bool {
    let as_text = |want: &Value| {
        want.get("clipped").or(want.get("not_json")).is_some() || nesting(want).is_some()
    };
    let asked = step.get("send").or(step.get("wait")).is_some();
    asked && step.get("closed").is_none() && !wanted.iter().any(as_text)
}

/// What QEMU's answer, when it was asked, was about a migration or a guest that moved on meanwhile:
/// asks again until it has come as far.
fn until_status(client: &mut Client, step: &Value, want: &Value, got: &mut Value) {
    let end = Instant::now() + Duration::from_secs(5);
    while want["return"]["status"] != got["return"]["status"] && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
        client.send(step["send"].to_string().as_bytes(), &[]);
        *got = client.receive();
        if got.get("event").is_some() {
            break; // Was not recorded here.
        }
    }
}

/// All that comes: as many answers as were recorded and, where an event was recorded last, until
/// that one. With `listed`, what comes is another, and as much as it is.
fn whole_answer(client: &mut Client, wanted: &[Value], listed: bool, at: &str) -> Vec<Value> {
    let is_event = |message: &Value| message.get("event").is_some();
    let answers = |list: &[Value]| list.iter().filter(|message| !is_event(message)).count();
    let last = wanted.last().filter(|last| is_event(last));
    let mut got: Vec<Value> = Vec::new();
    loop {
        let reached = last.is_none_or(|last| {
            let is_last = |got: &Value| {
                got["event"] == last["event"] && got["data"]["status"] == last["data"]["status"]
            };
            got.iter().any(is_last)
        });
        let ended = reached && answers(&got) >= answers(wanted);
        if ended && !listed && got.len() >= wanted.len() {
            return got;
        }
        let patience = match (ended, listed && !got.is_empty()) {
            (true, _) => 30,
            (false, true) => 300,
            (false, false) => 3000,
        };
        if !client.hears_within(Duration::from_millis(patience)) {
            return got;
        }
        let Some(text) = client.receive_text() else { return got };
        if is_shown(&text) {
            got.push(serde_json::from_str(&text).unwrap_or_else(|error| panic!("{at}: {error}")));
        }
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

/// The next message that is looked at.
fn next_line(client: &mut Client, at: &str) -> String {
    loop {
        let text = client.receive_text().unwrap_or_else(|| panic!("{at}: closed"));
        if is_shown(&text) {
            return text;
        }
    }
}

/// What the guest caused is not looked at: the built-in one does not survive an NMI, and QEMU's
/// firmware did what this one does not. Rounds are as many as the guest makes necessary.
fn is_shown(text: &str) -> bool {
    let by_guest = ["\"guest\": true", "\"guest\":true"];
    !by_guest.iter().any(|part| text.contains(part)) && !text.contains("MIGRATION_PASS")
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
            let beyond = |name: &str| name.starts_with("x-godwit") || OF_OLD.contains(&name);
            got.keys().all(|name| want.contains_key(name) || beyond(name))
                && want.iter().all(|(name, want)| match (name.as_str(), got.get(name)) {
                    (_, None) => false,
                    (name, Some(got)) if VOLATILE.contains(&name) => {
                        std::mem::discriminant(want) == std::mem::discriminant(got)
                    }
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
        (Value::String(want), Value::String(got)) if want.starts_with(NODE) => {
            got.starts_with(NODE)
        }
        (Value::Number(want), Value::Number(got)) => want.as_f64() == got.as_f64(),
        _ => want == got,
    }
}

/// Terminals have numbers of their own, and so have nodes without a name.
const PTY: &str = "/dev/pts/";
const NODE: &str = "#block";

/// Members of `query-migrate` that QEMU had in former times.
const OF_OLD: &[&str] = &["total-time", "capabilities"];

/// Members that are measured, or the host's.
const VOLATILE: &[&str] = &[
    "timestamp",
    "package",
    "thread-id",
    "start-time",
    "port",
    "total",
    "completed",
    "total-time",
    "setup-time",
    "downtime",
    "expected-downtime",
    "mbps",
    "transferred",
    "remaining",
    "duplicate",
    "normal",
    "normal-bytes",
    "dirty-pages-rate",
    "pages-per-second",
    "precopy-bytes",
    "downtime-bytes",
    "multifd-bytes",
    "dirty-sync-count",
    "bytes",
    "pages",
    "cache-miss",
    "cache-miss-rate",
    "encoding-rate",
    "overflow",
];

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
