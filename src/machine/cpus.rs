//! vCPU threads.

use super::board::{Board, UnhandledExit};
use super::gate::{Gate, Pass, request};
use super::limit::Limit;
use super::{Error, StopCause};
use crate::devices::DeviceRequest;
use crate::kvm::{self, Vcpu, Vm};
use crate::memory;
use crate::sabotage::{self, Fault};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// vCPU threads call into devices, sinks and event handlers, none of which recurses. Untouched
/// pages cost nothing.
const STACK_BYTES: usize = 256 << 10;
/// Time a throttled vCPU runs between two naps (QEMU's `CPU_THROTTLE_TIMESLICE_NS`).
pub(crate) const THROTTLE_SLICE: Duration = Duration::from_millis(10);

/// A ring that is full again and again without anything in it that could be taken has overflowed,
/// and stays full. Once or twice only means that another thread was faster.
const RING_FULL_MAX: u32 = 1000;
/// How often an access is followed by [`Vcpu::look_for_interrupts`]: less than a tick of any guest.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// What the guest, or KVM, wants from the machine; the vCPU that says it stands still until it is
/// done.
pub(crate) enum VcpuRequest {
    Reset,
    Shutdown,
    Panic,
    /// The host has no page for guest memory.
    NoMemory {
        vcpu: u32,
        why: memory::Error,
    },
    /// Not a vCPU's: memory was lost, as no access may have told.
    Loss,
    /// The process ends with this status.
    Exit(i32),
    /// Not a vCPU's: a disk cannot go on.
    DiskError,
    Broken {
        vcpu: u32,
        why: String,
    },
}

impl VcpuRequest {
    pub(crate) fn cause(&self) -> StopCause {
        match self {
            VcpuRequest::Reset => StopCause::GuestReset,
            VcpuRequest::Shutdown => StopCause::GuestShutdown,
            VcpuRequest::Panic => StopCause::GuestPanic,
            VcpuRequest::Exit(_) => StopCause::GuestShutdown,
            VcpuRequest::NoMemory { .. }
            | VcpuRequest::Loss
            | VcpuRequest::DiskError
            | VcpuRequest::Broken { .. } => StopCause::HostError,
        }
    }
}

impl From<DeviceRequest> for VcpuRequest {
    fn from(request: DeviceRequest) -> VcpuRequest {
        match request {
            DeviceRequest::Exit(status) => VcpuRequest::Exit(status),
            DeviceRequest::Reset => VcpuRequest::Reset,
            DeviceRequest::Shutdown => VcpuRequest::Shutdown,
        }
    }
}

/// What all vCPU threads of a machine share.
pub(crate) struct Cpus {
    pub vm: Arc<Vm>,
    pub board: Board,
    pub gate: Gate,
    pub vcpus: Arc<Vec<kvm::Shared>>,
    pub throttle_percent: AtomicU8,
    /// What each vCPU may dirty.
    pub limits: Vec<Limit>,
    /// Over how long their rates are taken.
    pub limit_period_ms: AtomicU64,
    /// Pages of guest memory lost that the guest was stopped for.
    pub losses: AtomicU64,
    /// Called on a vCPU thread, which holds no lock then.
    pub request: Arc<dyn Fn(VcpuRequest) + Send + Sync>,
}

impl Cpus {
    /// vCPU `index`, on its own thread and outside of the guest, stands still for what it dirtied.
    pub(super) fn pay(&self, index: usize) {
        let limit = &self.limits[index];
        let mib = limit.mib();
        if mib == 0 {
            return;
        }
        let dirtied = self.vm.dirtied_by(index);
        let debt = limit.owes(dirtied);
        if !debt.is_zero() {
            self.gate.nap(index, debt, || limit.mib() == mib);
            limit.paid(dirtied, debt);
        }
    }
}

/// The running threads.
pub(crate) struct Threads {
    handles: Arc<Vec<JoinHandle<()>>>,
    pub ids: Vec<i32>,
}

/// Interrupts vCPU threads.
pub(crate) struct Signals(Arc<Vec<JoinHandle<()>>>);

impl Signals {
    /// Interrupts the thread of vCPU `index`, wherever it is.
    pub(crate) fn send(&self, index: usize) {
        // It fails for a thread that has ended, which needs no signal.
        let _ = self.0[index].kill(SIGRTMIN());
    }
}

extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

impl Threads {
    /// Starts one thread for each vCPU. They stand at the gate.
    pub(crate) fn start(cpus: &Arc<Cpus>) -> Result<Threads, Error> {
        // The signal only has to interrupt KVM_RUN.
        register_signal_handler(SIGRTMIN(), nothing)
            .map_err(|e| Error::Thread(std::io::Error::from_raw_os_error(e.errno())))?;
        let (report, reports) = mpsc::channel();
        let (mut handles, mut ids) = (Vec::new(), vec![0; cpus.vcpus.len()]);
        for index in 0..cpus.vcpus.len() {
            let (cpus, report) = (cpus.clone(), report.clone());
            let main = move || {
                let _ = report.send((index, kvm::thread_id()));
                drop(report);
                // Whoever waits until all stand still must not wait for one that is gone.
                while catch_unwind(AssertUnwindSafe(|| cpus.run(index))).is_err() {
                    cpus.gate.hold(index);
                    let why = "its thread has panicked, which is a defect of Godwit".to_owned();
                    (cpus.request)(VcpuRequest::Broken { vcpu: index as u32, why });
                }
            };
            let named = Builder::new().name(format!("CPU {index}/KVM")).stack_size(STACK_BYTES);
            handles.push(named.spawn(main).map_err(Error::Thread)?);
        }
        drop(report);
        for (index, id) in reports {
            ids[index] = id;
        }
        Ok(Threads { handles: Arc::new(handles), ids })
    }

    pub(crate) fn signals(&self) -> Signals {
        Signals(self.handles.clone())
    }

    /// Waits until all have ended; for the last owner of the handles.
    pub(crate) fn join(&mut self) {
        let me = std::thread::current().id();
        let Some(handles) = Arc::get_mut(&mut self.handles) else { return };
        for handle in handles.drain(..).filter(|h| h.thread().id() != me) {
            let _ = handle.join();
        }
    }
}

impl Cpus {
    /// The life of a vCPU thread.
    fn run(&self, index: usize) {
        while self.gate.pass(index) == Pass::Run {
            let request = {
                let mut vcpu = self.vcpus[index].lock();
                let request = self.run_guest(index, &mut vcpu);
                request.or(self.complete(&mut vcpu))
            };
            if let Some(request) = request {
                self.gate.hold(index);
                (self.request)(request);
            }
        }
    }

    /// Runs the guest until the gate closes, or until something must be done first.
    fn run_guest(&self, index: usize, vcpu: &mut Vcpu) -> Option<VcpuRequest> {
        let shared = &self.vcpus[index];
        let requests = &self.gate.requests[index];
        let mut full_in_a_row = 0;
        let mut looked = Instant::now();
        loop {
            if index + 1 == self.vcpus.len() {
                sabotage::panic_on(Fault::PanicInVcpu);
            }
            shared.rearm();
            if requests.any() {
                let asked = requests.take();
                if asked & request::NMI != 0 {
                    let _ = vcpu.external_nmi();
                }
                if asked & request::ANSWER != 0 {
                    self.gate.answer(index);
                }
                if asked & request::PARK != 0 {
                    return None;
                }
                if asked & request::THROTTLE != 0 {
                    let percent = self.throttle_percent.load(Ordering::Relaxed);
                    self.gate.nap(index, nap_time(percent), || true);
                    continue;
                }
                if asked & request::PAY != 0 {
                    self.pay(index);
                    continue;
                }
            }
            let served = self.board.serve(vcpu.run());
            if let Some(why) = self.new_loss() {
                return Some(VcpuRequest::NoMemory { vcpu: index as u32, why });
            }
            match served {
                Ok(()) => {
                    full_in_a_row = 0;
                    // The PIC's interrupts go to the first vCPU.
                    if index == 0 && looked.elapsed() >= LOOK_INTERVAL {
                        vcpu.look_for_interrupts();
                        looked = Instant::now();
                    }
                }
                Err(UnhandledExit::Interrupted) => full_in_a_row = 0,
                Err(UnhandledExit::RingFull) => {
                    let why = match self.vm.drain_rings() {
                        Ok(0) if full_in_a_row < RING_FULL_MAX => None,
                        Ok(0) => {
                            self.vm.give_up_rings();
                            Some(kvm::Error::RingOverflow.to_string())
                        }
                        Ok(_) => None,
                        Err(e) => Some(e.to_string()),
                    };
                    full_in_a_row += 1;
                    if let Some(why) = why {
                        return Some(VcpuRequest::Broken { vcpu: index as u32, why });
                    }
                    self.pay(index);
                    continue;
                }
                // KVM keeps HLT to itself; if it ever does not, going in again waits there.
                Err(UnhandledExit::Halt) => {}
                Err(UnhandledExit::Reset) => return Some(VcpuRequest::Reset),
                Err(UnhandledExit::Shutdown) => return Some(VcpuRequest::Shutdown),
                Err(UnhandledExit::Panic) => return Some(VcpuRequest::Panic),
                Err(UnhandledExit::Device(request)) => return Some(request.into()),
                Err(UnhandledExit::NoMemory(why)) => {
                    return Some(VcpuRequest::NoMemory { vcpu: index as u32, why });
                }
                Err(UnhandledExit::Broken(why)) => {
                    return Some(VcpuRequest::Broken { vcpu: index as u32, why });
                }
            }
        }
    }

    /// Whether memory was lost since it was last asked, under the hands of any thread.
    pub(super) fn new_loss(&self) -> Option<memory::Error> {
        let block = self.vm.ram().main();
        let before = self.losses.load(Ordering::Relaxed).max(block.forgiven());
        let why = block.check_losses(before).err()?;
        self.losses.store(block.losses(), Ordering::Relaxed);
        Some(why)
    }

    /// Finishes the last exit. What else it brings up would come again on the next run, but for what
    /// an access asks for.
    fn complete(&self, vcpu: &mut Vcpu) -> Option<VcpuRequest> {
        let mut asked = None;
        vcpu.complete(|exit| match self.board.serve(exit) {
            Ok(()) => true,
            Err(UnhandledExit::Device(request)) => {
                asked = Some(request.into());
                false
            }
            Err(_) => false,
        });
        asked
    }
}

/// QEMU's rule: of each slice plus nap, the nap is `percent` per cent.
fn nap_time(percent: u8) -> Duration {
    let percent = u32::from(percent.min(99));
    THROTTLE_SLICE * percent / (100 - percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn naps_make_up_the_share_asked_for() {
        assert_eq!(nap_time(0), Duration::ZERO);
        assert_eq!(nap_time(50), THROTTLE_SLICE);
        assert_eq!(nap_time(99), THROTTLE_SLICE * 99);
    }
}
