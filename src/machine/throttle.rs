//! Slowing the guest down so that a migration can catch up (auto-converge).

use super::cpus::THROTTLE_SLICE;
use super::{Machine, gate};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// The thread that sends vCPUs to sleep, while there is anything to do.
#[derive(Default)]
pub(crate) struct Throttle {
    running: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Machine {
    /// Per cent of time that each vCPU sleeps, 0 to 99. Zero ends it.
    pub fn set_throttle(&self, percent: u8) {
        let percent = percent.min(99);
        self.cpus.throttle_percent.store(percent, Ordering::Relaxed);
        let mut throttle = self.throttle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match (&throttle.running, percent) {
            (None, 0) | (Some(_), 1..) => {}
            (Some(_), 0) => {
                if let Some((end, thread)) = throttle.running.take() {
                    end.store(true, Ordering::Relaxed);
                    thread.thread().unpark();
                    let _ = thread.join();
                }
            }
            (None, _) => throttle.running = self.start_throttle(),
        }
    }

    fn start_throttle(&self) -> Option<(Arc<AtomicBool>, JoinHandle<()>)> {
        let end = Arc::new(AtomicBool::new(false));
        let (cpus, over) = (self.cpus.clone(), end.clone());
        let kicks: Vec<_> = self.infos.iter().map(|i| i.index as usize).collect();
        let signals = self.threads().signals();
        let main = move || {
            while !over.load(Ordering::Relaxed) {
                let percent = u32::from(cpus.throttle_percent.load(Ordering::Relaxed));
                for &index in &kicks {
                    cpus.gate.requests[index].add(gate::request::THROTTLE);
                    cpus.vcpus[index].kick();
                    signals.send(index);
                }
                std::thread::park_timeout(THROTTLE_SLICE * 100 / (100 - percent.min(99)));
            }
        };
        let thread =
            std::thread::Builder::new().name("throttle".into()).stack_size(64 << 10).spawn(main);
        // Without the thread the guest is not slowed down, and the migration takes longer.
        thread.ok().map(|thread| (end, thread))
    }
}
