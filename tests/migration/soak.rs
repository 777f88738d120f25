//! Many migrations in a row of a guest that dirties its memory flat out, every one of them
//! different, and after each the RAM of both sides compared. Twenty by default; `tools/soak N` runs
//! N in a release build.
//!
//! `GODWIT_SOAK` is how many, `GODWIT_SOAK_SEED` repeats a run.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::vm::{Launch, Vm};
use serde_json::json;

/// Moves of one guest, there and back again, before the next guest takes its place.
const HOPS: u64 = 5;
const PATTERNS: [&str; 4] = ["seq", "random", "hot", "zipf"];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ word >> 31) % bound
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// How one migration is done.
#[derive(Debug)]
struct Way {
    xbzrle: bool,
    channels: u64,
    cache: u64,
    /// The cache's size from the second round on.
    resized: Option<u64>,
    /// The target is started with -S.
    paused: bool,
    qemu_framing: bool,
}

impl Way {
    fn choose(random: &mut Random) -> Self {
        let cache = |random: &mut Random| 1 << (20 + random.below(10));
        let xbzrle = random.coin();
        let channels = if random.coin() { 4 } else { 1 };
        Self {
            xbzrle,
            channels,
            cache: cache(random),
            resized: (xbzrle && random.coin()).then(|| cache(random)),
            paused: random.below(4) == 0,
            // QEMU's framing has one channel and no hash.
            qemu_framing: channels == 1 && random.below(6) == 0,
        }
    }

    fn set(&self, vm: &mut Vm) {
        let mut capabilities = Vec::new();
        capabilities.extend(self.xbzrle.then_some("xbzrle"));
        capabilities.extend((self.channels > 1).then_some("multifd"));
        // Slow enough for rounds to have pages, where there is something to happen between them.
        let bandwidth = if self.resized.is_some() { 64 << 20 } else { 0 };
        let parameters = json!({
            "max-bandwidth": bandwidth, "multifd-channels": self.channels, "xbzrle-cache-size": self.cache,
            "x-godwit-stream": if self.qemu_framing { "qemu" } else { "auto" },
            "x-godwit-verify": !self.qemu_framing,
            // No switch-over before the cache was resized.
            "downtime-limit": if self.resized.is_some() { 0 } else { 300 },
        });
        vm.set(&capabilities, &parameters);
    }

    fn move_guest(&self, source: &mut Vm, target: &mut Vm, dir: &Path) {
        self.set(source);
        self.set(target);
        let uri = format!("unix:{}", dir.join("socket").display());
        target.ask("migrate-incoming", json!({"uri": uri}));
        source.ask("migrate", json!({"uri": uri}));
        if let Some(cache) = self.resized {
            source.wait_for("the second round", |report| {
                report["ram"]["dirty-sync-count"].as_u64() >= Some(3)
                    || report["status"] != "active"
            });
            source.ask(
                "migrate-set-parameters",
                json!({"xbzrle-cache-size": cache, "max-bandwidth": 0, "downtime-limit": 300}),
            );
        }
        let report = source.outcome();
        assert_eq!(report["status"], "completed", "{self:?} {report} {}", target.stderr());
        assert_eq!(source.status(), "postmigrate");
        if self.paused {
            target.wait_for("the end", |report| report["status"] == "completed");
            assert_eq!(target.status(), "paused");
            target.ask("cont", json!({}));
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect(variable))
}

#[test]
fn every_migration_of_a_busy_guest_loses_nothing() {
    let count = number("GODWIT_SOAK").unwrap_or(20);
    let seed = number("GODWIT_SOAK_SEED").unwrap_or_else(|| {
        std::time::UNIX_EPOCH.elapsed().expect("a clock past 1970").as_nanos() as u64
    });
    println!("GODWIT_SOAK={count} GODWIT_SOAK_SEED={seed}");
    let mut random = Random(seed);
    let started = Instant::now();
    let dir = tempfile::tempdir().unwrap();
    let mut done = 0;
    let mut guests = random.below(12);
    while done < count {
        let pattern = PATTERNS[(guests % 4) as usize];
        let processors = if random.coin() { 4 } else { 1 };
        // Every third guest's dirty log is a ring.
        let log: &[&str] =
            if guests % 3 == 2 { &["-accel", "kvm,dirty-ring-size=65536"] } else { &[] };
        guests += 1;
        let guest = format!("ws=4 pattern={pattern}");
        let launch = |name: &str| {
            Launch::new(dir.path(), name).guest(&guest).processors(processors).words(log)
        };
        let mut vm = launch(&format!("guest{guests}")).start();
        vm.wait_for_sweeps(1);
        let mut last = 0;
        for hop in 0..HOPS.min(count - done) {
            let way = Way::choose(&mut random);
            let mut target = launch(&format!("guest{guests}-{hop}")).incoming("defer");
            if way.paused {
                target = target.words(&["-S"]);
            }
            let mut target = target.start();
            let began = Instant::now();
            way.move_guest(&mut vm, &mut target, dir.path());
            let time = began.elapsed().as_millis();
            done += 1;
            let kind = if log.is_empty() { "bitmap" } else { "ring" };
            println!("{done:4}  {pattern:6} {processors} vCPU  {kind:6}  {time:5} ms  {way:?}");
            last = vm.sweeps().last().copied().unwrap_or(last);
            std::mem::swap(&mut vm, &mut target);
            // The new owner goes on and checks what it got, at least until it says something.
            std::thread::sleep(Duration::from_millis(50));
            let sweeps = vm.sweeps();
            assert!(
                sweeps.iter().all(|sweep| *sweep >= last) && sweeps.is_sorted(),
                "{last} {sweeps:?}"
            );
        }
        vm.assert_alive();
        assert!(
            vm.sweeps().iter().all(|sweep| *sweep >= last),
            "went back from {last}: {}",
            vm.serial()
        );
    }
    println!("{done} migrations, {:.1} s, no page lost", started.elapsed().as_secs_f64());
}
