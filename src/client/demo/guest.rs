//! What the built-in guest writes on its serial port, read as evidence.

use super::super::interrupt::Interrupts;
use super::error::Error;
use super::running::Running;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a guest may take for a line: a sweep of a large working set on a slow KVM.
pub(crate) const SWEEP_TIME: Duration = Duration::from_secs(60);

/// A file that a machine's serial port writes to.
pub(crate) struct SerialLog {
    path: PathBuf,
    errors: PathBuf,
}

/// What a log says so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Evidence {
    /// For each processor the first and the last sweep it told of.
    sweeps: BTreeMap<u32, (u64, u64)>,
    corrupt: Option<String>,
    went_back: Option<String>,
}

impl SerialLog {
    pub(crate) fn new(path: PathBuf, errors: PathBuf) -> SerialLog {
        SerialLog { path, errors }
    }

    pub(crate) fn read(&self) -> Evidence {
        Evidence::read(&String::from_utf8_lossy(&std::fs::read(&self.path).unwrap_or_default()))
    }

    /// Waits until the log says enough; a guest that finds fault, and a machine that ends, are
    /// errors.
    pub(crate) fn wait_for(
        &self,
        child: &mut Running,
        side: &'static str,
        interrupts: &Interrupts,
        enough: impl Fn(&Evidence) -> bool,
    ) -> Result<Evidence, Error> {
        let begin = Instant::now();
        loop {
            let evidence = self.read();
            evidence.check()?;
            if enough(&evidence) {
                return Ok(evidence);
            }
            child.ended(side, &self.errors)?;
            if interrupts.pressed() > 0 {
                return Err(Error::Interrupted);
            }
            if begin.elapsed() > SWEEP_TIME {
                return Err(Error::Silent { side, limit: SWEEP_TIME });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Evidence {
    /// Whole lines only: a log may begin and end in the middle of one.
    fn read(text: &str) -> Evidence {
        let mut evidence = Evidence::default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for line in whole.lines() {
            if let Some((cpu, sweep)) = sweep_line(line) {
                let (_, last) = evidence.sweeps.entry(cpu).or_insert((sweep, sweep));
                if sweep < *last {
                    evidence.went_back.get_or_insert_with(|| line.into());
                }
                *last = sweep;
            } else if line.starts_with("CORRUPT") || line.starts_with("EXCEPTION") {
                evidence.corrupt.get_or_insert_with(|| line.into());
            }
        }
        evidence
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        match (&self.corrupt, &self.went_back) {
            (Some(line), _) => Err(Error::Corrupt(line.clone())),
            (None, Some(line)) => Err(Error::WentBack(line.clone())),
            (None, None) => Ok(()),
        }
    }

    /// The sweep that the slowest processor told of last; 0 before any did.
    pub(crate) fn least_sweep(&self) -> u64 {
        self.sweeps.values().map(|(_, last)| *last).min().unwrap_or(0)
    }

    /// Every processor that counted here counts there, and from no earlier sweep.
    pub(crate) fn goes_on_in(&self, after: &Evidence) -> Result<(), Error> {
        for (cpu, (_, before)) in &self.sweeps {
            match after.sweeps.get(cpu) {
                Some((first, _)) if first >= before => {}
                Some((first, _)) => {
                    return Err(Error::WentBack(format!(
                        "processor {cpu}: sweep {before}, then {first}"
                    )));
                }
                None => return Err(Error::Silent { side: "target", limit: SWEEP_TIME }),
            }
        }
        Ok(())
    }
}

/// `sweep 3 pages 12288` or `cpu 1 sweep 3 pages 12288`.
fn sweep_line(line: &str) -> Option<(u32, u64)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["sweep", sweep, "pages", _] => Some((0, sweep.parse().ok()?)),
        ["cpu", cpu, "sweep", sweep, "pages", _] => Some((cpu.parse().ok()?, sweep.parse().ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_lines_at_both_ends_are_no_evidence() {
        let evidence =
            Evidence::read("eep 2 pages 8\nsweep 3 pages 12\r\nsweep 4 pages 16\nsweep 5 pa");
        assert_eq!(evidence.sweeps, [(0, (3, 4))].into());
        assert!(evidence.check().is_ok());
    }

    #[test]
    fn corruption_and_going_back_are_found() {
        assert!(matches!(
            Evidence::read("CORRUPT page 1 at 0 expected 1 found 0\n").check(),
            Err(Error::Corrupt(_))
        ));
        assert!(matches!(
            Evidence::read("sweep 4 pages 1\nsweep 3 pages 1\n").check(),
            Err(Error::WentBack(_))
        ));
        let before = Evidence::read("cpu 0 sweep 5 pages 1\ncpu 1 sweep 7 pages 1\n");
        assert_eq!(before.least_sweep(), 5);
        let ahead = Evidence::read("cpu 1 sweep 7 pages 1\ncpu 0 sweep 6 pages 1\n");
        assert!(before.goes_on_in(&ahead).is_ok());
        let behind = Evidence::read("cpu 1 sweep 6 pages 1\ncpu 0 sweep 6 pages 1\n");
        assert!(matches!(before.goes_on_in(&behind), Err(Error::WentBack(_))));
    }
}
