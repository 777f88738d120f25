//! Ctrl-C as a question, not as the end: how often it was pressed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Counts interrupts from when it was made; the process no longer ends by them.
#[derive(Clone)]
pub struct Interrupts(Arc<AtomicU32>);

impl Interrupts {
    /// A thread with a small runtime waits for the signal: the safe way to have a handler.
    pub fn count() -> std::io::Result<Interrupts> {
        let count = Arc::new(AtomicU32::new(0));
        let counted = count.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        std::thread::Builder::new().name("interrupts".into()).spawn(move || {
            runtime.block_on(async {
                while tokio::signal::ctrl_c().await.is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            });
        })?;
        Ok(Interrupts(count))
    }

    pub fn pressed(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}
