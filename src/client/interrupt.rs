//! Ctrl-C, Ctrl-\, SIGTERM and SIGHUP as a question, not as the end: how often they came.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::output::undo_unfinished;

/// Counts signals that ask for the end from when it was made. The process ends by them no longer;
/// from the `LAST` on it does, whatever it does.
#[derive(Clone)]
pub(crate) struct Interrupts(Arc<AtomicU32>);

/// The first asks for an orderly end, the second for one that waits for nobody.
const LAST: u32 = 3;

impl Interrupts {
    pub(crate) fn count() -> std::io::Result<Interrupts> {
        let count = Arc::new(AtomicU32::new(0));
        let counted = count.clone();
        on_signals(move |kind| {
            if counted.fetch_add(1, Ordering::Relaxed) + 1 >= LAST {
                end(kind);
            }
        })?;
        Ok(Interrupts(count))
    }

    pub(crate) fn pressed(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// For verbs that have nothing to wind up: what is unfinished is undone, and the process ends.
pub fn end_cleanly() -> std::io::Result<()> {
    on_signals(end)
}

/// As a shell tells the end by a signal.
fn end(kind: SignalKind) {
    undo_unfinished();
    std::process::exit(128 + kind.as_raw_value());
}

/// A thread with a small runtime waits for the signals: the safe way to have a handler.
fn on_signals(act: impl Fn(SignalKind) + Send + 'static) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let listen = |kind| -> std::io::Result<Option<Signal>> {
        // Whoever started us wants it ignored (nohup).
        if is_ignored(kind) { Ok(None) } else { signal(kind).map(Some) }
    };
    let guard = runtime.enter();
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let mut quit = listen(SignalKind::quit())?;
    drop(guard);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            loop {
                act(tokio::select! {
                    Some(()) = next(&mut interrupt) => SignalKind::interrupt(),
                    Some(()) = next(&mut terminate) => SignalKind::terminate(),
                    Some(()) = next(&mut hangup) => SignalKind::hangup(),
                    Some(()) = next(&mut quit) => SignalKind::quit(),
                    else => return,
                });
            }
        });
    })?;
    Ok(())
}

async fn next(signal: &mut Option<Signal>) -> Option<()> {
    match signal {
        Some(signal) => signal.recv().await,
        None => None,
    }
}

fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & 1 << (kind.as_raw_value() - 1) != 0
}
