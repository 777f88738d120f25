//! Every command with arguments made at random from its schema, right and wrong ones: each is
//! answered in time with what the schema promises or an error, and the guest goes on counting.

use std::path::Path;
use std::time::{Duration, Instant};

use godwit::qmp::commands::{self, Command};
use godwit::qmp::json::Reader;
use godwit::qmp::schema::{Shape, Type};
use serde_json::{Map, Value, json};

use crate::common::PATIENCE;
use crate::common::qmp::Client;
use crate::common::vm::{Launch, Vm};

/// They end the machine or its guest, as they should.
const FATAL: [&str; 4] = ["quit", "system_reset", "inject-nmi", "qmp_capabilities"];
/// Other times may be asked for: `GODWIT_RANDOM_SECONDS=3600`, with another `GODWIT_RANDOM_SEED`.
const TIME: Duration = Duration::from_secs(5);
const SEED: u64 = 20_260_801;
/// What a text that means nothing in particular is.
const TEXTS: [&str; 6] =
    ["", "x", "/machine", "/machine/unattached/device[0]", "isa-serial", "é\u{0}😀"];
/// Memory that may be held when all is taken away again: caches and stacks of threads.
const GROWTH_KIB: u64 = 64 << 10;
/// Seconds of a wrong path would be too many for all of them together.
const REQUESTS_MIN: usize = 500;

/// Where it all comes from; the same every time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % bound as u64) as usize
    }

    fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

struct Maker<'a> {
    dice: Dice,
    folder: &'a Path,
}

impl Maker<'_> {
    fn arguments(&mut self, shape: &Shape) -> Value {
        let mut made = Map::new();
        self.members(shape, &mut made);
        if self.dice.one_in(20) {
            made.insert("more".into(), self.anything());
        }
        Value::Object(made)
    }

    fn members(&mut self, shape: &Shape, made: &mut Map<String, Value>) {
        for member in shape.members {
            let there = if member.optional { self.dice.one_in(2) } else { !self.dice.one_in(20) };
            if there {
                let value = self.value(&member.of, member.name);
                made.insert(member.name.into(), value);
            }
        }
        if let Some(union) = &shape.union {
            let tag = made.get(union.tag).and_then(Value::as_str).map(str::to_owned);
            let branch = union.branches.iter().find(|(case, _)| Some(*case) == tag.as_deref());
            if let Some((_, branch)) = branch {
                self.members(branch, made);
            }
        }
    }

    fn value(&mut self, of: &Type, name: &str) -> Value {
        if self.dice.one_in(12) {
            return self.anything();
        }
        match of {
            Type::Text => self.text(name).into(),
            Type::TextOrNull => {
                if self.dice.one_in(3) {
                    Value::Null
                } else {
                    self.text(name).into()
                }
            }
            // Nobody comes.
            Type::Bool if name == "wait" => false.into(),
            Type::Bool => self.dice.one_in(2).into(),
            Type::Null => Value::Null,
            Type::Number => self.dice.pick(&[json!(0.5), json!(-1), json!(1e300)]),
            Type::Int | Type::U8 | Type::U16 | Type::U32 | Type::U64 => self.dice.pick(&[
                json!(0),
                json!(1),
                json!(-1),
                json!(100),
                json!(4096),
                json!(65536),
                json!(255),
                json!(256),
                json!(u32::MAX),
                json!(i64::MAX),
                json!(i64::MIN),
                json!(u64::MAX),
            ]),
            Type::Enum(values) => self.dice.pick(values).into(),
            Type::List(of) => (0..self.dice.below(4)).map(|_| self.value(of, name)).collect(),
            Type::Object(shape) => self.arguments(shape),
            Type::OneOf(types) => {
                let of = self.dice.pick(types);
                self.value(&of, name)
            }
            Type::Any => self.anything(),
        }
    }

    /// Nothing that would be found, or made, outside the folder; programs are not to be run.
    fn text(&mut self, name: &str) -> String {
        let file = self.folder.join("file").display().to_string();
        match name {
            "filename" => self.dice.pick(&[file, "/nonexistent/x".into(), "/dev/fdset/7".into()]),
            "path" => self.dice.pick(&[
                file,
                "/nonexistent/x".into(),
                "/machine".into(),
                "/machine/unattached/device[0]".into(),
            ]),
            "out" | "in" | "logfile" => self.dice.pick(&[file, "/nonexistent/x".into()]),
            "host" => "127.0.0.1".into(),
            "port" => self.dice.pick(&["1".to_owned(), "0".into(), "x".into()]),
            "protocol" => {
                self.dice.pick(&[format!("file:{file}"), "fd:none".into(), "nonsense".into()])
            }
            "uri" => self.dice.pick(&[
                "unix:/nonexistent".to_owned(),
                "tcp:127.0.0.1:1".into(),
                "fd:none".into(),
                "nonsense:".into(),
            ]),
            "command-line" => self.dice.pick(&["info status", "help", "é", "stop"]).into(),
            _ if self.dice.one_in(8) => "a".repeat(5000),
            _ => self.dice.pick(&TEXTS).into(),
        }
    }

    fn anything(&mut self) -> Value {
        self.dice.pick(&[
            Value::Null,
            json!(true),
            json!(-7),
            json!(1.5),
            json!(""),
            json!([]),
            json!({}),
            json!([[{"a": [null]}]]),
            json!(u64::MAX),
            json!(-1e308),
            json!("\u{ffff}\u{10fffe}"),
            nested(300),
            json!({"type": "x", "id": 1}),
        ])
    }
}

/// Arrays and objects in turn, so deep.
fn nested(depth: usize) -> Value {
    let wrap = |value: Value, at: usize| match at % 2 {
        0 => json!([value]),
        _ => json!({"a": value}),
    };
    (0..depth).fold(Value::Null, wrap)
}

/// A number that the environment gives.
fn given(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// Takes away all that random commands may have left.
fn clear(vm: &mut Vm) {
    let _ = vm.try_ask("migrate_cancel", json!({}));
    let _ = vm.try_ask("x-dump-cancel", json!({}));
    vm.wait_for("an end", |report| {
        !matches!(report["status"].as_str(), Some("setup" | "active" | "device" | "cancelling"))
    });
    let listed = |vm: &mut Vm, query: &str, member: &str| -> Vec<Value> {
        let all = vm.ask(query, json!({}));
        all.as_array().unwrap().iter().map(|one| one[member].clone()).collect()
    };
    for label in listed(vm, "query-chardev", "label") {
        let _ = vm.try_ask("chardev-remove", json!({"id": label}));
    }
    for node in listed(vm, "query-named-block-nodes", "node-name") {
        let _ = vm.try_ask("blockdev-del", json!({"node-name": node}));
    }
    for set in listed(vm, "query-fdsets", "fdset-id") {
        let _ = vm.try_ask("remove-fd", json!({"fdset-id": set}));
    }
    for name in TEXTS {
        let _ = vm.try_ask("netdev_del", json!({"id": name}));
        let _ = vm.try_ask("object-del", json!({"id": name}));
    }
}

fn descriptors(vm: &Vm) -> Vec<String> {
    let all = std::fs::read_dir(format!("/proc/{}/fd", vm.pid())).unwrap();
    let names = all.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    names.map(|name| name.display().to_string()).collect()
}

/// Memory of the process that is its own, in KiB.
fn resident(vm: &Vm) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", vm.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The answer, within the time there is, and no other than was promised.
fn ask(client: &mut Client, command: &Command, arguments: &Value) {
    let asked = Instant::now();
    let answer = client
        .try_message(command.name, arguments.clone())
        .unwrap_or_else(|| panic!("{} {arguments}: the machine is gone", command.name));
    assert!(asked.elapsed() < PATIENCE, "{} {arguments}", command.name);
    if let Some(returned) = answer.get("return") {
        let text = returned.to_string() + " ";
        let Some(Ok(value)) = Reader::new().next(&mut text.as_bytes()) else { panic!("{text}") };
        let promised = command.returns.check(&value);
        assert!(promised.is_ok(), "{} {arguments}: {text}: {promised:?}", command.name);
    } else {
        assert!(answer["error"]["desc"].is_string(), "{answer}");
    }
}

#[test]
fn whatever_is_asked_the_machine_answers_and_its_guest_counts_on() {
    let mut godwit = Launch::alone().memory(16).guest("ws=1").start();
    let folder = godwit.folder().to_owned();
    let seed = given("GODWIT_RANDOM_SEED").unwrap_or(SEED);
    let time = given("GODWIT_RANDOM_SECONDS").map_or(TIME, Duration::from_secs);
    let mut maker = Maker { dice: Dice(seed), folder: &folder };
    let all: Vec<&Command> =
        commands::all().filter(|command| !FATAL.contains(&command.name)).collect();
    // Each without arguments, then all of them at random.
    for command in &all {
        ask(godwit.session(), command, &json!({}));
    }
    clear(&mut godwit);
    let (before, memory) = (descriptors(&godwit), resident(&godwit));
    let began = Instant::now();
    let mut requests = 0;
    while requests < REQUESTS_MIN || began.elapsed() < time {
        let command = maker.dice.pick(&all);
        let arguments = maker.arguments(command.arguments);
        ask(godwit.session(), command, &arguments);
        requests += 1;
    }
    clear(&mut godwit);
    let end = Instant::now() + PATIENCE;
    while descriptors(&godwit).len() > before.len() {
        let now = descriptors(&godwit);
        assert!(Instant::now() < end, "descriptors leaked: {before:#?} {now:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let now = resident(&godwit);
    assert!(now < memory + GROWTH_KIB, "{now} KiB of memory, {memory} before");
    let on = godwit.try_ask("cont", json!({}));
    assert!(on.is_ok(), "{on:?}");
    godwit.assert_alive();
    godwit.ask("quit", json!({}));
    assert_eq!(godwit.exit_code(), Some(0));
    println!("{requests} requests");
}
